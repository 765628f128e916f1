"""Which regions of shared and of huge memory may be bound.

A policy on shared memory is on the object: it holds for all who map it, and beyond the task's end. So it is bound only
where every process that maps it has the same wish, and none maps it as code. Huge pages are handed out at the page
fault, where a process that finds none on the nodes of a bind is killed (SIGBUS): so only where the nodes have as many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from hetmemd.engine.decide import nodes_within
from hetmemd.engine.regionwise import Asked
from hetmemd.kernel import libc, maps, procfs
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.root import Root
from hetmemd.memory import regions
from hetmemd.memory.regions import Region

KEPT = 5.0
"""Seconds for which a reading of who maps what serves again, at least: it goes through all processes."""
COST = 50
"""A reading that took so long serves for that many times as long: 2 % of one core."""

Object = tuple[str, int]
"""Device and inode."""


class Clearance:
    """Safe to call from several threads."""

    def __init__(self, root: Root, asked: Callable[[str], Asked]) -> None:
        """`asked` takes a cgroup's path."""
        self._root = root
        self._asked = asked
        self._lock = threading.Lock()
        self._mappers: dict[Object, set[int]] = {}
        """Those of what nobody maps as code. Made anew by each reading: others may still be at the last one."""
        self._until = 0.0

    def cleared(self, found: Iterable[Region], asked: Asked, allowed: frozenset[int]) -> frozenset[int]:
        """Starts of the regions (of one process) that may be bound. `OSError` where /proc cannot be listed."""
        shared = [region for region in found if region.kind == "shm" and asked.of("shm") is not None]
        huge = [region for region in found if region.kind == "hugetlb" and asked.of("hugetlb") is not None]
        starts = huge_pages(self._root, huge, asked.of("hugetlb"), allowed)
        wishes: dict[int, Mempolicy | None] = {}
        wanted = asked.of("shm")
        agreed = {region.start for region, pids in self._mapped(shared) if self._agree(pids, wanted, wishes)}
        return starts | agreed

    # -- shared memory

    def alone(self, found: Iterable[Region], pid: int) -> frozenset[int]:
        """Starts of the regions of shared memory (of one process) that no other process maps. `OSError` as above."""
        mapped = self._mapped([region for region in found if region.kind == "shm"])
        return frozenset(region.start for region, pids in mapped if pids == {pid})

    def _mapped(self, shared: Sequence[Region]) -> list[tuple[Region, set[int]]]:
        """With the processes that map it. Not of what it is not known who maps it, or what somebody maps as code."""
        if not shared:
            return []
        with self._lock:
            mappers = self._read_mappers()
        return [(region, mappers[region.file]) for region in shared if region.is_shared and region.file in mappers]

    def _agree(self, pids: Iterable[int], wanted: Mempolicy | None, wishes: dict[int, Mempolicy | None]) -> bool:
        """Whether all who map the object want this policy for it."""
        for pid in pids:
            if pid not in wishes:
                wishes[pid] = self._wish(pid)
            if wishes[pid] != wanted:
                return False
        return True

    def _wish(self, pid: int) -> Mempolicy | None:
        try:
            path = procfs.cgroup_path(self._root, pid)
        except OSError:
            return None
        return self._asked(path).of("shm") if path else None

    def _read_mappers(self) -> dict[Object, set[int]]:
        began = time.monotonic()
        if began < self._until:
            return self._mappers
        mappers: dict[Object, set[int]] = {}
        code: set[Object] = set()
        for pid in procfs.pids(self._root):
            try:
                mappings = maps.read(self._root, pid)
            except OSError as error:
                if libc.is_gone(error):
                    continue
                # Without the right to look nobody knows who maps what: then nothing is cleared.
                mappers = {}
                break
            for mapping in mappings:
                if mapping.inode and mapping.permissions.endswith("s"):
                    what = (mapping.device, mapping.inode)
                    mappers.setdefault(what, set()).add(pid)
                    if "x" in mapping.permissions:
                        code.add(what)
        self._mappers = {what: pids for what, pids in mappers.items() if what not in code}
        self._until = time.monotonic() + max(KEPT, COST * (time.monotonic() - began))
        return self._mappers


# -- huge pages


def bears(root: Root, pid: int, policy: Mempolicy, allowed: Iterable[frozenset[int]]) -> bool:
    """Whether a process may have this policy as its task's, whose threads may use these nodes: what it has reserved
    of huge pages, and not touched, would be found. Reads its regions where anybody has reserved any. `OSError` as
    `regions.read`."""
    if policy.mode is not Mode.BIND or not _reserved(root, "*"):
        return True
    found = regions.read(root, pid, procfs.living_thread(root, pid))
    huge = [region for region in found if region.kind == "hugetlb" and not region.is_bound]
    return all(len(huge_pages(root, huge, policy, nodes)) == len(huge) for nodes in allowed)


def huge_pages(
    root: Root, found: Iterable[Region], wanted: Mempolicy | None, allowed: frozenset[int]
) -> frozenset[int]:
    """Starts of the regions of huge pages (all of one process) that may have this policy. What is not there yet of
    a region must find free pages on the nodes, and no two regions the same, nor one that another process has
    reserved: where those lie is decided at its page faults, and may be just here."""
    if wanted is None:
        return frozenset()
    starts: set[int] = set()
    free: dict[int, int] = {}
    known = [region for region in found if region.page_size]
    lacking = {
        region.start: max(region.size // region.page_size - region.pages * 4096 // region.page_size, 0)
        for region in known
    }
    nodes = nodes_within(wanted, allowed) if wanted.mode.takes_nodes else allowed
    for size in {region.page_size for region in known}:
        own = sum(lacking[region.start] for region in known if region.page_size == size)
        others = max(_reserved(root, f"hugepages-{size >> 10}kB") - own, 0)
        free[size] = sum(_free(root, node, size) for node in nodes) - others
    for region in known:
        if lacking[region.start] <= max(free[region.page_size], 0):
            free[region.page_size] -= lacking[region.start]
            starts.add(region.start)
    return frozenset(starts)


def _free(root: Root, node: int, size: int) -> int:
    """Documentation/admin-guide/mm/hugetlbpage.rst. Those that are reserved are among them."""
    folder = f"/sys/devices/system/node/node{node}/hugepages/hugepages-{size >> 10}kB"
    try:
        return int(root.read_text(f"{folder}/free_hugepages"))
    except (OSError, ValueError):
        return 0


def _reserved(root: Root, pool: str) -> int:
    """Pages that somebody was promised, on whatever node, and has not touched yet."""
    found = root.path("/sys/kernel/mm/hugepages").glob(f"{pool}/resv_hugepages")
    return sum(int(path.read_text()) for path in found)

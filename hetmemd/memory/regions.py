"""The regions of a process: what each one is, whose policy it has, and where its pages are.

Classes are disjoint: `heap` (brk only; malloc's mappings are `anon`), `anon`, `stack` (thread stacks too, where the
stack pointer can be read), `exec` (code, also generated), `file`, `shm` (memfd, tmpfs, System V, shared anonymous),
`hugetlb`, and `special` (the kernel's own pages and devices), which is never touched.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hetmemd.kernel import libc, maps, numa_maps, procfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.root import Root

KINDS = ("heap", "anon", "stack", "exec", "file", "shm", "hugetlb", "special")
ACTED_ON = frozenset({"heap", "anon", "stack", "exec", "file"})
"""What belongs to one process, and so is measured against its policy and moved for it."""

# Names in brackets that stand for ordinary memory; `[vdso]`, `[vvar]`, `[uprobes]`, ... are the kernel's.
_NAMED = re.compile(r"\[(anon|anon_shmem)[:\]]")
# Devices and what drivers hand out. PFN-mapped pages are moreover left out of pagemap's walks and counted nowhere in
# numa_maps, and the kernel moves nothing in VM_IO and VM_PFNMAP regions (vma_migratable()), whatever is asked of it.
_DEVICES = ("/dev/", "/sys/", "/proc/", "anon_inode:", "socket:", "/dmabuf:", "/drm ", "/i915", "/[")
_SHARED_OBJECTS = ("/memfd:", "/SYSV", "/dev/shm/", "/dev/zero")


@dataclass(frozen=True, slots=True)
class Region:
    """One VMA."""

    start: int
    end: int
    kind: str
    name: str
    """The file's path or the kernel's name, as /proc/PID/maps has it; empty for anonymous memory."""
    policy: Mempolicy | None
    """The region's own or the task's, with its effective nodes; None for one that is unknown here."""
    is_bound: bool
    """The region has a policy of its own, other than the task's: somebody bound it."""
    pages_by_node: Mapping[int, int]
    """In units of 4 KiB, hugetlb too."""
    page_size: int
    """Bytes: of a hugetlb page, 4096 for all else, also for transparent huge pages."""
    is_shared: bool
    """A shared mapping (MAP_SHARED)."""
    mapmax: int
    """The most often that any page of it is mapped, by this process and others."""

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def pages(self) -> int:
        return sum(self.pages_by_node.values())

    @property
    def left_out(self) -> str:
        """Why its pages are neither measured against the task's policy nor moved; empty where they are.

        `special`, `hugetlb`, `shm`, `shared` (a shared mapping, or pages of a file that another process maps too: both
        are for all their mappers to decide), `bound` (its own policy). Pages of heap, stack and anonymous memory that a
        child still shares after a fork do count: the kernel refuses to move them one by one, and they are few for long.
        """
        if self.kind not in ACTED_ON:
            return self.kind
        if self.is_shared or (self.kind in ("file", "exec") and self.name and self.mapmax > 1):
            return "shared"
        return "bound" if self.is_bound else ""


def classify(mapping: maps.Mapping, is_huge: bool, is_tmpfs: bool, has_stack_pointer: bool) -> str:
    """The class of a region, from its line in maps and what else is known of it."""
    name = mapping.name
    is_mapped_file = name.startswith("/") and mapping.inode != 0
    if is_huge:
        return "hugetlb"
    if name == "[heap]":
        return "heap"
    if name.startswith("[stack"):
        return "stack"
    if name.startswith("[anon_shmem") or name.startswith(_SHARED_OBJECTS) or (is_mapped_file and is_tmpfs):
        return "shm"
    if (name.startswith("[") and not _NAMED.match(name)) or name.startswith(_DEVICES):
        return "special"
    if "x" in mapping.permissions:
        return "exec"
    if is_mapped_file:
        return "file"
    return "stack" if has_stack_pointer else "anon"


def read(root: Root, pid: int, tid: int | None = None) -> list[Region]:
    """Regions in ascending order, read through thread `tid` where the leader is dead. Empty without memory.

    What came or went between the reads of maps and numa_maps is left out: it is there at the next reading.
    `OSError`: ENOENT or ESRCH gone, EACCES no right (PTRACE_MODE_READ).
    """
    lines = numa_maps.read(root, pid, tid)
    mappings = maps.read(root, pid, tid)
    by_start = {mapping.start: mapping for mapping in mappings}
    tmpfs = _tmpfs_devices(root, pid, tid) if any(each.device.startswith("00:") for each in mappings) else frozenset()
    stacks = _stacks(root, pid, mappings)
    task_policy = _task_policy(lines, mappings)
    found = []
    for line in lines:
        mapping = by_start.get(line.start)
        if mapping is None:
            continue
        unit = line.page_size // 4096 if line.huge else 1
        found.append(
            Region(
                mapping.start,
                mapping.end,
                classify(mapping, line.huge, mapping.device in tmpfs, mapping.start in stacks),
                mapping.name,
                line.policy,
                line.policy != task_policy,
                {node: count * unit for node, count in line.pages.items()},
                line.page_size if line.huge else 4096,
                mapping.permissions.endswith("s"),
                line.mapmax,
            )
        )
    return found


def task_policy(root: Root, pid: int, tid: int | None = None) -> Mempolicy | None:
    """The policy of a thread, told from those of its process's regions. Walks all of its memory, as `read` does."""
    return _task_policy(numa_maps.read(root, pid, tid), maps.read(root, pid, tid))


def _task_policy(lines: list[numa_maps.Line], mappings: list[maps.Mapping]) -> Mempolicy | None:
    """What regions without a policy of their own show: the vdso's, which nobody binds, or else the first region's."""
    vdso = next((mapping.start for mapping in mappings if mapping.name == "[vdso]"), None)
    return next((line.policy for line in lines if line.start == vdso), lines[0].policy if lines else None)


def _tmpfs_devices(root: Root, pid: int, tid: int | None) -> frozenset[str]:
    """`major:minor` as maps writes it, of the tmpfs mounts that the process sees (proc_pid_mountinfo(5))."""
    path = f"/proc/{pid}/mountinfo" if tid is None else f"/proc/{pid}/task/{tid}/mountinfo"
    devices = set()
    try:
        text = root.read_text(path)
    except OSError as error:
        if libc.is_gone(error):
            return frozenset()
        raise
    for line in text.split("\n"):
        head, _, tail = line.partition(" - ")
        if tail.startswith("tmpfs "):
            major, _, minor = head.split(" ", 3)[2].partition(":")
            devices.add(f"{int(major):02x}:{int(minor):02x}")
    return frozenset(devices)


def _stacks(root: Root, pid: int, mappings: list[maps.Mapping]) -> frozenset[int]:
    """Starts of the anonymous mappings that a thread's stack pointer is in.

    From /proc/PID/task/TID/syscall (proc(5)): only of threads that sleep in the kernel just now, and with the right to
    trace. Others' stacks count as `anon`.
    """
    starts = [mapping.start for mapping in mappings]
    found = set()
    try:
        tids = procfs.tids(root, pid)
    except OSError:
        return frozenset()
    for tid in tids:
        if tid == pid:
            continue  # the leader's is [stack]
        try:
            words = root.read_text(f"/proc/{pid}/task/{tid}/syscall").split()
        except OSError:
            continue
        if len(words) < 3:
            continue  # `running`
        pointer = int(words[-2], 16)
        place = bisect.bisect_right(starts, pointer) - 1
        if place >= 0 and pointer < mappings[place].end:
            found.add(mappings[place].start)
    return frozenset(found)


def living_thread(root: Root, pid: int) -> int | None:
    """A thread through which the process's memory can be reached: the leader, or one that lives on without it.

    None where all are dead. `OSError` ENOENT where the process is gone.
    """
    for tid in sorted(procfs.tids(root, pid), key=lambda each: each != pid):
        try:
            stat = procfs.stat(root, pid, tid)
        except OSError as error:
            if libc.is_gone(error):
                continue
            raise
        if stat.state not in "ZX":
            return tid
    return None

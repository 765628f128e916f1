"""What a policy would meet on a machine: its cgroups and their cpusets, live or in a collected tree. Reads only.

For `explain` and `check`, which ask without the daemon. A collected tree may lack any part; what is damaged is an
`OSError` with the file's name.
"""

from __future__ import annotations

import contextlib
import errno
import os

from hetmemd.kernel import cgroupfs, nodelist, procfs
from hetmemd.kernel.root import Root
from hetmemd.policy.faults import shown
from hetmemd.policy.resolve import CgroupFacts

_USUAL_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")  # hybrid and unified, as systemd mounts them
_MOST_TASKS = 64
"""Of one cgroup: their cpusets are the same, or nothing can be said of the cgroup as a whole."""


def mount(root: Root) -> str | None:
    """Where cgroup2 is mounted below `root` (empty for the root itself), None where there is none."""
    for process in ("self", "1"):
        try:
            point = cgroupfs.parse_mountinfo(root.read_text(f"/proc/{process}/mountinfo"))
        except (OSError, ValueError):  # ValueError: garbage in a damaged tree
            continue
        if point is not None and ".." not in point.split("/") and os.path.isdir(root.name(point)):  # noqa: PTH112
            return point.rstrip("/")
    if root.is_live:
        return None
    # A tree that was collected without its /proc.
    return next((point for point in _USUAL_MOUNTS if os.path.isdir(root.name(point))), None)  # noqa: PTH112


def cgroups(root: Root) -> list[str] | None:
    """Every cgroup of the tree at hand, parents first; None where there is no tree."""
    point = mount(root)
    if point is None:
        return None
    top = root.name(point)
    found: list[str] = []
    for folder, names, _ in os.walk(top):
        names.sort(key=os.fsencode)
        found.append(folder[len(top) :] or "/")
    return found


def tree(root: Root) -> dict[str, CgroupFacts] | None:
    """`CgroupFacts` of every cgroup of the tree at hand; None where there is no tree."""
    point, found = mount(root), cgroups(root)
    if point is None or found is None:
        return None
    return {path: _facts(root, point + path.rstrip("/")) for path in found}


def facts(root: Root, cgroup: str) -> dict[str, CgroupFacts]:
    """`CgroupFacts` of a cgroup and of all above it; those that do not exist are resolved as if they did (M2)."""
    point = mount(root)
    found: dict[str, CgroupFacts] = {}
    here = cgroup
    while True:
        found[here] = (
            CgroupFacts(exists=False) if point is None else _facts(root, point + here.rstrip("/"), ask_tasks=True)
        )
        if here == "/":
            return found
        here = here.rpartition("/")[0] or "/"


def _facts(root: Root, folder: str, ask_tasks: bool = False) -> CgroupFacts:
    if not os.path.isdir(root.name(folder)):  # noqa: PTH112
        return CgroupFacts(exists=False)
    cpus, mems = (_listed(root, f"{folder}/cpuset.{what}.effective") for what in ("cpus", "mems"))
    return CgroupFacts(cpus, mems or (_allowed(root, folder) if ask_tasks else None))


def _allowed(root: Root, folder: str) -> frozenset[int] | None:
    """The nodes that its tasks may use, where no cpuset of cgroup2 tells: on hybrid hosts that is elsewhere (I6)."""
    found: frozenset[int] = frozenset()
    try:
        pids = root.read_text(f"{folder}/cgroup.procs").split()
    except OSError:
        return None
    for pid in pids[:_MOST_TASKS]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            found |= procfs.mems_allowed(procfs.status(root, int(pid)))
    return found or None


def _listed(root: Root, path: str) -> frozenset[int] | None:
    """None where the file is not there, or a collected copy of it says nothing: both mean `as the parent`.

    `OSError` where it says what no kernel says.
    """
    try:
        text = root.read_text(path)
    except OSError:
        return None
    try:
        return nodelist.parse(text) or None
    except ValueError:
        raise OSError(errno.EBADMSG, f"is no list of numbers: {shown(text[:40])}", root.name(path)) from None

"""The regions of a process: what each one is (`classes`), whose policy it has, and where its pages are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetmemd.kernel import libc, maps, numa_maps, procfs, robust
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.root import Root
from hetmemd.memory import classes
from hetmemd.memory.classes import Segment, Span, Traces

ACTED_ON = frozenset({"heap", "anon", "stack", "exec", "file"})
"""What belongs to one process, and so is measured against its policy and moved for it."""


@dataclass(frozen=True, slots=True)
class Region:
    """One VMA, or a part of one that is of another class than the rest."""

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
    """Bytes: of a hugetlb page, 4096 for all else, also for transparent huge pages; 0 for one of hugetlb without pages
    whose size the reader may not know."""
    is_shared: bool
    """A shared mapping (MAP_SHARED)."""
    mapmax: int
    """The most often that any page of it is mapped, by this process and others."""
    is_part: bool = False
    """Of a VMA that holds a thread's stack and something else. Whose the pages are is not known until one of the two is
    bound: all are counted in its largest part."""
    permissions: str = ""
    """As maps has them: `rw-p`."""
    file: tuple[str, int] = ("00:00", 0)
    """Device and inode: the same for all who map the same object."""
    run: int = 0
    """Bytes of all that lie next to each other and are of its class, this one among them: a heap that grows after it
    was bound is several regions (`with_runs`)."""

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


def read(root: Root, pid: int, tid: int | None = None, known_stacks: Iterable[Span] = ()) -> list[Region]:
    """Regions in ascending order, read through thread `tid` where the leader is dead. Empty without memory.

    `known_stacks` are those that an earlier reading found (`stacks_in`). What came or went between the reads of maps
    and numa_maps is left out: it is there at the next reading. `OSError`: ENOENT or ESRCH gone, EACCES no right
    (PTRACE_MODE_READ).
    """
    lines = numa_maps.read(root, pid, tid)
    mappings = maps.read(root, pid, tid)
    by_start = {mapping.start: mapping for mapping in mappings}
    tmpfs = _tmpfs_devices(root, pid, tid) if any(each.device.startswith("00:") for each in mappings) else frozenset()
    stacks = classes.stacks(mappings, _traces(root, pid), known_stacks)
    task_policy = _task_policy(lines, mappings)
    found: list[Region] = []
    for line in lines:
        mapping = by_start.get(line.start)
        if mapping is None:
            continue
        kind = classes.classify(
            mapping, is_huge=line.huge, is_tmpfs=mapping.device in tmpfs, pages=sum(line.pages.values())
        )
        cut = classes.segments(mapping, kind, stacks)
        size = _huge_page_size(root, pid, mapping, line) if line.huge else 4096
        largest = max(cut, key=lambda segment: segment.end - segment.start)
        for segment in cut:
            found.append(_region(segment, mapping, line, task_policy, size, len(cut) > 1, segment is largest))
    return with_runs(found)


def with_runs(found: Sequence[Region]) -> list[Region]:
    """The regions (ascending), told what they come to together with their neighbours."""
    told: list[Region] = []
    begin = 0
    for index, region in enumerate(found):
        following = found[index + 1] if index + 1 < len(found) else None
        if following is None or following.start != region.end or following.kind != region.kind:
            run = region.end - found[begin].start
            told += [replace(each, run=run) for each in found[begin : index + 1]]
            begin = index + 1
    return told


def _region(
    segment: Segment,
    mapping: maps.Mapping,
    line: numa_maps.Line,
    task_policy: Mempolicy | None,
    page_size: int,
    is_part: bool,
    has_pages: bool,
) -> Region:
    unit = line.page_size // 4096 if line.huge else 1
    return Region(
        segment.start,
        segment.end,
        segment.kind,
        mapping.name,
        line.policy,
        line.policy != task_policy,
        {node: count * unit for node, count in line.pages.items()} if has_pages else {},
        page_size,
        mapping.permissions.endswith("s"),
        line.mapmax,
        is_part,
        mapping.permissions,
        (mapping.device, mapping.inode),
    )


def _huge_page_size(root: Root, pid: int, mapping: maps.Mapping, line: numa_maps.Line) -> int:
    if line.pages:
        return line.page_size
    try:
        return maps.page_size(root, pid, mapping)
    except OSError:
        return 0


def stacks_in(found: Iterable[Region]) -> frozenset[Span]:
    """Threads' stacks among regions, for the next `read`."""
    return frozenset((region.start, region.end) for region in found if region.kind == "stack" and not region.name)


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


def _traces(root: Root, pid: int) -> list[Traces]:
    """What tells the stacks of a process's threads but the leader, whose is `[stack]`."""
    try:
        tids = procfs.tids(root, pid)
    except OSError:
        return []
    # Threads of a collected tree are not those that have these ids here.
    is_here = libc.SUPPORTED and Path(root.name("/proc")).samefile("/proc")
    found = [_thread_traces(root, pid, tid, is_here) for tid in tids if tid != pid]
    return [traces for traces in found if traces != Traces()]


def _thread_traces(root: Root, pid: int, tid: int, is_here: bool) -> Traces:
    """Of one thread; nothing where it is gone, or where the right to look is missing."""
    try:
        if is_here and (block := robust.list_head(tid)) is not None:
            return Traces(block=block)
        words = root.read_text(f"/proc/{pid}/task/{tid}/syscall").split()
    except OSError:
        return Traces()
    # proc_pid_syscall(5): `running`, or numbers of which the last two are the stack pointer and the program counter.
    return Traces(pointer=int(words[-2], 16)) if len(words) > 2 else Traces()

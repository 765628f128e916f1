"""What each mapping of a process is: its class, and where in it the threads' stacks are. Pure.

Classes are disjoint: `heap` (brk only; malloc's mappings are `anon`), `anon`, `stack` (thread stacks too), `exec`
(code, also generated), `file`, `shm` (memfd, tmpfs, System V, shared anonymous), `hugetlb`. Two more are never acted
on: `guard` (no access, and no page in it) and `special` (the kernel's own pages, and devices).

How a thread's stack is told, since nothing in maps says so: by the thread's **control block**, which glibc puts at the
top of the stack (`kernel.robust`; known of threads that run, too), and by its **stack pointer**, which the kernel shows
of threads that sleep. A stack begins where the mapping does, above its guard, and ends above the control block: the
kernel may have merged the mapping with what lies above. Once found, it counts as a stack for as long as the mapping
and its guard stand, also when its thread has ended: thread libraries keep stacks for the next thread. What this cannot
tell: stacks of a runtime's own threads (goroutines lie in Go's heap), signal stacks, and of other C libraries the
stack of a thread that runs; they count as what they lie in.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hetmemd.kernel.maps import Mapping

KINDS = ("heap", "anon", "stack", "exec", "file", "shm", "hugetlb", "guard", "special")
PAGE = 4096
USUAL_STACK = 8 << 20
"""Bytes: what a stack measures at most where nothing marks its other end. RLIMIT_STACK's default, and glibc's."""
BEHIND_BLOCK = 1568
"""Bytes from the list of locks to the end of glibc's `struct pthread` (x86-64, 2.35 to 2.41), and so to the end of the
stack's mapping but for the rounding to a page."""
ABOVE_POINTER = 1 << 16
"""Bytes that a stack reaches above its pointer, at least, where that is all that is known."""

# Names in brackets that stand for ordinary memory; `[vdso]`, `[vvar]`, `[uprobes]`, ... are the kernel's.
_NAMED = re.compile(r"\[anon[:\]]")
# The name that glibc gives with its tunable glibc.mem.decorate_maps (2.39), and `[stack:TID]` of old kernels.
_NAMED_STACK = re.compile(r"\[anon: ?glibc: pthread stack|\[stack")
# Devices and what drivers hand out. PFN-mapped pages are moreover left out of pagemap's walks and counted nowhere in
# numa_maps, and the kernel moves nothing in VM_IO and VM_PFNMAP regions (vma_migratable()), whatever is asked of it.
_DEVICES = ("/dev/", "/sys/", "/proc/", "anon_inode:", "socket:", "/dmabuf:", "/drm ", "/i915", "/[")
_SHARED_OBJECTS = ("/memfd:", "/SYSV", "/dev/shm/", "[anon_shmem")

Span = tuple[int, int]
"""Addresses: the first, and the first that is no part of it any more."""


class Traces(NamedTuple):
    """What is known of one thread that tells its stack."""

    block: int | None = None
    """An address in its control block, `kernel.robust.list_head`."""
    pointer: int | None = None
    """Its stack pointer, where it sleeps."""


class Segment(NamedTuple):
    """A mapping, or a part of one that is of another class than the rest."""

    start: int
    end: int
    kind: str


def classify(mapping: Mapping, *, is_huge: bool = False, is_tmpfs: bool = False, pages: int = 0) -> str:
    """The class of a whole mapping, threads' stacks left aside. `is_huge`: of hugetlb. `is_tmpfs`: of a file on tmpfs.

    `pages` are those in it: what is protected from all access for a while, and full, is no guard.
    """
    name, rights = mapping.name, mapping.permissions
    is_file = name.startswith("/") and mapping.inode != 0
    if is_huge:
        return "hugetlb"
    if name == "[heap]":
        return "heap"
    if _NAMED_STACK.match(name):
        return "stack"
    if name.startswith("/dev/zero"):
        # Of /dev/zero a private mapping is anonymous memory, a shared one is shared anonymous memory.
        return "shm" if rights[3] == "s" else _anonymous(rights, pages)
    if name.startswith(_SHARED_OBJECTS):
        return "shm"
    if name.startswith(_DEVICES) or (name.startswith("[") and not _NAMED.match(name)):
        return "special"
    if is_file and is_tmpfs:
        return "shm"
    if is_file:
        return "exec" if "x" in rights else "file"
    return _anonymous(rights, pages)


def _anonymous(rights: str, pages: int) -> str:
    if "x" in rights:
        return "exec"
    return "guard" if rights.startswith("---") and not pages else "anon"


def stacks(mappings: Sequence[Mapping], threads: Iterable[Traces], known: Iterable[Span] = ()) -> list[Span]:
    """Where threads' stacks are, ascending and disjoint. `mappings` ascend; `known` is what was found before."""
    starts = [mapping.start for mapping in mappings]
    found: list[Span] = []
    for block, pointer in threads:
        span = None
        if block is not None and (place := _place(mappings, starts, block)) is not None:
            span = _below_block(mappings, place, block)
        elif pointer is not None and (place := _place(mappings, starts, pointer)) is not None:
            span = _around_pointer(mappings, place, pointer)
        if span:
            found.append(span)
    for start, end in known:
        place = _place(mappings, starts, start)
        if place is not None and _is_guarded(mappings, place) and mappings[place].start == start:
            found.append((start, min(end, mappings[place].end)))
    return _disjoint(found)


def _place(mappings: Sequence[Mapping], starts: Sequence[int], address: int) -> int | None:
    """Which mapping an address is in, of those in which a stack can be."""
    place = bisect.bisect_right(starts, address) - 1
    if place < 0 or address >= mappings[place].end:
        return None
    mapping = mappings[place]
    is_anonymous = not mapping.name or bool(_NAMED.match(mapping.name))
    return place if is_anonymous and mapping.permissions.startswith("rw-p") else None


def _is_guarded(mappings: Sequence[Mapping], place: int) -> bool:
    if not place:
        return False
    below = mappings[place - 1]
    return below.end == mappings[place].start and below.permissions.startswith("---p")


def _below_block(mappings: Sequence[Mapping], place: int, block: int) -> Span:
    mapping = mappings[place]
    end = min(_rounded_up(block + BEHIND_BLOCK), mapping.end)
    # Without a guard that can be seen (attr_setguardsize(0), attr_setstack, MADV_GUARD_INSTALL) the beginning is not
    # known, and more may have been merged with it.
    start = mapping.start if _is_guarded(mappings, place) else max(mapping.start, end - USUAL_STACK)
    return start, end


def _around_pointer(mappings: Sequence[Mapping], place: int, pointer: int) -> Span | None:
    """None without a guard: a coroutine's stack, say, in the middle of a heap."""
    if not _is_guarded(mappings, place):
        return None
    mapping = mappings[place]
    usual = max(mapping.start + USUAL_STACK, _rounded_up(pointer + ABOVE_POINTER))
    return mapping.start, min(usual, mapping.end)


def _rounded_up(address: int) -> int:
    return -(-address // PAGE) * PAGE


def _disjoint(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def segments(mapping: Mapping, kind: str, found: Sequence[Span]) -> list[Segment]:
    """The mapping of class `kind`, cut where threads' stacks (ascending, disjoint) begin and end."""
    if kind != "anon":
        return [Segment(mapping.start, mapping.end, kind)]
    cut: list[Segment] = []
    at = mapping.start
    first = max(bisect.bisect_right(found, (mapping.start, 1 << 64)) - 1, 0)
    for start, end in found[first:]:
        if start >= mapping.end:
            break
        if end <= mapping.start:
            continue
        if start > at:
            cut.append(Segment(at, start, kind))
        cut.append(Segment(max(start, at), min(end, mapping.end), "stack"))
        at = min(end, mapping.end)
    if at < mapping.end:
        cut.append(Segment(at, mapping.end, kind))
    return cut

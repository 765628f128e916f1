"""A process whose memory is known page by page: maps, fills, waits, and says whether its contents are still right.

usage: memory_child.py MEBIBYTES small|huge|holed|remnant|plain|ballast [fork|pin|lock]
`holed` are huge pages of which page 7 is given back, `remnant` those of which only that is left; `plain` leaves their
size to the system; `ballast` takes room.
Prints `ADDRESS LENGTH` in decimal when all is filled; at the end of standard input checks and prints `intact` or what
is wrong. With `fork` a child shares all pages until then; with `pin` the first 16 are held by a pipe; with `lock` all
are locked in memory.
"""

import ctypes
import mmap
import os
import signal
import sys

PAGE = 4096
HUGE = 2 << 20
libc = ctypes.CDLL(None, use_errno=True)


def stamp(number: int) -> bytes:
    return (number * 2654435761 % (1 << 64)).to_bytes(8, "little")


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def pin(address: int, length: int) -> None:
    """A pipe takes references to the pages (vmsplice(2)): the kernel cannot move them until it is read."""
    _, kept_open = os.pipe()
    piece = Iovec(address, length)
    assert libc.vmsplice(kept_open, ctypes.byref(piece), ctypes.c_ulong(1), 0) == length


def main() -> None:
    size = int(sys.argv[1]) << 20
    kind = sys.argv[2]
    area = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if kind != "plain":
        area.madvise(mmap.MADV_NOHUGEPAGE if kind == "small" else mmap.MADV_HUGEPAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    skip = -base % HUGE
    if kind == "ballast":
        for place in range(skip, skip + size, HUGE):
            length = min(HUGE, skip + size - place)
            area[place : place + length] = bytes([1]) * length
        print(base + skip, size, flush=True)
        sys.stdin.read()
        return
    for page in range(size // PAGE):
        place = skip + page * PAGE
        area[place : place + 8] = stamp(page)
        area[place + PAGE - 8 : place + PAGE] = stamp(page + 1)
    sevenths = set(range(7, size // PAGE, HUGE // PAGE))
    holes = {"holed": sevenths, "remnant": set(range(size // PAGE)) - sevenths}.get(kind, set())
    for page in holes:
        area.madvise(mmap.MADV_DONTNEED, skip + page * PAGE, PAGE)
    if holes:
        area.madvise(mmap.MADV_NOHUGEPAGE)  # or khugepaged fills them
    sharer = 0
    if "fork" in sys.argv[3:]:
        sharer = os.fork()
        if not sharer:
            signal.pause()
    if "pin" in sys.argv[3:]:
        pin(base + skip, 16 * PAGE)
    if "lock" in sys.argv[3:]:
        assert not libc.mlock(ctypes.c_void_p(base + skip), ctypes.c_size_t(size))
    print(base + skip, size, flush=True)
    sys.stdin.read()
    wrong = 0
    for page in set(range(size // PAGE)) - holes:
        place = skip + page * PAGE
        wrong += area[place : place + 8] != stamp(page)
        wrong += area[place + PAGE - 8 : place + PAGE] != stamp(page + 1)
    if sharer:
        os.kill(sharer, signal.SIGKILL)
        os.waitpid(sharer, 0)
    print(f"{wrong} stamps wrong" if wrong else "intact", flush=True)


main()

"""A process whose memory is known page by page: maps, fills, waits, and says whether its contents are still right.

usage: memory_child.py MEBIBYTES small|huge|holed|plain|ballast [fork]
`holed` are huge pages of which page 7 is given back; `plain` leaves their size to the system; `ballast` takes room.
Prints `ADDRESS LENGTH` in decimal when all is filled; at the end of standard input checks and prints `intact` or what
is wrong. With `fork` a child shares all pages until then.
"""

import ctypes
import mmap
import os
import signal
import sys

PAGE = 4096
HUGE = 2 << 20


def stamp(number: int) -> bytes:
    return (number * 2654435761 % (1 << 64)).to_bytes(8, "little")


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
            area[place : place + HUGE] = bytes([1]) * HUGE
        print(base + skip, size, flush=True)
        sys.stdin.read()
        return
    for page in range(size // PAGE):
        place = skip + page * PAGE
        area[place : place + 8] = stamp(page)
        area[place + PAGE - 8 : place + PAGE] = stamp(page + 1)
    holes = set(range(7, size // PAGE, HUGE // PAGE)) if kind == "holed" else set()
    for page in holes:
        area.madvise(mmap.MADV_DONTNEED, skip + page * PAGE, PAGE)
    if holes:
        area.madvise(mmap.MADV_NOHUGEPAGE)  # or khugepaged fills them
    sharer = 0
    if "fork" in sys.argv[3:]:
        sharer = os.fork()
        if not sharer:
            signal.pause()
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

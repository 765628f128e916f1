"""A process whose memory is known page by page: maps, fills, waits, and says whether its contents are still right.

usage: memory_child.py MEBIBYTES small|huge [fork]
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
    huge = sys.argv[2] == "huge"
    area = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    skip = -base % HUGE
    for page in range(size // PAGE):
        place = skip + page * PAGE
        area[place : place + 8] = stamp(page)
        area[place + PAGE - 8 : place + PAGE] = stamp(page + 1)
    sharer = 0
    if "fork" in sys.argv[3:]:
        sharer = os.fork()
        if not sharer:
            signal.pause()
    print(base + skip, size, flush=True)
    sys.stdin.read()
    wrong = 0
    for page in range(size // PAGE):
        place = skip + page * PAGE
        wrong += area[place : place + 8] != stamp(page)
        wrong += area[place + PAGE - 8 : place + PAGE] != stamp(page + 1)
    if sharer:
        os.kill(sharer, signal.SIGKILL)
        os.waitpid(sharer, 0)
    print(f"{wrong} stamps wrong" if wrong else "intact", flush=True)


main()

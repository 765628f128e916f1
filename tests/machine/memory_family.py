"""A process and two children that share memory with it in known ways.

Prints a line of JSON, {"children": [pid, pid], name: [address, pages], ...}, and waits for the end of its input:
`forked` anonymous memory that all three map since the forks, `half` the same, which the second child gave back,
`written` the same, which the second child wrote to, `object` shared anonymous memory that all three touched, `other`
the same at another address in the second child, `own` memory of the parent alone. `whole` is a huge page that the
parent and the first child map; of `halves`, another, they map the first half, and the second child the second.
"""

import ctypes
import json
import mmap
import os
import signal
import sys

PAGE = 4096
PAGES = 64
HUGE = 2 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
libc = ctypes.CDLL(None, use_errno=True)
areas: dict[str, mmap.mmap] = {}


def address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def touch(area: mmap.mmap) -> None:
    for page in range(PAGES):
        area[page * PAGE] = 7


def look(area: mmap.mmap) -> int:
    return sum(area[page * PAGE] for page in range(PAGES))


def huge() -> tuple[mmap.mmap, int]:
    """A huge page, and where in the area it begins."""
    area = mmap.mmap(-1, 2 * HUGE, flags=PRIVATE)
    area.madvise(mmap.MADV_HUGEPAGE)
    base = -address(area) % HUGE
    area[base] = 7
    return area, base


def give_back(found: tuple[mmap.mmap, int], begin: int, size: int) -> None:
    area, base = found
    area.madvise(mmap.MADV_DONTNEED, base + begin, size)


def child(number: int, ready: int) -> None:
    give_back(halves, 0 if number == 1 else HUGE // 2, HUGE // 2)
    looked = [look(areas["object"])]
    if number == 1:
        areas["half"].madvise(mmap.MADV_DONTNEED)
        give_back(whole, 0, HUGE)
        touch(areas["written"])
        # The same object a second time, elsewhere.
        again = mmap.mmap(memory, PAGES * PAGE)
        looked.append(look(again))
        areas["other"].madvise(mmap.MADV_DONTNEED)
    else:
        looked.append(look(areas["other"]))
    os.write(ready, b"x")
    signal.pause()


memory = os.memfd_create("family")
os.ftruncate(memory, PAGES * PAGE)
for name in ("forked", "half", "written", "own", "object", "other"):
    if name == "object":
        area = mmap.mmap(-1, PAGES * PAGE)
    elif name == "other":
        area = mmap.mmap(memory, PAGES * PAGE)
    else:
        area = mmap.mmap(-1, PAGES * PAGE, flags=PRIVATE)
        area.madvise(mmap.MADV_NOHUGEPAGE)
    touch(area)
    areas[name] = area
whole, halves = huge(), huge()
read, write = os.pipe()
children = []
for number in range(2):
    pid = os.fork()
    if not pid:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        child(number, write)
    children.append(pid)
for _ in children:
    os.read(read, 1)
touch(areas["own"])
give_back(halves, HUGE // 2, HUGE // 2)
told = {name: [address(area), PAGES] for name, area in areas.items()}
told |= {
    name: [address(area) + base, HUGE // PAGE] for name, (area, base) in {"whole": whole, "halves": halves}.items()
}
print(json.dumps({"children": children} | told), flush=True)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)

"""A process and two children that share memory with it in known ways.

Prints a line of JSON, {"children": [pid, pid], name: [address, pages], ...}, and waits for the end of its input:
`forked` anonymous memory that all three map since the forks, `half` the same, which the second child gave back,
`written` the same, which the second child wrote to, `object` shared anonymous memory that all three touched, `other`
the same at another address in the second child, `own` memory of the parent alone.
"""

import ctypes
import json
import mmap
import os
import signal
import sys

PAGE = 4096
PAGES = 64
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


def child(number: int, ready: int) -> None:
    looked = [look(areas["object"])]
    if number == 1:
        areas["half"].madvise(mmap.MADV_DONTNEED)
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
print(json.dumps({"children": children} | {name: [address(area), PAGES] for name, area in areas.items()}), flush=True)
sys.stdin.read()
for pid in children:
    os.kill(pid, signal.SIGKILL)

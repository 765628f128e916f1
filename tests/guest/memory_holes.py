"""Leaves a node's free memory in pieces: takes nearly all of it, and gives every second page back.

usage: memory_holes.py NODE, under `numactl --membind=NODE`. Prints `ready` and waits for the end of its input.
"""

import mmap
import sys

PAGE = 4096
path = f"/sys/devices/system/node/node{sys.argv[1]}/meminfo"
with open(path) as lines:
    free = next(int(line.split()[3]) * 1024 for line in lines if "MemFree" in line)
size = (free - (48 << 20)) // PAGE * PAGE
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, size, PAGE):
    area[place] = 1
# So many are left that the rest stays above the reserve, and no two neighbours are free.
for place in range(0, size, 2 * PAGE):
    area.madvise(mmap.MADV_DONTNEED, place, PAGE)
print("ready", flush=True)
sys.stdin.read()

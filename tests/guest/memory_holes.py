"""Leaves a node with much free memory and hardly a free block of 2 MiB: takes it, pins a page in each half of a block
(as a buffer of an io_uring, which compaction cannot move), and gives the rest back.

usage: memory_holes.py NODE, under `numactl --membind=NODE`. Prints `ready` and waits for the end of its input.
"""

import ctypes
import mmap
import sys

PAGE = 4096
EACH = 1 << 20
IO_URING_SETUP, IO_URING_REGISTER, IORING_REGISTER_BUFFERS = 425, 427, 0
libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


path = f"/sys/devices/system/node/node{sys.argv[1]}/meminfo"
with open(path) as lines:
    free = next(int(line.split()[3]) * 1024 for line in lines if "MemFree" in line)
size = (free - (40 << 20)) // EACH * EACH
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, size, PAGE):
    area[place] = 1
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
ring = libc.syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
pinned = (Iovec * (size // EACH))(*(Iovec(start + place, PAGE) for place in range(0, size, EACH)))
assert not libc.syscall(IO_URING_REGISTER, ring, IORING_REGISTER_BUFFERS, pinned, len(pinned)), ctypes.get_errno()
for place in range(0, size, EACH):
    area.madvise(mmap.MADV_DONTNEED, place + PAGE, EACH - PAGE)
print("ready", flush=True)
sys.stdin.read()

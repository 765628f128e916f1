"""Leaves a node with much free memory and hardly a free block of 2 MiB: takes it, pins a page in each half of a block
(as a buffer of an io_uring, which compaction cannot move), and gives the rest back.

usage: memory_holes.py NODE, under `numactl --membind=NODE`. Prints `ready` and waits for the end of its input.
"""

import ctypes
import mmap
import sys

PAGE = 4096
EACH = 1 << 20
BLOCK = 2 << 20
SPARE = 40 << 20
"""Bytes that stay free all the while, for everybody else."""
ENOUGH = 32
"""Blocks that may be left."""
IO_URING_SETUP, IO_URING_REGISTER, IORING_REGISTER_BUFFERS = 425, 427, 0
libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def free(node: str) -> int:
    """Bytes."""
    with open(f"/sys/devices/system/node/node{node}/meminfo") as lines:
        return next(int(line.split()[3]) * 1024 for line in lines if "MemFree" in line)


def blocks(node: str) -> int:
    """Free blocks of 2 MiB."""
    with open("/proc/buddyinfo") as lines:
        zones = [[int(word) for word in line.split()[4:]] for line in lines if line.startswith(f"Node {node},")]
    return sum(count << order - 9 for zone in zones for order, count in enumerate(zone) if order >= 9)


def compact(node: str) -> None:
    """Now, and not when others need blocks."""
    with open(f"/sys/devices/system/node/node{node}/compact", "w") as file:
        file.write("1")


def punch(size: int) -> tuple[mmap.mmap, int]:
    """An area of which only pinned pages are left, and the ring that pins them: they last as long as this."""
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
    return area, ring


def keep(count: int) -> mmap.mmap:
    """So many blocks of 2 MiB, as huge pages."""
    area = mmap.mmap(-1, (count + 1) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % BLOCK
    for place in range(first, first + count * BLOCK, BLOCK):
        area[place] = 1
    return area


# What is taken in one piece is given back in one, but for the pins.
compact(sys.argv[1])
held: list[object] = [punch((free(sys.argv[1]) - SPARE) // EACH * EACH)]
# Others gave memory back meanwhile, or the kernel its caches; and what it can make by compaction, it makes now.
compact(sys.argv[1])
while (left := blocks(sys.argv[1])) > ENOUGH:
    held.append(keep(left - ENOUGH // 2))
    compact(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()

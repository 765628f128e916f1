"""A process with memory in every state that matters to moving it.

usage: memory_states.py FILE. Prints {name: [address, pages], ...} and waits for a line; then says `intact` or what is
wrong. `merged` are pages of the same contents that KSM may merge, `pinned` are registered as buffers of an
io_uring, `swapped` were asked to be paged out, `file` are clean pages of a private mapping, `code` dirty ones that can
be executed, `hugetlb` is one huge page from the pool, `zero` were only read, `untouched` not even that.
"""

import ctypes
import json
import mmap
import sys

PAGE = 4096
PAGES = 64
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_HUGETLB = 0x40000
MADV_MERGEABLE, MADV_PAGEOUT = 12, 21
IO_URING_SETUP, IO_URING_REGISTER, IORING_REGISTER_BUFFERS = 425, 427, 0
libc = ctypes.CDLL(None, use_errno=True)
kept: list[object] = []
found: dict[str, tuple[int, int]] = {}
filled: dict[str, mmap.mmap] = {}


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def add(name: str, area: mmap.mmap, pages: int = PAGES) -> mmap.mmap:
    kept.append(area)
    found[name] = (address(area), pages)
    return area


def contents(name: str, page: int) -> bytes:
    return (b"same" if name == "merged" else f"{name} {page}".encode()).ljust(32, b".")


def fill(name: str, area: mmap.mmap, pages: int = PAGES, step: int = PAGE) -> mmap.mmap:
    for page in range(pages):
        area[page * step : page * step + 32] = contents(name, page)
    filled[name] = area
    return area


def anonymous(name: str, more: int = 0, access: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    area = mmap.mmap(-1, PAGES * PAGE, flags=PRIVATE | more, prot=access)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return fill(name, add(name, area))


def registered(name: str) -> None:
    area = anonymous(name)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(IO_URING_SETUP, 4, parameters)
    buffers = Iovec(address(area), PAGES * PAGE)
    assert ring >= 0, ctypes.get_errno()
    assert libc.syscall(IO_URING_REGISTER, ring, IORING_REGISTER_BUFFERS, ctypes.byref(buffers), 1) == 0


def main() -> None:
    anonymous("plain")
    anonymous("merged").madvise(MADV_MERGEABLE)
    registered("pinned")
    anonymous("swapped").madvise(MADV_PAGEOUT)
    locked = anonymous("locked")
    assert libc.mlock(ctypes.c_void_p(address(locked)), ctypes.c_size_t(PAGES * PAGE)) == 0
    anonymous("code", access=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    guarded = anonymous("guarded")
    assert libc.mprotect(ctypes.c_void_p(address(guarded)), ctypes.c_size_t(PAGES * PAGE), 0) == 0
    with open(sys.argv[1], "r+b") as file:
        area = add("file", mmap.mmap(file.fileno(), PAGES * PAGE, access=mmap.ACCESS_COPY))
        kept.append([area[page * PAGE] for page in range(PAGES)])
    zero = mmap.mmap(-1, PAGES * PAGE, flags=PRIVATE)
    zero.madvise(mmap.MADV_NOHUGEPAGE)
    kept.append([zero[page * PAGE] for page in range(PAGES)])
    add("zero", zero)
    add("untouched", mmap.mmap(-1, PAGES * PAGE, flags=PRIVATE))
    fill("hugetlb", add("hugetlb", mmap.mmap(-1, 2 << 20, flags=PRIVATE | MAP_HUGETLB), 1), 1)
    print(json.dumps(found), flush=True)
    sys.stdin.readline()
    libc.mprotect(ctypes.c_void_p(address(guarded)), ctypes.c_size_t(PAGES * PAGE), 1)
    wrong = [
        (name, page)
        for name, area in filled.items()
        for page in range(found[name][1])
        if area[page * PAGE : page * PAGE + 32] != contents(name, page)
    ]
    print(wrong or "intact", flush=True)


main()

"""A process with one region of each kind.

Prints a line of JSON, name to [address, length], and waits for the end of its input.

usage: memory_layout.py FILE TMPFS_FILE
"""

import ctypes
import json
import mmap
import os
import sys
import threading
import time

PAGE = 4096
HUGE = 2 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
kept: list[object] = []
found: dict[str, tuple[int, int]] = {}
libc = ctypes.CDLL(None, use_errno=True)


def address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def add(name: str, area: mmap.mmap, pages: range, base: int = 0) -> None:
    for page in pages:
        area[base + page * PAGE] = 1
    kept.append(area)
    found[name] = (address(area) + base, len(pages) * PAGE)


def anonymous(size: int, advice: int) -> mmap.mmap:
    area = mmap.mmap(-1, size, flags=PRIVATE)
    area.madvise(advice)
    return area


def mapped(path: str, access: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, 4 * PAGE, access=access)
    finally:
        os.close(fd)


def folios() -> None:
    """Huge pages: two whole, one mapped page by page with a hole, one of which two pages are left, not neighbours."""
    area = anonymous(5 * HUGE, mmap.MADV_HUGEPAGE)
    base = -address(area) % HUGE
    gaps = {"whole": [], "next": [], "holed": [(100, 107)], "remnant": [(0, 100), (101, 300), (301, 512)]}
    for name, holes in gaps.items():
        add(name, area, range(HUGE // PAGE), base)
        for begin, end in holes:
            area.madvise(mmap.MADV_DONTNEED, base + begin * PAGE, (end - begin) * PAGE)
            area.madvise(mmap.MADV_NOHUGEPAGE, base, HUGE)  # or khugepaged fills the hole
        base += HUGE


def stack(ready: threading.Event) -> None:
    mark = ctypes.create_string_buffer(8)
    local = libc.pthread_self
    local.restype = ctypes.c_ulong
    # glibc puts the thread's control block at the top of its stack's mapping.
    found["thread"] = (int(local()), 8)
    kept.append(mark)
    ready.set()
    kept_open.wait()


def busy() -> None:
    """A thread that is never found asleep in the kernel, or nearly never."""
    os.nice(19)
    local = libc.pthread_self
    local.restype = ctypes.c_ulong
    found["busy"] = (int(local()), 8)
    while True:
        pass


kept_open = threading.Event()


def main() -> None:
    add("scattered", anonymous(64 * PAGE, mmap.MADV_NOHUGEPAGE), range(0, 64, 2))
    zero = anonymous(8 * PAGE, mmap.MADV_NOHUGEPAGE)
    kept.append([zero[page * PAGE] for page in range(8)])
    kept.append(zero)
    found["zero"] = (address(zero), 8 * PAGE)
    add("shared", mmap.mmap(-1, 4 * PAGE), range(4))
    code = mmap.mmap(-1, 4 * PAGE, flags=PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    add("code", code, range(4))
    memfd = os.memfd_create("layout")
    os.truncate(memfd, 4 * PAGE)
    add("memfd", mmap.mmap(memfd, 4 * PAGE), range(4))
    guard = mmap.mmap(-1, 12 * PAGE, flags=PRIVATE)  # in the middle, or the kernel merges it with other guards
    found["guard"] = (address(guard) + 4 * PAGE, 4 * PAGE)
    protected = mmap.mmap(-1, 4 * PAGE, flags=PRIVATE)
    add("protected", protected, range(4))
    for name in ("guard", "protected"):
        assert not libc.mprotect(ctypes.c_void_p(found[name][0]), ctypes.c_size_t(4 * PAGE), 0)
    kept.append(guard)
    add("private-file", mapped(sys.argv[1], mmap.ACCESS_COPY), range(4))
    add("shared-file", mapped(sys.argv[1], mmap.ACCESS_WRITE), range(4))
    add("tmpfs", mapped(sys.argv[2], mmap.ACCESS_WRITE), range(4))
    bound = anonymous(4 * PAGE, mmap.MADV_NOHUGEPAGE)
    mask = ctypes.c_ulong(1)
    # MPOL_BIND | MPOL_F_STATIC_NODES to node 0; mbind is 237 on x86-64.
    assert not libc.syscall(
        237,
        ctypes.c_void_p(address(bound)),
        ctypes.c_ulong(4 * PAGE),
        2 | 1 << 15,
        ctypes.byref(mask),
        ctypes.c_ulong(65),
        0,
    )
    add("bound", bound, range(4))
    folios()
    ready = threading.Event()
    threading.Thread(target=stack, args=[ready], daemon=True).start()
    ready.wait()
    threading.Thread(target=busy, daemon=True).start()
    while "busy" not in found:
        time.sleep(0.001)
    print(json.dumps(found), flush=True)
    sys.stdin.read()


main()

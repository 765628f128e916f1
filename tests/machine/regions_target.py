"""A process with a region of each kind, which makes more of them when it is told to.

Each line of its input is a command and is answered by a line of JSON, name to [address, length]:
`start`, `grow` (the heap, an allocation of malloc's and a mapping of its own), `code` (what was data becomes code),
`fork` (a child that waits: `child`, whose address is its pid), `orphan` (the same, of a child that ends at once),
`anew` (other memory in the place of `anon`), `remap NAME` (mremap(2) to elsewhere), `bind NAME NODE` (mbind(2), by
itself), `exec` (the same program anew).

usage: regions_target.py SCALE, by which regions are larger than they need be.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import threading

PAGE = 4096
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE
MBIND = 237
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
libc.pthread_self.restype = ctypes.c_ulong
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
kept: list[object] = []
SCALE = int(sys.argv[1])
PR_SET_THP_DISABLE = 41
found: dict[str, tuple[int, int]] = {}


def address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def add(name: str, pages: int, flags: int = PRIVATE, protection: int = WRITABLE, descriptor: int = -1) -> None:
    """A mapping with nothing of its kind beside it."""
    area = mmap.mmap(descriptor, (pages + 2) * PAGE, flags, protection)
    base = address(area)
    if descriptor < 0:
        for edge in (base, base + (pages + 1) * PAGE):
            assert not libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(PAGE), 0)
    for page in range(1, pages + 1):
        area[page * PAGE] = 1
    kept.append(area)
    found[name] = (base + PAGE, pages * PAGE)


def bind(name: str, node: int) -> None:
    """By the application itself."""
    start, length = found[name]
    mask = ctypes.c_ulong(1 << node)
    where = (ctypes.c_void_p(start), ctypes.c_ulong(length))
    assert not libc.syscall(MBIND, *where, 2, ctypes.byref(mask), ctypes.c_ulong(65), 0)


def grow_heap(pages: int) -> tuple[int, int]:
    start = libc.sbrk(ctypes.c_long(pages * PAGE))
    ctypes.memset(start, 1, pages * PAGE)
    return start, pages * PAGE


def stack(name: str, spins: bool) -> None:
    found[name] = (int(libc.pthread_self()), 8)
    if spins:
        os.nice(19)
    while spins:
        pass
    threading.Event().wait()


def fork(is_orphan: bool) -> int:
    reader, writer = os.pipe()
    if not os.fork():
        if not is_orphan or not os.fork():
            os.write(writer, b"%d\n" % os.getpid())
            while True:
                signal.pause()
        os._exit(0)
    child = int(os.read(reader, 32))
    if is_orphan:
        os.wait()
    return child


def remap(name: str) -> None:
    start, length = found[name]
    size = ctypes.c_size_t(length)
    # Between guards, as what was there before.
    free = libc.mmap(None, ctypes.c_size_t(length + 2 * PAGE), 0, PRIVATE, -1, ctypes.c_long(0))
    fixed = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED
    assert libc.mremap(ctypes.c_void_p(start), size, size, fixed, ctypes.c_void_p(free + PAGE)) == free + PAGE
    found[name] = (free + PAGE, length)


def anew(name: str) -> None:
    """The sizes that /proc/PID/statm tells are as before."""
    start, length = found[name]
    assert not libc.munmap(ctypes.c_void_p(start - PAGE), ctypes.c_size_t(length + 2 * PAGE))
    add(name, length // PAGE)


def start() -> None:
    found["heap"] = grow_heap(16 * SCALE)
    add("anon", 16 * SCALE)
    add("own", 16 * SCALE)
    bind("own", 0)
    add("code", 4, protection=WRITABLE | mmap.PROT_EXEC)
    add("shared", 4, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    memfd = os.memfd_create("regions")
    os.truncate(memfd, 6 * PAGE)
    add("memfd", 4, mmap.MAP_SHARED, descriptor=memfd)
    for name in ("asleep", "busy"):
        threading.Thread(target=stack, args=[name, name == "busy"], daemon=True).start()
        while name not in found:
            pass


def main() -> None:
    assert not libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # pages of 4 KiB, so that a ratio is exact
    # Unbuffered: what is told to the program that it executes must not be read before.
    commands = os.fdopen(0, "rb", buffering=0)
    for line in iter(commands.readline, b""):
        command, *what = line.decode().split()
        match command:
            case "fork" | "orphan":
                found["child"] = (fork(command == "orphan"), 0)
            case "anew":
                anew("anon")
            case "remap":
                remap(*what)
            case "bind":
                bind(what[0], int(what[1]))
            case "start":
                start()
            case "grow":
                found["later-heap"] = grow_heap(64 * SCALE)
                add("later-anon", 32 * SCALE)
            case "code":
                begin, length = found["anon"]
                assert not libc.mprotect(
                    ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.PROT_READ | mmap.PROT_EXEC
                )
            case "exec":
                os.execv(sys.executable, [sys.executable, *sys.argv])
        print(json.dumps(found), flush=True)


main()

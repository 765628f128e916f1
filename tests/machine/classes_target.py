"""A process with mappings of every kind that the kernel has for them.

Prints a line of JSON, name to [address, length], and waits for the end of its input.

usage: classes_target.py DISK_FOLDER TMPFS_FOLDER HUGETLBFS_FOLDER, the last one empty where there are no huge pages.
"""

import contextlib
import ctypes
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path

PAGE = 4096
HUGE = 2 << 20
PRIVATE, SHARED = mmap.MAP_PRIVATE, mmap.MAP_SHARED
READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
IO_SETUP = 206
libc = ctypes.CDLL(None, use_errno=True)
libc.pthread_self.restype = ctypes.c_ulong
kept: list[object] = []
found: dict[str, tuple[int, int]] = {}


def add(
    name: str,
    descriptor: int,
    flags: int,
    protection: int = READ | WRITE,
    size: int = 4 * PAGE,
    is_touched: bool = True,
) -> None:
    if descriptor < 0:
        flags |= mmap.MAP_ANONYMOUS
    area = mmap.mmap(descriptor, size, flags, protection)
    if protection & WRITE and is_touched:
        area[0] = 1
    kept.append(area)
    found[name] = (address(area), size)


def address(area: mmap.mmap) -> int:
    # Also of what may not be written. struct Py_buffer begins with the address.
    buffer = (ctypes.c_void_p * 11)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(area), ctypes.byref(buffer), 0)
    return int(buffer[0] or 0)


def between(name: str, protection: int) -> None:
    """Anonymous memory with nothing of its kind beside it."""
    area = mmap.mmap(-1, 6 * PAGE, PRIVATE | mmap.MAP_ANONYMOUS, READ | WRITE)
    base = address(area)
    area[PAGE] = 1
    for edge in (base, base + 5 * PAGE):
        assert not libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(PAGE), 0)
    assert not libc.mprotect(ctypes.c_void_p(base + PAGE), ctypes.c_size_t(4 * PAGE), protection)
    kept.append(area)
    found[name] = (base + PAGE, 4 * PAGE)
    found[name + "-guard"] = (base, PAGE)


def opened(path: str, size: int = 4 * PAGE) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, size)
    return descriptor


def files(disk: str, tmpfs: str) -> None:
    for where, folder in (("disk", disk), ("tmpfs", tmpfs)):
        # A file each: what is mapped of tmpfs shows the object's policy, whoever mapped it how.
        for name, flags in (("private", PRIVATE), ("shared", SHARED)):
            add(f"{where}-{name}", opened(f"{folder}/{name}"), flags)
            add(f"{where}-deleted-{name}", opened(f"{folder}/deleted-{name}"), flags)
            Path(f"{folder}/deleted-{name}").unlink()
        add(f"{where}-code", opened(f"{folder}/code"), PRIVATE, READ | EXECUTE)


def memfds() -> None:
    memfd = os.memfd_create("classes")
    os.truncate(memfd, 4 * PAGE)
    add("memfd-shared", memfd, SHARED)
    other = os.memfd_create("classes-private")
    os.truncate(other, 4 * PAGE)
    add("memfd-private", other, PRIVATE)
    # As just-in-time compilers write code that they may not execute where they write it.
    code = os.memfd_create("classes-code")
    os.truncate(code, 4 * PAGE)
    add("jit-written", code, SHARED)
    add("jit-executed", code, SHARED, READ | EXECUTE)


def devices() -> None:
    zero = os.open("/dev/zero", os.O_RDWR)
    add("zero-private", zero, PRIVATE)
    add("zero-shared", zero, SHARED)
    with contextlib.suppress(OSError):
        # Pages without a struct page: PFN-mapped. Not on every machine, and not everywhere allowed.
        add("mem", os.open("/dev/mem", os.O_RDONLY), SHARED, READ, PAGE)
    context = ctypes.c_ulong(0)
    assert not libc.syscall(IO_SETUP, ctypes.c_uint(64), ctypes.byref(context))
    found["aio"] = (int(context.value), PAGE)


def huge(folder: str) -> None:
    add("huge", -1, PRIVATE | 0x40000, size=HUGE)
    add("huge-untouched", -1, PRIVATE | 0x40000, size=HUGE, is_touched=False)
    add("hugetlbfs", opened(f"{folder}/classes", HUGE), SHARED, size=HUGE)


def stack(name: str) -> None:
    found[name] = (int(libc.pthread_self()), 8)
    while name == "busy":
        pass
    threading.Event().wait()


def main() -> None:
    between("anon", READ | WRITE)
    between("jit", READ | WRITE | EXECUTE)
    between("read-only", READ)
    between("protected", 0)
    add("shared", -1, SHARED)
    files(sys.argv[1], sys.argv[2])
    memfds()
    devices()
    if sys.argv[3]:
        huge(sys.argv[3])
    for name in ("asleep", "busy"):
        threading.Thread(target=stack, args=[name], daemon=True).start()
        while name not in found:
            time.sleep(0.001)
    print(json.dumps(found), flush=True)
    sys.stdin.read()


main()

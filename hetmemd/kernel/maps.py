"""/proc/PID/maps: what is mapped where. Format: `show_map_vma` in fs/proc/task_mmu.c, proc_pid_maps(5)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from hetmemd.kernel.root import Root


class Mapping(NamedTuple):
    """One VMA."""

    start: int
    end: int
    permissions: str
    """Four characters, `rw-p`: the last is `p` for private, `s` for shared."""
    device: str
    """`major:minor` of the file system in hexadecimal, `00:00` where no file is mapped."""
    inode: int
    name: str
    """The file's path, a name in brackets (`[heap]`), or empty for anonymous memory."""
    offset: int = 0
    """Bytes into the file."""


def parse(text: str) -> list[Mapping]:
    """VMAs in ascending order. A path keeps its spaces and a ` (deleted)` after it."""
    found = []
    for line in text.split("\n"):
        fields = line.split(None, 5)
        if len(fields) < 5:
            continue
        first, _, last = fields[0].partition("-")
        name = fields[5].rstrip() if len(fields) == 6 else ""
        start, end, offset = int(first, 16), int(last, 16), int(fields[2], 16)
        found.append(Mapping(start, end, fields[1], fields[3], int(fields[4]), name, offset))
    return found


def read(root: Root, pid: int, tid: int | None = None) -> list[Mapping]:
    """Of a process, through thread `tid` where its leader is dead and has no memory any more. Empty without memory."""
    return parse(root.read_text(f"/proc/{pid}/maps" if tid is None else f"/proc/{pid}/task/{tid}/maps"))


_QUERY = struct.Struct("<9Q4I2Q")
"""struct procmap_query (include/uapi/linux/fs.h): size, query_flags, query_addr; then the answer, whose third word is
vma_flags; and what is not asked for."""
_PROCMAP_QUERY = 3 << 30 | _QUERY.size << 16 | ord("f") << 8 | 17
_VMA_FLAGS = 5
_LETTERS = ((1, "r"), (2, "w"), (4, "x"))
_UNKNOWN_CALL = frozenset({errno.ENOTTY, errno.EINVAL})


def permissions_at(descriptor: int, address: int) -> str:
    """`r-x` and the like, of the VMA that `address` lies in; empty where there is none. `descriptor` is of a maps file.

    One question from 6.11 on (PROCMAP_QUERY); before that all of the file is read.
    """
    query = bytearray(_QUERY.pack(_QUERY.size, 0, address, *[0] * 12))
    try:
        fcntl.ioctl(descriptor, _PROCMAP_QUERY, query)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return ""
        if error.errno not in _UNKNOWN_CALL:
            raise
        return permissions_in(_whole(descriptor), address)
    flags = _QUERY.unpack(query)[_VMA_FLAGS]
    return "".join(letter if flags & bit else "-" for bit, letter in _LETTERS)


def permissions_in(text: bytes, address: int) -> str:
    """The same from the text of a maps file."""
    # From the end: what is asked for lies near it.
    for line in reversed(text.splitlines()):
        first, _, rest = line.partition(b"-")
        last, _, rest = rest.partition(b" ")
        if int(first, 16) <= address:
            return rest[:3].decode() if address < int(last, 16) else ""
    return ""


def _whole(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def page_size(root: Root, pid: int, mapping: Mapping) -> int:
    """Bytes of a page of a hugetlb mapping, which numa_maps tells only where there is one: statfs(2) of its file.

    `OSError`: EPERM without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, ENOENT where it is mapped no more.
    """
    return os.statvfs(root.name(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")).f_bsize

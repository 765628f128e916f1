"""/proc/PID/maps: what is mapped where. Format: `show_map_vma` in fs/proc/task_mmu.c, proc_pid_maps(5)."""

from __future__ import annotations

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

"""The vdso that the kernel maps into every program: where it is, and how much of its last page is padding.

The image is an ELF shared object whose size is rounded up to pages; what lies behind its last section header is zero
and belongs to nothing (arch/x86/entry/vdso/vdso2c.c). The mapping is private: writing changes one process only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE = 4096
_LARGEST = 1 << 20
_SONAMES = (b"linux-vdso.so.1\0", b"linux-gate.so.1\0")
_AT_SYSINFO_EHDR = 33  # include/uapi/linux/auxvec.h


class NoVdso(Exception):
    """The process has no vdso where one is expected, or something else is mapped there."""


@dataclass(frozen=True, slots=True)
class Vdso:
    """One process's vdso, addresses in that process."""

    base: int
    is_64bit: bool
    image_end: int
    """Offset of the first byte that belongs to nothing."""
    size: int
    """Length of the mapping."""

    @property
    def padding(self) -> range:
        """Addresses of the padding."""
        return range(self.base + self.image_end, self.base + self.size)


def address(auxv: bytes) -> tuple[int, bool]:
    """(base, is it a 64-bit process) from /proc/PID/auxv (proc_pid_auxv(5)). `NoVdso` if there is none."""
    # A 32-bit process has 32-bit pairs in it. Read as 64-bit ones, their keys are never the kernel's small numbers.
    for layout, is_64bit in (("<QQ", True), ("<II", False)):
        size = struct.calcsize(layout)
        pairs = list(struct.iter_unpack(layout, auxv[: len(auxv) // size * size]))
        if pairs and pairs[0][0] < 256:
            for key, value in pairs:
                if key == _AT_SYSINFO_EHDR and value:
                    return value, is_64bit
            raise NoVdso("the process was started without a vdso")
    raise NoVdso("no auxiliary vector")


def describe(base: int, head: bytes) -> Vdso:
    """Where the image ends, by its own ELF headers, from its first page. `NoVdso` if that is no vdso's."""
    if len(head) < PAGE or head[:4] != b"\x7fELF" or head[4] not in (1, 2):
        raise NoVdso("no ELF image where the vdso should be")
    is_64bit = head[4] == 2
    if is_64bit:
        program_headers, section_headers = struct.unpack_from("<QQ", head, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", head, 54)
    else:
        program_headers, section_headers = struct.unpack_from("<II", head, 28)
        program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", head, 42)
    end = max(program_headers + program_size * program_count, section_headers + section_size * section_count)
    for index in range(program_count):
        at = program_headers + index * program_size
        if at + program_size > len(head):
            raise NoVdso("program headers outside of the first page")
        layout, first = ("<QQ", 8) if is_64bit else ("<II", 4)
        (offset,) = struct.unpack_from(layout[:2], head, at + first)
        (length,) = struct.unpack_from(layout[:2], head, at + (32 if is_64bit else 16))
        end = max(end, offset + length)
    if not 0 < end <= _LARGEST:
        raise NoVdso("the image's headers make no sense")
    return Vdso(base, is_64bit, end, (end + PAGE - 1) // PAGE * PAGE)


def is_kernels(image: bytes) -> bool:
    """True where the image calls itself by the kernel's name (the soname in arch/x86/entry/vdso/vdso*.lds.S)."""
    return any(name in image for name in _SONAMES)

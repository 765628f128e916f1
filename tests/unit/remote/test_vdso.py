"""Finding the vdso and its padding."""

from __future__ import annotations

import os
import struct

import pytest

from hetmemd.kernel import vdso
from hetmemd.kernel.root import Root


def elf64(sections_at: int = 5632, sections: int = 17, segment: int = 5442) -> bytes:
    head = bytearray(4096)
    head[:5] = b"\x7fELF\x02"
    struct.pack_into("<QQ", head, 32, 64, sections_at)
    struct.pack_into("<HHHH", head, 54, 56, 1, 64, sections)
    struct.pack_into("<IIQQQQ", head, 64, 1, 5, 0, 0, 0, segment)
    return bytes(head)


def test_padding_begins_behind_all_that_the_image_names() -> None:
    found = vdso.describe(0x7000, elf64())
    assert (found.image_end, found.size, found.is_64bit) == (5632 + 17 * 64, 8192, True)
    assert found.padding == range(0x7000 + 6720, 0x7000 + 8192)
    assert vdso.describe(0, elf64(sections_at=100, sections=1)).image_end == 5442
    assert len(vdso.describe(0, elf64(sections_at=8192 - 64, sections=1)).padding) == 0


@pytest.mark.parametrize(
    "head",
    [b"", bytes(4096), b"\x7fELF\x03" + bytes(4091), elf64()[:100], elf64(sections_at=1 << 40), elf64(segment=1 << 30)],
    ids=["nothing", "zeros", "class", "cut", "sections", "segment"],
)
def test_what_is_no_vdso(head: bytes) -> None:
    with pytest.raises(vdso.NoVdso):
        vdso.describe(0x7000, head)


def test_auxv_of_either_size() -> None:
    wide = struct.pack("<6Q", 51, 3632, 33, 0x7FFF12345000, 0, 0)
    narrow = struct.pack("<6I", 32, 0xF7FC5560, 33, 0xF7FC5000, 0, 0)
    assert vdso.address(wide) == (0x7FFF12345000, True)
    assert vdso.address(narrow) == (0xF7FC5000, False)
    for nothing in (b"", struct.pack("<4Q", 51, 3632, 0, 0), struct.pack("<4Q", 33, 0, 0, 0)):
        with pytest.raises(vdso.NoVdso):
            vdso.address(nothing)


def test_this_machines_own_ends_with_zeros() -> None:
    base, is_64bit = vdso.address(Root().read_bytes("/proc/self/auxv"))
    with open("/proc/self/mem", "rb") as memory:
        found = vdso.describe(base, os.pread(memory.fileno(), vdso.PAGE, base))
        image = os.pread(memory.fileno(), found.size, base)
    assert is_64bit == found.is_64bit
    assert vdso.is_kernels(image)
    assert not any(image[found.image_end :])
    assert any(image[found.image_end - 64 : found.image_end])

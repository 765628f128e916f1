"""What the kernel maps where."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import maps

TEXT = b"""\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 12 /usr/bin/a b
55d0c0001000-55d0c0003000 r-xp 00001000 fe:00 12 /usr/bin/a b
7fff00000000-7fff00002000 r-xp 00000000 00:00 0 [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""


@given(st.integers(0, (1 << 64) - 1) | st.sampled_from([0x55D0C0000000 + 4096 * page for page in range(-1, 5)]))
def test_the_permissions_of_an_address(address: int) -> None:
    covering = [each for each in maps.parse(TEXT.decode()) if each.start <= address < each.end]
    assert maps.permissions_in(TEXT, address) == (covering[0].permissions[:3] if covering else "")


def test_the_kernel_says_what_its_file_says() -> None:
    path = Path("/proc/self/maps")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for each in maps.parse(path.read_text()):
            # This is no VMA of the process's.
            if each.name != "[vsyscall]":
                assert maps.permissions_at(descriptor, each.start) == each.permissions[:3]
                assert maps.permissions_at(descriptor, each.end - 1) == each.permissions[:3]
        assert maps.permissions_at(descriptor, 0) == ""
    finally:
        os.close(descriptor)

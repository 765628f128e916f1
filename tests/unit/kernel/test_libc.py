"""Numbers of syscalls, held against the kernel's own headers."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from hetmemd.kernel import libc

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # which arch/arm64/include/uapi/asm/unistd.h includes
}


def test_there_is_a_header_for_each() -> None:
    assert HEADERS.keys() == libc.NUMBERS.keys()


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_header(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("linux-libc-dev is not installed")
    told = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", HEADERS[machine].read_text(), flags=re.MULTILINE))
    assert libc.NUMBERS[machine]._asdict() == {name: int(told[name]) for name in libc.Numbers._fields}


def test_other_machines_and_larger_pages_have_none() -> None:
    assert libc.numbers("aarch64", 4096) == libc.NUMBERS["aarch64"]
    assert libc.numbers("aarch64", 65536) is None
    assert libc.numbers("riscv64", 4096) is None


def test_a_machine_without_numbers_is_told_enosys() -> None:
    with pytest.raises(OSError) as error:
        libc.syscall(libc._NONE.move_pages, 0, 0, 0, 0, 0, 0)
    assert error.value.errno == errno.ENOSYS

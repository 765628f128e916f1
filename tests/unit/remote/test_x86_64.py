"""Registers, restarts and stubs of x86-64, decoded independently of the code that writes them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.remote.x86_64 import ABIS, CS, I386, ORIG_RAX, RAX, RIP, X86_64, XCS, Abi, abi_of

words = st.integers(0, 2**64 - 1)
registers_64 = st.lists(words, min_size=27, max_size=27)
registers_32 = st.lists(st.integers(0, 2**32 - 1), min_size=17, max_size=17)

# REX and ModRM of `mov REGISTER, [rip+disp32]`, by the index of the register in struct user_regs_struct.
LOADED = {b"\x48\x8b\x05": 10, b"\x48\x8b\x3d": 14, b"\x48\x8b\x35": 13, b"\x48\x8b\x15": 12, b"\x4c\x8b\x15": 7}
LOADED |= {b"\x4c\x8b\x05": 9, b"\x4c\x8b\x0d": 8, b"\x48\x8b\x0d": 11, b"\x4c\x8b\x1d": 6}


def run_64(stub: bytes, address: int) -> tuple[dict[int, int], int]:
    """What the stub at `address` does after its syscall: registers that it loads, and where it jumps."""
    assert stub[:2] == b"\x0f\x05"
    at, loaded = 2, {}
    while stub[at : at + 2] != b"\xff\x25":
        (offset,) = struct.unpack_from("<i", stub, at + 3)
        (loaded[LOADED[stub[at : at + 3]]],) = struct.unpack_from("<Q", stub, at + 7 + offset)
        at += 7
    (offset,) = struct.unpack_from("<i", stub, at + 2)
    (target,) = struct.unpack_from("<Q", stub, at + 6 + offset)
    return loaded, target


def run_32(stub: bytes, address: int) -> tuple[dict[int, int], int]:
    indices = {0: 6, 1: 1, 2: 2, 3: 0, 5: 5, 6: 3, 7: 4}  # eax ecx edx ebx ebp esi edi
    assert stub[:2] == b"\xcd\x80"
    at, loaded = 2, {}
    while stub[at] != 0xE9:
        (loaded[indices[stub[at] - 0xB8]],) = struct.unpack_from("<I", stub, at + 1)
        at += 5
    (offset,) = struct.unpack_from("<I", stub, at + 1)
    return loaded, (address + at + 5 + offset) % 2**32


@given(registers_64, st.integers(0, 2**47))
def test_the_stub_puts_everything_back(registers: list[int], address: int) -> None:
    stub = X86_64.stub(address, registers)
    assert len(stub) == X86_64.stub_length
    loaded, target = run_64(stub, address)
    result, pc = X86_64.resumption(registers)
    # All that a call takes as argument or the syscall instruction overwrites; the rest the kernel keeps.
    assert set(loaded) == {10, 14, 13, 12, 7, 9, 8, 11, 6}
    assert loaded == {index: result if index == RAX else registers[index] for index in loaded}
    assert target == pc


@given(registers_32, st.integers(0, 2**32 - 1))
def test_the_32_bit_stub_puts_everything_back(registers: list[int], address: int) -> None:
    stub = I386.stub(address, registers)
    assert len(stub) == I386.stub_length
    loaded, target = run_32(stub, address)
    result, pc = I386.resumption(registers)
    assert loaded == {index: result if index == 6 else registers[index] for index in range(7)}
    assert target == pc


def interrupted(abi: Abi, asked: int, result: int) -> list[int]:
    registers = [0] * (abi.layout.size // (abi.bits // 8))
    registers[abi.asked] = abi.unsigned(asked)
    registers[abi.result] = abi.unsigned(result)
    registers[abi.pc] = 0x1000
    return registers


@pytest.mark.parametrize("abi", ABIS, ids=lambda abi: abi.name)
@pytest.mark.parametrize(
    ("asked", "result", "expected", "back"),
    [
        (7, -512, 7, 2),
        (7, -513, 7, 2),
        (7, -514, 7, 2),
        (7, 3, 3, 0),
        (7, -4, -4, 0),
        (7, -515, -515, 0),
        (-1, -512, -512, 0),  # not in a syscall: the value is the program's own
    ],
)
def test_how_a_syscall_resumes(abi: Abi, asked: int, result: int, expected: int, back: int) -> None:
    registers = interrupted(abi, asked, result)
    assert abi.resumption(registers) == (abi.unsigned(expected), 0x1000 - back)


def test_a_syscall_with_a_restart_block_resumes_by_restart_syscall() -> None:
    assert X86_64.resumption(interrupted(X86_64, 35, -516)) == (219, 0xFFE)
    assert I386.resumption(interrupted(I386, 162, -516)) == (0, 0xFFE)


@pytest.mark.parametrize("number", [232, 281, 441, 65, 220, 128, 208, 426, 45, 0])
def test_a_bare_eintr_is_mended(number: int) -> None:
    registers = interrupted(X86_64, number, -4)
    mended = X86_64.mended(registers)
    assert X86_64.signed(mended[RAX]) == -514
    assert X86_64.resumption(mended) == (number, 0xFFE)
    assert [a for a, b in zip(registers, mended, strict=True) if a != b] == [registers[RAX]]


@pytest.mark.parametrize(("number", "result"), [(3, -4), (1, -4), (232, 1), (232, 0), (232, -9), (-1, -4)])
def test_nothing_else_is_mended(number: int, result: int) -> None:
    """Least of all close(2): the descriptor is closed, and may be another file's by the second time."""
    registers = interrupted(X86_64, number, result)
    assert X86_64.mended(registers) is registers


def test_calling_changes_what_the_call_needs_and_nothing_else() -> None:
    changes = dict(X86_64.calling(0x7000, 238, [3, 0x7100, 65]))
    assert X86_64.signed(changes.pop(ORIG_RAX)) == -1
    assert changes == {RAX: 238, RIP: 0x7000, 14: 3, 13: 0x7100, 12: 65}
    assert dict(I386.calling(0xF7000000, 276, [-1]))[0] == 0xFFFFFFFF


def test_the_abi_is_told_by_length_and_code_segment() -> None:
    registers = [0] * 27
    assert abi_of(X86_64.pack(registers)) is None
    registers[CS] = 0x33
    assert abi_of(X86_64.pack(registers)) == (X86_64, registers)
    registers[CS] = 0x23
    assert abi_of(X86_64.pack(registers)) is None
    compat = [0] * 17
    compat[XCS] = 0x23
    assert abi_of(I386.pack(compat)) == (I386, compat)
    assert abi_of(bytes(100)) is None


RSI, RDX = 13, 12


@given(st.integers(2, 1 << 40), st.data())
def test_the_rest_of_a_write_lies_behind_what_was_done(count: int, data: st.DataObject) -> None:
    most = min(count, 0x7FFFF000)
    done = data.draw(st.integers(1, most))
    registers = interrupted(X86_64, 1, done)
    registers[RSI], registers[RDX] = 0x5000, count
    assert X86_64.came_short(registers) == (done < most)
    if done < most:
        assert len(X86_64.rest(registers)) == X86_64.rest_length
        changes = dict(X86_64.asking_for_rest(0x7000, registers))
        assert (changes[RSI], changes[RDX]) == (0x5000 + done, most - done)
        assert (changes[RAX], changes[RIP], X86_64.signed(changes[ORIG_RAX])) == (1, 0x7000, -1)
        # What else is changed is what it was.
        assert all(changes[index] == registers[index] for index in changes.keys() - {RSI, RDX, RAX, RIP, ORIG_RAX})


@pytest.mark.parametrize(("number", "result"), [(0, 5), (1, 0), (1, -4), (18, 5), (44, 5), (275, 5), (-1, 5)])
def test_what_has_no_rest(number: int, result: int) -> None:
    registers = interrupted(X86_64, number, result)
    registers[RDX] = 100
    assert not X86_64.came_short(registers)
    assert not I386.came_short(interrupted(I386, 4, 5))

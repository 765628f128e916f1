"""Room in the padding of a vdso."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.remote import slot
from hetmemd.remote.x86_64 import ABIS, X86_64, Abi

START = 0x7FFF00001A40
PADDING = range(START, START + 1472)

abis = st.sampled_from(ABIS)
data = st.binary(max_size=160)


def content(abi: Abi, made: slot.Slot) -> bytes:
    registers = [0] * (abi.layout.size // (abi.bits // 8))
    return made.head + abi.stub(made.stub, registers) + made.tail


@given(abis, data, st.integers(0, 1000), st.integers(1, 2**22))
def test_a_slot_is_found_again_as_it_was_made(abi: Abi, payload: bytes, turn: int, tid: int) -> None:
    made = slot.reserve(abi.stub_length, PADDING, [], turn, tid, payload)
    assert made
    written = content(abi, made)
    assert len(written) == made.length
    memory = bytearray(len(PADDING))
    memory[made.address - START : made.address - START + made.length] = written
    assert slot.leftovers(bytes(memory), START) == [slot.Leftover(made.address, made.length, tid)]
    assert memory[made.data - START :][: len(payload)] == payload
    assert int.from_bytes(memory[made.mark_address - START :][:8], "little") == made.mark
    # In one page, so that it is written whole or not at all; and 8-aligned where the kernel reads words.
    assert made.address // 4096 == (made.address + made.length - 1) // 4096
    assert made.data % 8 == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), data)
def test_slots_never_overlap(turns: list[int], payload: bytes) -> None:
    taken: list[slot.Leftover] = []
    for tid, turn in enumerate(turns, 1):
        made = slot.reserve(X86_64.stub_length, PADDING, taken, turn, tid, payload)
        if made is None:
            assert len(taken) >= 3, "there is room for several"
            break
        span = range(made.address, made.address + made.length)
        assert span.start >= PADDING.start
        assert span.stop <= PADDING.stop
        assert not any(set(span) & set(range(left.address, left.address + left.length)) for left in taken)
        taken.append(slot.Leftover(made.address, made.length, tid))


def test_each_turn_is_another_place() -> None:
    places = {slot.reserve(X86_64.stub_length, PADDING, [], turn, 1, bytes(16)).address for turn in range(4)}  # type: ignore[union-attr]
    assert len(places) == 4


def test_two_slots_never_have_the_same_mark() -> None:
    marks = {slot.reserve(X86_64.stub_length, PADDING, [], 0, 1, b"").mark for _ in range(1000)}  # type: ignore[union-attr]
    assert len(marks) == 1000


def test_too_little_padding_is_no_room() -> None:
    assert slot.reserve(X86_64.stub_length, range(START, START + 100), [], 0, 1, b"") is None
    assert slot.reserve(X86_64.stub_length, range(START, START), [], 0, 1, b"") is None


@given(st.binary(min_size=1, max_size=64), st.integers(0, 1400))
def test_what_is_not_ours_is_strange(foreign: bytes, at: int) -> None:
    memory = bytearray(1472)
    memory[at : at + len(foreign)] = foreign
    if not any(foreign):
        assert slot.leftovers(bytes(memory), START) == []
        return
    with pytest.raises(slot.Strange):
        slot.leftovers(bytes(memory), START)


@pytest.mark.parametrize("at", [0, 800, 1460, 1464])
def test_half_a_slot_is_strange(at: int) -> None:
    made = slot.reserve(X86_64.stub_length, PADDING, [], 0, 1, bytes(16))
    assert made
    memory = (bytes(at) + made.head + b"\xff" * 1472)[:1472]
    with pytest.raises(slot.Strange):
        slot.leftovers(memory, START)


@given(
    st.sampled_from([(8, START), (4, 0xF7FC1A40)]),
    st.lists(st.integers(-20, 1500) | st.integers(0, 2**32 - 1)),
    st.booleans(),
    st.binary(max_size=7),
)
def test_an_address_in_the_padding_is_found(
    where: tuple[int, int], offsets: list[int], shifted: bool, rest: bytes
) -> None:
    width, start = where
    padding = range(start, start + 1472)
    # As addresses near it, and as numbers of any size.
    words = [start + offset if offset <= 1500 else offset for offset in offsets]
    memory = b"".join(word.to_bytes(width, "little") for word in words)
    if shifted:
        memory = b"\1" + memory
    memory += rest
    told = [int.from_bytes(memory[at : at + width], "little") for at in range(0, len(memory) // width * width, width)]
    assert slot.holds_address(memory, width, padding) is any(word in padding for word in told)

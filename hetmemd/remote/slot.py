"""Where a stub stands in the padding of a vdso: finding room, and recognising what a dead tracer left. Pure.

offset  0  magic, 8 bytes
        8  tid, 4 bytes; length of the slot, 2; sequence number, 2 (together: the mark)
       16  the stub, then data for the calls, 8-aligned
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

_MAGIC = b"hetmemd\x01"
_MARK = struct.Struct("<IHH")
HEADER = len(_MAGIC) + _MARK.size
"""Bytes of a slot before its stub."""
_ALIGN = 16

# Not from 0: a mark that a dead tracer left must not be taken for the one just written.
_sequence = itertools.count(int.from_bytes(os.urandom(2), "little"))


class Strange(Exception):
    """The padding holds something that is not ours."""


class Leftover(NamedTuple):
    """A slot that is found in the padding."""

    address: int
    length: int
    tid: int
    """The thread it was made for."""


class Slot(NamedTuple):
    """A stretch of padding for one stub. All that can be known before the thread stops is worked out in it."""

    address: int
    length: int
    head: bytes
    stub: int
    """Address to run; `head`, the stub and `tail` are written at `address`."""
    tail: bytes
    data: int
    """Address of the calls' data."""
    mark_address: int
    mark: int
    """The 8 bytes there: what the thread's own memory must show before it is sent here."""


def _rounded(length: int, unit: int) -> int:
    return (length + unit - 1) // unit * unit


def reserve(
    stub_length: int, padding: range, taken: Sequence[Leftover], turn: int, tid: int, data: bytes
) -> Slot | None:
    """Room for a stub that is made for thread `tid`, elsewhere each `turn`; None if there is none clear of `taken`.

    Turning keeps a thread that has not yet left a slot out of the way of the next one.
    """
    code, size, tail = _shape(stub_length, data)
    address = _place(padding, size, taken, turn)
    if address is None:
        return None
    mark = _MARK.pack(tid, size, next(_sequence) & 0xFFFF)
    stub = address + HEADER
    return Slot(
        address, size, _MAGIC + mark, stub, tail, stub + code, address + len(_MAGIC), int.from_bytes(mark, "little")
    )


@functools.lru_cache(maxsize=64)
def _shape(stub_length: int, data: bytes) -> tuple[int, int, bytes]:
    """Bytes for the stub and for all of a slot, and what stands behind the stub."""
    code = _rounded(stub_length, 8)
    size = _rounded(HEADER + code + len(data), _ALIGN)
    return code, size, (b"\xcc" * (code - stub_length) + data).ljust(size - HEADER - stub_length, b"\0")


def _place(padding: range, size: int, taken: Sequence[Leftover], turn: int) -> int | None:
    first = _rounded(padding.start, _ALIGN)
    places = (padding.stop - first) // size
    if places > 0 and not taken:
        return first + turn % places * size
    for step in range(places):
        address = first + (turn + step) % places * size
        if not any(left.address < address + size and address < left.address + left.length for left in taken):
            return address
    return None


def leftovers(padding: bytes, start: int) -> list[Leftover]:
    """Slots that stand in the padding, which begins at address `start`. `Strange` if there is anything else."""
    found: list[Leftover] = []
    rest = padding
    at = padding.find(_MAGIC)
    while at >= 0:
        if at + HEADER > len(padding):
            raise Strange(f"half a slot at {start + at:#x}")
        tid, size, _ = _MARK.unpack_from(padding, at + len(_MAGIC))
        if size < HEADER or at + size > len(padding):
            raise Strange(f"a slot of {size} bytes at {start + at:#x}")
        found.append(Leftover(start + at, size, tid))
        rest = rest[:at] + bytes(size) + rest[at + size :]
        at = padding.find(_MAGIC, at + size)
    if rest.strip(b"\0"):
        raise Strange("bytes in the vdso's padding")
    return found


def holds_address(memory: bytes, width: int, padding: range) -> bool:
    """Whether one of the words (`width` bytes each) that `memory` consists of is an address in the padding.

    A thread is held meanwhile: what all addresses of the padding end with is found at the speed of memory.
    """
    low = 0
    while padding.start >> 8 * low != padding.stop - 1 >> 8 * low:
        low += 1
    common = (padding.start >> 8 * low).to_bytes(width - low, "little")
    at = memory.find(common, low)
    while at >= 0:
        start = at - low
        if start % width == 0 and int.from_bytes(memory[start : start + width], "little") in padding:
            return True
        at = memory.find(common, at + 1)
    return False

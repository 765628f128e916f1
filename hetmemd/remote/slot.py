"""Where a stub stands in the padding of a vdso: finding room, and recognising what a dead tracer left. Pure.

offset  0  magic, 8 bytes
        8  tid, 4 bytes; length of the slot, 2; sequence number, 2 (together: the mark)
       16  the stub, then data for the calls, 8-aligned
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hetmemd.remote.x86_64 import Abi

_MAGIC = b"hetmemd\x01"
_MARK = struct.Struct("<IHH")
_HEADER = len(_MAGIC) + _MARK.size
_ALIGN = 16

# Not from 0: a mark that a dead tracer left must not be taken for the one just written.
_sequence = itertools.count(int.from_bytes(os.urandom(2), "little"))


class Strange(Exception):
    """The padding holds something that is not ours."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of padding that holds a stub, at an address of the target."""

    address: int
    length: int
    tid: int
    """The thread it was made for."""

    @property
    def span(self) -> range:
        return range(self.address, self.address + self.length)


@dataclass(frozen=True, slots=True)
class Image:
    """A slot with all that is written into it."""

    slot: Slot
    content: bytes
    stub: int
    """Address to run."""
    data: int
    """Address of the calls' data."""
    mark_address: int
    mark: int
    """The 8 bytes there: what the thread's own memory must show before it is sent here."""


def _rounded(length: int, unit: int) -> int:
    return (length + unit - 1) // unit * unit


def length(abi: Abi, data: bytes) -> int:
    """Bytes that a slot with this much data takes."""
    registers = [0] * (abi.layout.size // (abi.bits // 8))
    return _rounded(_HEADER + _rounded(len(abi.stub(0, registers)), 8) + len(data), _ALIGN)


def image(abi: Abi, address: int, tid: int, registers: Sequence[int], data: bytes) -> Image:
    """The slot to write at `address`, which ends with the thread as `registers` have it."""
    stub = address + _HEADER
    code = abi.stub(stub, registers)
    code = code.ljust(_rounded(len(code), 8), b"\xcc")
    size = _rounded(_HEADER + len(code) + len(data), _ALIGN)
    mark = _MARK.pack(tid, size, next(_sequence) & 0xFFFF)
    content = (_MAGIC + mark + code + data).ljust(size, b"\0")
    return Image(
        slot=Slot(address, size, tid),
        content=content,
        stub=stub,
        data=stub + len(code),
        mark_address=address + len(_MAGIC),
        mark=int.from_bytes(mark, "little"),
    )


def leftovers(padding: bytes, start: int) -> list[Slot]:
    """Slots that stand in the padding, which begins at address `start`. `Strange` if there is anything else."""
    found: list[Slot] = []
    rest = padding
    at = padding.find(_MAGIC)
    while at >= 0:
        tid, size, _ = _MARK.unpack_from(padding.ljust(at + _HEADER, b"\0"), at + len(_MAGIC))
        if size < _HEADER or at + size > len(padding):
            raise Strange(f"a slot of {size} bytes at {start + at:#x}")
        found.append(Slot(start + at, size, tid))
        rest = rest[:at] + bytes(size) + rest[at + size :]
        at = padding.find(_MAGIC, at + size)
    if rest.strip(b"\0"):
        raise Strange("bytes in the vdso's padding")
    return found


def place(padding: range, size: int, taken: Iterable[Slot], turn: int) -> int | None:
    """An address for a slot, another one each `turn`, clear of those taken; None if there is no room.

    Turning keeps a thread that has not yet left a slot out of the way of the next one.
    """
    first = _rounded(padding.start, _ALIGN)
    places = (padding.stop - first) // size
    spans = [slot.span for slot in taken]
    for step in range(places):
        address = first + (turn + step) % places * size
        if not any(span.start < address + size and address < span.stop for span in spans):
            return address
    return None

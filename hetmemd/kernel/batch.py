"""Several system calls in a row, with comparisons and copies between them, and no interpreter.

For the few places where every microsecond is somebody else's: a thread that is held by ptrace. A batch is a table of
records of eight 64-bit words; a routine of 112 bytes goes over it until it is done or one record fails.

    call      number, six arguments, result (written back; -errno where it failed)
    compare   -1, address, value: goes on only if the 32 bits at the address are the value
    copy      -2, to, from, count of bytes
    differ    -3, address, value: goes on only if the 32 bits at the address are not the value
    same      -4, address, other, count of bytes: goes on only if the bytes are the same

x86-64. Where the routine cannot be made (no executable memory is to be had), the same table is gone over in Python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

WORDS = 8
RESULT = 7
"""Of the words of a record."""
FILE = 5
"""Records of one `read_file`."""
_COMPARE, _COPY, _DIFFER, _SAME = ((1 << 64) - operation for operation in range(1, 5))
_LARGEST_ERRNO = 4095
_READ, _CLOSE, _OPENAT = 0, 3, 257  # arch/x86/entry/syscalls/syscall_64.tbl

_ROUTINE = bytes.fromhex(
    # (rdi: records, rsi: count) -> records that were not done
    "53 55"  #               push rbx; push rbp
    "48 89 fb 48 89 f5"  #   mov rbx, rdi; mov rbp, rsi
    "48 85 ed 74 4d"  # 08   next: test rbp, rbp; je done
    "48 8b 03"  #            mov rax, [rbx]
    "48 8b 7b 08"  #         mov rdi, [rbx+8]
    "48 8b 73 10"  #         mov rsi, [rbx+16]
    "48 8b 53 18"  #         mov rdx, [rbx+24]
    "48 85 c0 78 23"  #      test rax, rax; js special
    "4c 8b 53 20"  #         mov r10, [rbx+32]
    "4c 8b 43 28"  #         mov r8, [rbx+40]
    "4c 8b 4b 30"  #         mov r9, [rbx+48]
    "0f 05"  #               syscall
    "48 89 43 38"  #         mov [rbx+56], rax
    "48 3d 01 f0 ff ff"  #   cmp rax, -4095
    "73 1f"  #               jae done
    "48 83 c3 40"  # 3b      step: add rbx, 64
    "48 ff cd"  #            dec rbp
    "eb c4"  #               jmp next
    "48 89 d1"  # 44         special: mov rcx, rdx
    "48 ff c0 74 14"  #      inc rax; je compare
    "48 ff c0 74 1b"  #      inc rax; je copy
    "48 ff c0 74 10"  #      inc rax; je differ
    "f3 a6 74 e1"  #         repe cmpsb; je step
    "48 89 e8"  # 5a         done: mov rax, rbp
    "5d 5b c3"  #            pop rbp; pop rbx; ret
    "39 37 74 d7"  # 60      compare: cmp [rdi], esi; je step
    "eb f4"  #               jmp done
    "39 37 75 d1"  # 66      differ: cmp [rdi], esi; jne step
    "eb ee"  #               jmp done
    "f3 a4"  # 6c            copy: rep movsb
    "eb cb"  #               jmp step
)

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7
_PROT_READ, _PROT_EXEC, _MAP_PRIVATE = 1, 4, 2
_MAP_FAILED = ctypes.c_void_p(-1).value

Runner = Callable[[int, int], int]


def native() -> Runner | None:
    """The routine, mapped from a file of its own: memory is never writable and executable at once. None if refused."""
    descriptor = os.memfd_create("hetmemd-batch", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _ROUTINE)
        address = _libc.mmap(None, 4096, _PROT_READ | _PROT_EXEC, _MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == _MAP_FAILED:
        return None
    routine: Runner = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)(address)
    return routine


def interpreted(address: int, count: int) -> int:
    """What the routine does, one record at a time."""
    words = (ctypes.c_int64 * (WORDS * count)).from_address(address)
    for index in range(count):
        record = words[index * WORDS : (index + 1) * WORDS]
        if record[0] == -2:
            ctypes.memmove(record[1], record[2], record[3])
            continue
        if record[0] in (-1, -3):
            is_equal = ctypes.c_uint32.from_address(record[1]).value == record[2] & 0xFFFFFFFF
            if is_equal != (record[0] == -1):
                return count - index
            continue
        if record[0] == -4:
            if ctypes.string_at(record[1], record[3]) != ctypes.string_at(record[2], record[3]):
                return count - index
            continue
        result = _libc.syscall(*record[:RESULT])
        if result == -1:
            result = -ctypes.get_errno()
        words[index * WORDS + RESULT] = result
        if -_LARGEST_ERRNO <= result < 0:
            return count - index
    return 0


class Reading(NamedTuple):
    """The records that read the beginning of a file."""

    opened: int
    read: int
    end: int
    """The record after."""


class Batch:
    """A table of records, filled once and changed word by word."""

    def __init__(self, capacity: int) -> None:
        self._words = (ctypes.c_uint64 * (WORDS * capacity))()
        self.words = memoryview(self._words).cast("B").cast("Q")
        """All words: `words[index * WORDS + 1]` is the first argument of record `index`."""
        self._address = ctypes.addressof(self._words)
        self._run = native() or interpreted
        self.count = 0

    def call(self, number: int, *arguments: int) -> int:
        """Append a system call; its index."""
        return self._append(number, *arguments)

    def compare(self, address: int, value: int) -> int:
        """Append a comparison; its index."""
        return self._append(_COMPARE, address, value)

    def copy(self, to: int, start: int, count: int) -> int:
        """Append a copy of `count` bytes; its index."""
        return self._append(_COPY, to, start, count)

    def differ(self, address: int, value: int) -> int:
        """Append a comparison that goes on where the values differ; its index."""
        return self._append(_DIFFER, address, value)

    def same(self, address: int, other: int, count: int) -> int:
        """Append a comparison of `count` bytes; its index."""
        return self._append(_SAME, address, other, count)

    def read_file(self, name: int, to: int, size: int) -> Reading:
        """Append what opens the file whose name is at an address, reads once, and closes it.

        Relative to the directory that is the first argument of `opened`, to be filled in. After a `read` that failed,
        `close_unread`.
        """
        opened = self.call(_OPENAT, -1, name, os.O_RDONLY | os.O_CLOEXEC)
        read = opened + 3
        for later in (read, read + 1):
            self.copy(self.address_of(later, 1), self.address_of(opened), 8)
        self.call(_READ, -1, to, size)
        self.call(_CLOSE, -1)
        return Reading(opened, read, self.count)

    def close_unread(self, reading: Reading) -> None:
        self.run(reading.read + 1, 1)

    def _append(self, *words: int) -> int:
        start = self.count * WORDS
        for offset, word in enumerate(words):
            self.words[start + offset] = word & (1 << 64) - 1
        self.count += 1
        return self.count - 1

    def is_call(self, index: int) -> bool:
        return self.words[index * WORDS] < _SAME

    def address_of(self, index: int, word: int = RESULT) -> int:
        """Of one word of a record."""
        return self._address + (index * WORDS + word) * 8

    def result(self, index: int) -> int:
        word = self.words[index * WORDS + RESULT]
        return word - (1 << 64) if word >> 63 else word

    def run(self, first: int, count: int) -> int:
        """How many of `count` records from `first` on were done: all, or the one after failed."""
        return count - self._run(self._address + first * WORDS * 8, count)

"""The beginnings of many small files, such as those of /proc, with one table of system calls for all of them.

For a process with one thread (`kernel.batch`). Half of what reading a small file costs is the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from hetmemd.kernel.batch import RESULT, WORDS, Batch

_READ, _CLOSE, _OPENAT = 0, 3, 257  # arch/x86/entry/syscalls/syscall_64.tbl
_RECORDS = 5
_NAME = 64


class Heads:
    def __init__(self, sizes: Sequence[int]) -> None:
        """For as many files at a time, and up to so many bytes of each."""
        self.capacity = len(sizes)
        self._starts = [sum(sizes[:place]) for place in range(len(sizes))]
        names, contents = bytearray(len(sizes) * _NAME), bytearray(sum(sizes))
        self._names, self._contents = memoryview(names), memoryview(contents)
        self._buffers = [(ctypes.c_char * len(buffer)).from_buffer(buffer) for buffer in (names, contents)]
        name, content = map(ctypes.addressof, self._buffers)
        self._batch = batch = Batch(len(sizes) * _RECORDS)
        for place, (start, size) in enumerate(zip(self._starts, sizes, strict=True)):
            opened = batch.call(_OPENAT, 0, name + place * _NAME, os.O_RDONLY | os.O_CLOEXEC)
            batch.copy(batch.address_of(opened + 3, 1), batch.address_of(opened), 8)
            batch.copy(batch.address_of(opened + 4, 1), batch.address_of(opened), 8)
            batch.call(_READ, -1, content + start, size)
            batch.call(_CLOSE, -1)
        self._directory = -1
        # By the number of names, what fills in all of them, each with zeros behind it.
        self._fills = [struct.Struct(f"{_NAME}s" * count) for count in range(len(sizes) + 1)]
        self._places = [(start, (place * _RECORDS + 3) * WORDS + RESULT) for place, start in enumerate(self._starts)]

    def read(self, directory: int, names: Sequence[bytes]) -> list[bytes | int]:
        """Of each file its first bytes, with one read, or the errno for which they are not to be had.

        `names` are below an open `directory`, at most `capacity` of them, each shorter than 64 bytes.
        """
        words = self._batch.words
        if directory != self._directory:
            for place in range(self.capacity):
                words[place * _RECORDS * WORDS + 1] = directory
            self._directory = directory
        if max(map(len, names), default=0) >= _NAME:
            raise ValueError(names)
        self._fills[len(names)].pack_into(self._names, 0, *names)
        batch, contents = self._batch, self._contents
        end = len(names) * _RECORDS
        done = batch.run(0, end)
        if done == end:
            return [bytes(contents[start : start + words[at]]) for start, at in self._places[: len(names)]]
        failed: dict[int, int] = {}
        while done < end:
            place = done // _RECORDS
            failed[place] = -batch.result(done)
            if done % _RECORDS == 3:  # opened, not read
                batch.run(done + 1, 1)
            done = (place + 1) * _RECORDS
            done += batch.run(done, end - done)
        return [
            failed.get(place) or bytes(contents[start : start + batch.result(place * _RECORDS + 3)])
            for place, start in zip(range(len(names)), self._starts, strict=False)
        ]

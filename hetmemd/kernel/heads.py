"""The beginnings of many small files, such as those of /proc, with one table of system calls for all of them.

For a process with one thread (`kernel.batch`). Half of what reading a small file costs is the interpreter.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from hetmemd.kernel.batch import FILE, RESULT, WORDS, Batch

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
        self._batch = batch = Batch(len(sizes) * FILE)
        self._readings = [
            batch.read_file(name + place * _NAME, content + start, size)
            for place, (start, size) in enumerate(zip(self._starts, sizes, strict=True))
        ]
        self._directory = -1
        # By the number of names, what fills in all of them, each with zeros behind it.
        self._fills = [struct.Struct(f"{_NAME}s" * count) for count in range(len(sizes) + 1)]
        self._places = [
            (start, reading.read * WORDS + RESULT) for start, reading in zip(self._starts, self._readings, strict=True)
        ]

    def read(self, directory: int, names: Sequence[bytes]) -> list[bytes | int]:
        """Of each file its first bytes, with one read, or the errno for which they are not to be had.

        `names` are below an open `directory`, at most `capacity` of them, each shorter than 64 bytes.
        """
        words = self._batch.words
        if directory != self._directory:
            for reading in self._readings:
                words[reading.opened * WORDS + 1] = directory
            self._directory = directory
        if max(map(len, names), default=0) >= _NAME:
            raise ValueError(names)
        self._fills[len(names)].pack_into(self._names, 0, *names)
        batch, contents = self._batch, self._contents
        end = self._readings[len(names) - 1].end if names else 0
        done = batch.run(0, end)
        if done == end:
            return [bytes(contents[start : start + words[at]]) for start, at in self._places[: len(names)]]
        failed: dict[int, int] = {}
        while done < end:
            place = done // FILE
            reading = self._readings[place]
            failed[place] = -batch.result(done)
            if done == reading.read:
                batch.close_unread(reading)
            done = reading.end + batch.run(reading.end, end - reading.end)
        return [
            failed.get(place) or bytes(contents[start : start + batch.result(reading.read)])
            for place, start, reading in zip(range(len(names)), self._starts, self._readings, strict=False)
        ]

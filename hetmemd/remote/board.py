"""Memory that the daemon and the tracer share: results as they come, which thread is being acted on, and what else
either has to know of the other.

Results could go through the socket one by one, but each would wake the daemon, which then competes for a processor
with the tracer while that holds a thread. What stands here survives the tracer.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from hetmemd.remote import wire
from hetmemd.remote.result import ThreadResult

_SIZE = 1 << 20
"""Far more than the results of one request take; only pages that are used exist."""
_HEADER = struct.Struct("<qqq")  # acting, steps, used
_OTHERS_AT = _HEADER.size
_OVERDUE_AT = _OTHERS_AT + 1
_ROWS_AT = _OTHERS_AT + 8


class Board:
    def __init__(self, descriptor: int) -> None:
        """`descriptor` is a memory file from `create`; it may be closed afterwards."""
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._acting, self._steps, self._used = 0, 0, 0
        self._packer = wire.Packer()

    @staticmethod
    def create() -> int:
        """A memory file of the right size, to be closed by the caller."""
        descriptor = os.memfd_create("hetmemd-tracer", os.MFD_CLOEXEC)
        os.truncate(descriptor, _SIZE)
        return descriptor

    def close(self) -> None:
        self._memory.close()

    def clear(self) -> None:
        """Before each request, on the daemon's side and then on the tracer's."""
        self._acting, self._used = 0, 0
        self.say_overdue(False)
        self._tell()

    def _tell(self) -> None:
        _HEADER.pack_into(self._memory, 0, self._acting, self._steps, self._used)

    def act_on(self, tid: int) -> None:
        """This thread is about to be acted on."""
        self._acting = tid
        self._steps += 1
        self._tell()

    def say_others_wait(self, others: bool) -> None:
        """On the daemon's side: whether somebody else waits for the tracer."""
        self._memory[_OTHERS_AT] = others

    def others_wait(self) -> bool:
        return bool(self._memory[_OTHERS_AT])

    def say_overdue(self, overdue: bool) -> None:
        """On the tracer's side: whether the thread was sent to its call and does not come to it."""
        self._memory[_OVERDUE_AT] = overdue

    def is_overdue(self) -> bool:
        """As said last: what a killed tracer said, too."""
        return bool(self._memory[_OVERDUE_AT])

    def add(self, result: ThreadResult) -> None:
        """The thread is finished."""
        row = self._packer.pack(result) + b"\n"
        start = _ROWS_AT + self._used
        # The row first: it counts from when the header says so, whenever the tracer is killed.
        self._memory[start : start + len(row)] = row
        self._used += len(row)
        self._acting = 0
        self._steps += 1
        self._tell()

    def read(self) -> tuple[Sequence[ThreadResult], int | None]:
        """Results so far, and the thread that is being acted on."""
        acting, _, used = _HEADER.unpack_from(self._memory, 0)
        rows = self._memory[_ROWS_AT : _ROWS_AT + used].splitlines()
        return [wire.unpack_result(row) for row in rows], acting or None

    def steps(self) -> int:
        """Changes as long as the tracer gets on."""
        steps: int = _HEADER.unpack_from(self._memory, 0)[1]
        return steps

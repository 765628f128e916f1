"""New mappings of memory, where somebody wants to know of them: perf events on all CPUs.

Wanted only while a policy about classes of memory is in force: at other times nothing is recorded, and nothing costs
anything. Where more is mapped than can be followed at 2 % of one core, nothing is recorded for a while: the sizes in
/proc/PID/statm are looked at in any case.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Collection
from typing import ClassVar

from hetmemd.kernel.perf import Mappings, online
from hetmemd.kernel.root import Root
from hetmemd.watch.hint import RegionsHint
from hetmemd.watch.source import Deliver, Source

PACE = 0.05
"""Seconds between two readings, at least. The kernel could wake us instead, at the expense of those that map."""
COST = 50
"""A reading that took so long is followed by a pause of that many times as long."""
FIRST_REST, LAST_REST = 1.0, 60.0
"""Seconds without records after some were lost; doubled each time, until none are lost for the longest."""

ASLEEP = "asleep: no policy in force is about classes of memory"


class MappingsSource(Source):
    name: ClassVar[str] = "perf-mmap"

    def __init__(
        self,
        root: Root,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        *,
        opener: Callable[[Root], Mappings] = Mappings,
    ) -> None:
        super().__init__(deliver)
        self._root = root
        self._loop = loop
        self._opener = opener
        self._mappings: Mappings | None = None
        self._pids: Collection[int] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._rest = 0.0
        self._woke = self._compared = 0.0

    def start(self) -> None:
        """See whether it can be opened. Returns with the source up, asleep, or down with a note."""
        if mappings := self._opened():
            mappings.close()
            self.up, self.note = True, ASLEEP

    def want(self, pids: Collection[int]) -> None:
        """What processes hints are wanted of. Cheap where some are, as before, or none. What could not be opened is not
        tried again."""
        self._pids = pids
        if not self.up or bool(pids) == (self._timer is not None):
            return
        if pids:
            self._rest = 0.0
            self._follow()
        else:
            self._end()
            self.note = ASLEEP
            self.changed()

    def _opened(self) -> Mappings | None:
        try:
            return self._opener(self._root)
        except (OSError, ValueError) as error:
            self._end()
            self.fail(_why_not(error))
            return None

    def _follow(self) -> None:
        self._mappings = self._opened()
        if self._mappings:
            self.note = ""
            self._woke = self._compared = self._loop.time()
            self._later(PACE, self._take)
        self.changed()

    def _take(self) -> None:
        assert self._mappings
        # Of the processor: while somebody else has it, nothing is taken from anybody.
        began = time.thread_time()
        mapped, count, lost = self._mappings.take()
        took = time.thread_time() - began
        self.events += count
        if lost:
            self._sleep()
        elif self._has_other_processors():
            self._mappings.close()
            self._follow()
        else:
            self._later(max(PACE, COST * took), self._take)
        self.tell([RegionsHint(pid, at / 1e9) for pid, at in mapped.items() if pid in self._pids])

    def _has_other_processors(self) -> bool:
        """Looked at now and then: each look reads a file."""
        assert self._mappings
        now = self._loop.time()
        if now - self._compared < LAST_REST:
            return False
        self._compared = now
        return self._mappings.cpus != online(self._root)

    def _sleep(self) -> None:
        """It is no matter for a scan: all that is wanted is looked at soon in any case."""
        assert self._mappings
        # What was lost on a processor is told with its next record: not closed, it would be told when this is over.
        self._mappings.close()
        self._mappings = None
        self.losses += 1
        if self._loop.time() - self._woke > LAST_REST:
            self._rest = 0.0
        self._rest = min(max(FIRST_REST, 2 * self._rest), LAST_REST)
        self.note = f"more is mapped than can be followed: not followed for {self._rest:.0f} s"
        self._later(self._rest, self._follow)
        self.changed()

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, what)

    def _end(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._mappings:
            self._mappings.close()
            self._mappings = None

    def close(self) -> None:
        self._end()
        self.fail("closed")


def _why_not(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return "not allowed: needs CAP_PERFMON"
    if isinstance(error, OSError) and error.errno:
        return f"perf events cannot be had: {os.strerror(error.errno).lower()}"
    return f"perf events cannot be had: {error}"

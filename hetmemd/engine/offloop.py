"""Blocking reads and moves in threads, with a limit on how long anybody waits for them.

numa_maps and move_pages(2) take the target's mmap lock. A target can hold that for long (a page fault on a dead
network filesystem, the unmapping of a terabyte), and no signal frees a thread that waits for it. So the loop waits for
a bounded time, gives the process up for now, and comes back to it when the thread has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class StuckError(Exception):
    """The call did not come back in time, or an earlier one for the same key has not yet."""


class OffLoop:
    def __init__(self, name: str, threads: int, seconds: float) -> None:
        """At most `threads` calls at once, those that are stuck among them; `seconds` is what anybody waits."""
        self._pool = ThreadPoolExecutor(threads, name)
        self._seconds = seconds
        self._stuck: dict[Hashable, Future[object]] = {}

    async def call(self, key: Hashable, work: Callable[[], T]) -> T:
        """The call's result or its exception. `StuckError` where it takes too long; it goes on in its thread."""
        earlier = self._stuck.get(key)
        if earlier is not None:
            if not earlier.done():
                raise StuckError(key)
            del self._stuck[key]
        future = self._pool.submit(work)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            if future.cancel():
                # It never began: every thread is stuck with somebody else.
                raise StuckError(key) from None
            self._stuck[key] = future  # type: ignore[assignment]
            raise StuckError(key) from None

    @property
    def stuck(self) -> int:
        """Calls that have not come back yet."""
        return sum(not future.done() for future in self._stuck.values())

    def close(self) -> None:
        """Lets go of the threads without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)

"""Blocking reads and moves in threads, with a limit on how long anybody waits for them.

numa_maps and move_pages(2) take the target's mmap lock. A target can hold that for long (a page fault on a dead
network filesystem, the unmapping of a terabyte), and no signal frees a thread that waits for it. So the loop waits for
a bounded time, gives the process up for now, and comes back to it when the thread has. A call that walks all of a large
process's memory takes long without being stuck: the larger it is, the longer it is waited for (`patience`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hetmemd.kernel.root import Root

T = TypeVar("T")

LEAST = 10.0
PER_GIB = 0.2
"""Seconds. numa_maps takes 0.01 for 1 GiB of small pages on a machine at leisure, and many times that on a busy one."""


def patience(root: Root, pid: int) -> float:
    """Seconds after which a call that walks the memory of a process is stuck."""
    try:
        # Counters: no lock is taken for it. proc_pid_statm(5)
        resident = int(root.read_bytes(f"/proc/{pid}/statm").split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        resident = 0
    return LEAST + PER_GIB * resident / (1 << 30)


def priced(work: Callable[[], T]) -> Callable[[], tuple[T, float]]:
    """The same, with the processor's seconds that it took: what it waits for, a processor among it, is not its cost."""

    def run() -> tuple[T, float]:
        before = time.thread_time()
        result = work()
        return result, time.thread_time() - before

    return run


class StuckError(Exception):
    """The call did not come back in time, or an earlier one for the same key has not yet."""


class OffLoop:
    def __init__(self, name: str, threads: int, seconds: float) -> None:
        """At most `threads` calls at once, those that are stuck among them; `seconds` is what a call may take.

        Waiting for one's turn does not count: a full machine is no stuck process.
        """
        self._pool = ThreadPoolExecutor(threads, name)
        self._turns = asyncio.Semaphore(threads)
        self._seconds = seconds
        self._stuck: dict[Hashable, Future[object]] = {}

    async def call(self, key: Hashable, work: Callable[[], T], seconds: float | None = None) -> T:
        """The call's result or its exception. `StuckError` where it takes longer than `seconds`, or what calls may
        take; it goes on in its thread."""
        self._check(key)
        await self._turns.acquire()
        loop = asyncio.get_running_loop()
        try:
            self._check(key)
            future = self._pool.submit(work)
        except BaseException:
            self._turns.release()
            raise
        # A thread that is stuck keeps its turn until it comes back.
        future.add_done_callback(lambda _: self._come_back(loop))
        awaited = asyncio.wrap_future(future)
        # What comes of a call whose caller was cancelled, or has given up, is nobody's business.
        awaited.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._seconds if seconds is None else seconds):
                return await asyncio.shield(awaited)
        except TimeoutError:
            if future.done():
                return future.result()
            self._stuck[key] = future  # type: ignore[assignment]
            raise StuckError(key) from None

    def _check(self, key: Hashable) -> None:
        earlier = self._stuck.get(key)
        if earlier is not None:
            if not earlier.done():
                raise StuckError(key)
            del self._stuck[key]

    def _come_back(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._turns.release)

    @property
    def stuck(self) -> int:
        """Calls that have not come back yet."""
        return sum(not future.done() for future in self._stuck.values())

    def close(self) -> None:
        """Lets go of the threads without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)

"""Calls that may hang, and what they cost the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest

from hetmemd.engine.offloop import OffLoop, StuckError


@pytest.fixture
def lock() -> Generator[threading.Event, None, None]:
    """What a stuck call waits for; let go at the end."""
    event = threading.Event()
    yield event
    event.set()


def test_results_and_exceptions_come_back() -> None:
    async def run() -> None:
        threads = OffLoop("t", 2, 30.0)
        assert await threads.call("a", lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await threads.call("a", lambda: 1 // 0)
        assert threads.stuck == 0
        threads.close()

    asyncio.run(run())


def test_a_stuck_call_costs_its_own_process_and_nobody_else(lock: threading.Event) -> None:
    async def run() -> None:
        threads = OffLoop("t", 2, 0.05)
        with pytest.raises(StuckError):
            await threads.call("stuck", lock.wait)
        assert threads.stuck == 1
        with pytest.raises(StuckError):
            await threads.call("stuck", lambda: 1)
        assert await threads.call("other", lambda: 2) == 2
        lock.set()
        while threads.stuck:
            await asyncio.sleep(0.001)
        assert await threads.call("stuck", lambda: 3) == 3
        threads.close()

    asyncio.run(run())


def test_waiting_for_a_turn_is_not_being_stuck(lock: threading.Event) -> None:
    async def run() -> None:
        threads = OffLoop("t", 1, 0.05)
        with pytest.raises(StuckError):
            await threads.call("stuck", lock.wait)
        waiting = [asyncio.create_task(threads.call(number, lambda: 5)) for number in range(20)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        lock.set()
        assert await asyncio.gather(*waiting) == [5] * 20
        assert threads.stuck == 0
        threads.close()

    asyncio.run(run())


def test_an_exception_that_says_timeout_is_the_calls_own() -> None:
    def work() -> None:
        raise TimeoutError("of its own")

    async def run() -> None:
        threads = OffLoop("t", 1, 30.0)
        with pytest.raises(TimeoutError, match="of its own"):
            await threads.call("a", work)
        threads.close()

    asyncio.run(run())

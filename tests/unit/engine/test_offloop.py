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


def test_when_every_thread_is_stuck_nothing_is_queued_behind_them(lock: threading.Event) -> None:
    async def run() -> None:
        threads = OffLoop("t", 1, 0.05)
        began = []
        with pytest.raises(StuckError):
            await threads.call("stuck", lock.wait)
        with pytest.raises(StuckError):
            await threads.call("other", lambda: began.append(1))
        lock.set()
        while threads.stuck:
            await asyncio.sleep(0.001)
        assert await threads.call("third", lambda: 3) == 3
        assert began == []
        threads.close()

    asyncio.run(run())

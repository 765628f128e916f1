"""Calls that may hang, and what they cost the others."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.engine.offloop import OffLoop, StuckError, patience
from hetmemd.kernel.root import Root


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


def test_what_fails_after_its_caller_was_cancelled_is_not_complained_of(lock: threading.Event) -> None:
    complaints: list[dict[str, object]] = []

    def fail() -> None:
        lock.wait()
        raise ProcessLookupError

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        threads = OffLoop("t", 1, 30.0)
        caller = asyncio.create_task(threads.call("a", fail))
        await asyncio.sleep(0.01)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        lock.set()
        assert await threads.call("b", lambda: 1) == 1, "after that one, in the only thread"
        await asyncio.sleep(0.01)
        gc.collect()
        threads.close()

    asyncio.run(run())
    assert not complaints


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


def test_a_call_may_take_as_long_as_it_says(lock: threading.Event) -> None:
    async def run() -> None:
        threads = OffLoop("t", 2, 0.05)
        slow = asyncio.create_task(threads.call("large", lock.wait, 60.0))
        with pytest.raises(StuckError):
            await threads.call("stuck", lock.wait)
        assert not slow.done()
        lock.set()
        assert await slow is True
        threads.close()

    asyncio.run(run())


def test_a_large_process_is_waited_for_longer(tmp_path: Path) -> None:
    """numa_maps of a terabyte of small pages takes more than ten seconds, and is no lock that is held."""
    for pid, gibibytes in ((1, 0), (2, 1), (3, 1024), (4, 16 << 10)):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/statm").write_text(f"9 {gibibytes << 18} 1 1 0 1 0\n")
    waits = [patience(Root(tmp_path), pid) for pid in (1, 2, 3, 4, 5)]
    assert waits[0] == waits[4] == 10.0
    for pid, gibibytes in ((2, 1), (3, 1024), (4, 16 << 10)):
        assert waits[pid - 1] >= 10.0 + 10 * 0.01 * gibibytes

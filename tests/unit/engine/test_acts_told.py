"""What the brakes are told of an act: every stop, whatever came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from hetmemd.engine.binding import Binder
from hetmemd.engine.braking import Permit
from hetmemd.engine.decide import Verb
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.engine.record import Record
from hetmemd.engine.steering import Steering
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote.regions import RegionsResult
from hetmemd.remote.result import Outcome, ThreadResult

BIND = Mempolicy(Mode.BIND, frozenset({1}))
PROCESS = ProcessId(7, 1007)


class Told:
    """Brakes that grant what they are told to, and the effect that gives these results."""

    def __init__(self, granted: int, threads: list[ThreadResult], regions: RegionsResult | None = None) -> None:
        self.granted, self.threads, self.regions = granted, threads, regions
        self.lock = asyncio.Lock()
        self.done_with: list[tuple[int, int, bool]] = []
        self.acted_on: list[int] = []

    def turn(self, process: ProcessId) -> AbstractAsyncContextManager[None]:
        return self.lock

    def permit(self, process: ProcessId, cgroup: str, policy: str, count: int) -> Permit:
        assert self.lock.locked()
        return Permit(min(self.granted, count), Outcome.DEFERRED, "stop-rate")

    def done(self, process: ProcessId, policy: str, granted: int, stops: int, ended: bool = False) -> None:
        assert self.lock.locked()
        self.done_with.append((granted, stops, ended))

    async def apply(self, process: ProcessId, policy: Mempolicy, tids: list[int], expected: object) -> Any:
        self.acted_on = tids
        return self.threads

    async def bind(self, process: ProcessId, requests: object) -> Any:
        return self.regions


def run(tmp_path: Path, act: Callable[[Root, Ledger], Coroutine[Any, Any, Any]]) -> Any:
    root = Root(tmp_path)
    root.path(BOOT_ID).parent.mkdir(parents=True)
    root.path(BOOT_ID).write_text("one\n")

    async def acted() -> Any:
        ledger = Ledger(root)
        try:
            return await act(root, ledger)
        finally:
            ledger.close()

    return asyncio.run(acted())


def steered(tmp_path: Path, granted: int, *threads: ThreadResult) -> tuple[Told, list[ThreadResult]]:
    async def act(root: Root, ledger: Ledger) -> Any:
        told = Told(granted, list(threads))
        unused: Any = lambda *_: None  # noqa: E731
        steering = Steering(root, ledger, told, unused, unused, unused, unused, told, unused)  # type: ignore[arg-type]
        try:
            return told, await steering._permitted(Record(PROCESS, "x", "/a", None), BIND, "key", Verb.APPLY, [7, 8, 9])
        finally:
            steering.close()

    found: tuple[Told, list[ThreadResult]] = run(tmp_path, act)
    return found


def bound(tmp_path: Path, granted: int, result: RegionsResult) -> tuple[Told, RegionsResult]:
    async def act(root: Root, ledger: Ledger) -> Any:
        told = Told(granted, [], result)
        unused: Any = lambda *_: None  # noqa: E731
        binder = Binder(root, ledger, told, unused, unused, unused, told, unused, unused)  # type: ignore[arg-type]
        try:
            return told, await binder._bind(Record(PROCESS, "x", "/a", None), "key", [])
        finally:
            binder.close()

    found: tuple[Told, RegionsResult] = run(tmp_path, act)
    return found


def test_stops_count_whatever_came_of_them(tmp_path: Path) -> None:
    told, results = steered(
        tmp_path,
        2,
        ThreadResult(7, Outcome.DEFERRED, "signals", stops=50),
        ThreadResult(8, Outcome.APPLIED, "", pause_ns=1000, stops=1),
    )
    assert told.acted_on == [7, 8]
    assert told.done_with == [(2, 51, False)]
    assert [result.reason for result in results] == ["signals", "", "stop-rate"]


def test_a_thread_that_ended_while_it_was_held_is_told(tmp_path: Path) -> None:
    told, _ = steered(tmp_path, 1, ThreadResult(7, Outcome.GONE, "exited", stops=1))
    assert told.done_with == [(1, 1, True)]


def test_one_that_ended_before_was_not_touched(tmp_path: Path) -> None:
    told, _ = steered(tmp_path, 1, ThreadResult(7, Outcome.GONE, "exited"))
    assert told.done_with == [(1, 0, False)]


def test_binding_tells_all_of_its_stops(tmp_path: Path) -> None:
    told, result = bound(tmp_path, 1, RegionsResult(Outcome.APPLIED, "", 0, (), (1000, 1000), stops=12))
    assert (told.done_with, result.outcome) == ([(1, 12, False)], Outcome.APPLIED)


def test_binding_tells_that_its_thread_ended(tmp_path: Path) -> None:
    told, _ = bound(tmp_path, 1, RegionsResult(Outcome.GONE, "exited", 0, (), (), stops=1))
    assert told.done_with == [(1, 1, True)]


def test_binding_does_nothing_without_a_stop_granted(tmp_path: Path) -> None:
    told, result = bound(tmp_path, 0, RegionsResult(Outcome.APPLIED, "", 0, (), ()))
    assert (told.done_with, result.outcome, result.reason) == ([], Outcome.DEFERRED, "stop-rate")

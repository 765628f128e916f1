"""A look that fails: what is said and counted of its process, when it is looked at again, and that others still are."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hetmemd.engine import balancing
from hetmemd.engine.engine import Engine
from hetmemd.engine.offloop import StuckError
from hetmemd.engine.record import Record
from hetmemd.kernel.root import Root
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

FAILS, WELL = 7, 8


class Machine:
    """Two processes in one cgroup with a policy, which both have; looks at the one may come to fail."""

    def __init__(self, top: Path) -> None:
        for pid in (FAILS, WELL):
            folder = top / f"proc/{pid}"
            folder.mkdir(parents=True)
            (folder / "stat").write_text(f"{pid} (db) S {' '.join(['0'] * 18)} 1007 4096 1\n")
            (folder / "cgroup").write_text("0::/a\n")
        self.failure: Exception | None = None
        self.tally = Tally()
        self.looks = 0
        self.changes = False
        """A look gives a policy."""
        ledger = SimpleNamespace(marks=lambda process: {}, regions=lambda process: {})
        self.engine = Engine(
            Root(top),
            cast(Any, SimpleNamespace(tree=SimpleNamespace(by_path={"/a": None}), placement=str, reached=bool)),
            cast(Any, ledger),
            cast(Any, self),
            cast(Any, SimpleNamespace(look=self._bind)),
            cast(Any, SimpleNamespace(undone=lambda process, cgroup: False)),
            cast(Any, SimpleNamespace(notice=lambda record: None)),
            {},
            self.tally,
            lambda: (),
            asyncio.Event(),
        )

    async def look(self, record: Record) -> bool:
        """In place of `Steering`."""
        self.looks += record.process.pid == FAILS
        if self.failure and record.process.pid == FAILS:
            raise self.failure
        record.outcome, record.reason = Outcome.APPLIED, ""
        record.outcomes, record.reasons = frozenset({Outcome.APPLIED}), frozenset()
        return self.changes

    async def _bind(self, record: Record) -> bool:
        return False

    def counted(self, outcome: Outcome, reason: str) -> int:
        return self.tally.totals().not_applied_by_outcome_reason.get((outcome.value, reason), 0)


FAILURES = [
    (StuckError(FAILS), Outcome.DEFERRED, "mmap-lock"),
    (ZeroDivisionError("a fault of our own"), Outcome.REFUSED, "internal-error"),
    (PermissionError(errno.EACCES, "no right", "/proc/7/numa_maps"), Outcome.REFUSED, "unreadable"),
]


def served(top: Path, failure: Exception, test: Callable[[Machine, Record], Any]) -> None:
    """After a look that went well, and one that failed."""

    async def run() -> None:
        machine = Machine(top)
        record = await machine.engine.look_at(FAILS)
        assert record is not None
        assert balancing._may_move(record)
        machine.failure = failure
        assert await machine.engine.look_at(FAILS) is record
        await test(machine, record)
        for timer in machine.engine._retries.values():
            timer.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("failure", "outcome", "reason"), FAILURES, ids=[reason for _, _, reason in FAILURES])
def test_it_is_said_and_counted_and_concerns_its_process_alone(
    tmp_path: Path, failure: Exception, outcome: Outcome, reason: str
) -> None:
    async def test(machine: Machine, record: Record) -> None:
        assert (record.outcome, record.reason) == (outcome, reason)
        assert machine.counted(outcome, reason) == 1
        well = await machine.engine.look_at(WELL)
        assert well is not None
        assert (well.outcome, well.reason) == (Outcome.APPLIED, "")
        machine.failure = None
        await machine.engine.look_at(FAILS)
        assert (record.outcome, record.reason) == (Outcome.APPLIED, "")
        assert balancing._may_move(record)

    served(tmp_path, failure, test)


@pytest.mark.parametrize(("failure", "outcome", "reason"), FAILURES, ids=[reason for _, _, reason in FAILURES])
def test_pages_stay_while_nobody_knows_what_may_be_done(
    tmp_path: Path, failure: Exception, outcome: Outcome, reason: str
) -> None:
    """Not even whether the process is on the deny-list."""

    async def test(machine: Machine, record: Record) -> None:
        assert not balancing._may_move(record)
        assert record.outcomes == {outcome}
        assert record.reasons == {reason}

    served(tmp_path, failure, test)


def test_what_is_stuck_is_looked_at_again_by_itself(tmp_path: Path) -> None:
    async def test(machine: Machine, record: Record) -> None:
        looks = machine.looks
        async with asyncio.timeout(60.0):
            while machine.looks < looks + 2:
                await asyncio.sleep(0.01)

    served(tmp_path, StuckError(FAILS), test)


def test_a_hint_that_comes_amid_a_look_is_timed(tmp_path: Path) -> None:
    """A scan may come to a process that was moved before the hint of it is heard."""

    async def run() -> None:
        machine = Machine(tmp_path)
        engine = machine.engine
        engine._look(FAILS)
        await asyncio.sleep(0)
        engine._look(FAILS, engine._now())
        engine._look(FAILS)
        machine.changes = True
        await engine.look_at(FAILS)
        assert {count for _, count in machine.tally.totals().cgroup_moves} == {1}

    asyncio.run(run())

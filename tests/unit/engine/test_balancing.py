"""When pages are moved and when not, as far as it takes no pages to tell."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import cast

import pytest

from hetmemd.engine import balancing, measuring, passes
from hetmemd.engine.balancing import Balancer
from hetmemd.engine.record import Record
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine.topology import Machine
from hetmemd.memory.budget import Budgets
from hetmemd.memory.measure import Measurement
from hetmemd.memory.rebalance import ProcessPass, StepResult
from hetmemd.memory.targets import Share, Span
from hetmemd.policy.effective import Effective, Handling, Placement
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

MIB = 1 << 20


def record(*outcomes: tuple[Outcome, str]) -> Record:
    made = Record(ProcessId(4711, 1), "x", "/a", None)
    made.outcomes = frozenset(outcome for outcome, _ in outcomes)
    made.reasons = frozenset(reason for _, reason in outcomes if reason)
    return made


@pytest.mark.parametrize(
    ("outcomes", "moves"),
    [
        ([(Outcome.APPLIED, "")], True),
        ([(Outcome.APPLIED, ""), (Outcome.UNSTEERABLE, "io-worker")], True),
        ([(Outcome.REFUSED, "yama")], True),
        ([(Outcome.REFUSED, "headroom")], False),
        ([(Outcome.APPLIED, ""), (Outcome.REFUSED, "yama"), (Outcome.REFUSED, "readback")], False),
        ([(Outcome.APPLIED, ""), (Outcome.FOREIGN, "own-bind")], False),
        ([(Outcome.UNSTEERABLE, "io-worker"), (Outcome.FOREIGN, "own-bind")], False),
        ([(Outcome.APPLIED, ""), (Outcome.DEFERRED, "frozen")], False),
        ([], False),
    ],
)
def test_T4_L5_pages_follow_only_where_every_thread_agrees(outcomes: list[tuple[Outcome, str]], moves: bool) -> None:
    assert balancing._may_move(record(*outcomes)) is moves


NEVER_TOUCHED = ["denied-executable", "denied-user", "crashed"]


@pytest.mark.parametrize("reason", NEVER_TOUCHED)
def test_pages_of_who_is_never_touched_stay(reason: str) -> None:
    """Whether its threads have their policy from before, or cannot be called for another reason as well."""
    never = (Outcome.REFUSED, reason)
    assert not balancing._may_move(record(never))
    assert not balancing._may_move(record((Outcome.APPLIED, ""), never))
    assert not balancing._may_move(record((Outcome.REFUSED, "yama"), never))
    assert not balancing._may_move(record((Outcome.UNSTEERABLE, "vdso"), never))


@pytest.mark.parametrize("reason", ["policy-held", "observe", "trial", "suspect", "stop-rate"])
def test_pages_of_who_waits_for_a_policy_that_is_braked_stay(reason: str) -> None:
    waits = (Outcome.REFUSED if reason == "policy-held" else Outcome.DEFERRED, reason)
    assert not balancing._may_move(record(waits))
    assert not balancing._may_move(record((Outcome.APPLIED, ""), waits))


def in_a_loop(tmp_path: Path, work: Callable[[Balancer], None]) -> None:
    async def run() -> None:
        balancer = Balancer(
            Root(tmp_path),
            {},
            lambda path: None,
            lambda: Machine({}, None, None),
            Budgets(),
            Tally(),
            lambda: False,
            asyncio.Event(),
        )
        work(balancer)
        balancer.close()

    asyncio.run(run())


def migrated(tmp_path: Path, pages: int) -> None:
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/vmstat").write_text(f"nr_free_pages 1\npgmigrate_success {pages}\n")


def test_L6_memory_that_was_freed_and_taken_anew_was_moved_back_by_nobody(tmp_path: Path) -> None:
    """As much as before, and all of it on the wrong node: but nothing was moved on the whole machine."""

    def work(balancer: Balancer) -> None:
        churning = record((Outcome.APPLIED, ""))
        churning.bytes_by_node, churning.migrated = {0: 100 * MIB}, 5000
        for _ in range(8):
            churning.left_misplaced, churning.last_total, churning.last_moved = 0.0, 100 * MIB, 25 * MIB
            assert not balancer._holds(churning, 0.25)
        assert churning.went_back == 0

    migrated(tmp_path, 5000)
    in_a_loop(tmp_path, work)


def test_L6_what_others_move_back_each_time_is_held_longer_and_longer(tmp_path: Path) -> None:
    def work(balancer: Balancer) -> None:
        moved = record((Outcome.APPLIED, ""))
        moved.bytes_by_node = {0: 100 * MIB}
        waits = []
        for _ in range(8):
            # The pass left nothing misplaced and moved a quarter, and all of that lies wrong again.
            moved.left_misplaced, moved.last_total, moved.last_moved = 0.0, 100 * MIB, 25 * MIB
            moved.measure_at = 0.0
            waits.append(balancer._holds(moved, 0.25))
        assert waits[: balancing.STRIKES - 1] == [False] * (balancing.STRIKES - 1)
        assert waits.count(True) >= len(waits) // 2
        assert "L6" in moved.acted
        assert moved.measure_at > 0

    migrated(tmp_path, 1 << 30)
    in_a_loop(tmp_path, work)


def test_L6_pages_that_go_back_slowly_are_noticed_too(tmp_path: Path) -> None:
    """Right after each pass all is in place, and only the look after that finds it undone."""
    placement = Placement(Mempolicy(Mode.INTERLEAVE, frozenset({0, 1})))
    effective = Effective("/a", "active", placement, Handling(), None, None, ())
    passes = 0

    class Told(Balancer):
        async def _measure(
            self, record: Record, placement: Placement, effective: Effective
        ) -> tuple[Share, tuple[Span, ...]] | None:
            record.distance = distances.pop(0)
            return (lambda region: None), ()

        def _begin(
            self, record: Record, placement: Placement, effective: Effective, share: Share, spans: tuple[Span, ...]
        ) -> None:
            nonlocal passes
            passes += 1
            record.left_misplaced, record.last_total, record.last_moved = 0.0, 100 * MIB, 50 * MIB

    async def run() -> None:
        balancer = Told(
            Root(tmp_path),
            {},
            lambda path: effective,
            lambda: Machine({}, None, None),
            Budgets(),
            Tally(),
            lambda: False,
            asyncio.Event(),
        )
        undone = record((Outcome.APPLIED, ""))
        undone.placement, undone.bytes_by_node = placement, {0: 100 * MIB}
        while distances:
            await balancer._look(undone)
        assert "L6" in undone.acted
        balancer.close()

    migrated(tmp_path, 1 << 30)
    distances = [0.5, 0.0] * 8
    asyncio.run(run())
    assert passes < 8


def test_L6_memory_that_is_new_was_moved_back_by_nobody(tmp_path: Path) -> None:
    def work(balancer: Balancer) -> None:
        grown = record((Outcome.APPLIED, ""))
        grown.bytes_by_node = {0: 200 * MIB}
        for _ in range(8):
            grown.left_misplaced, grown.last_total, grown.last_moved = 0.0, 100 * MIB, 25 * MIB
            assert not balancer._holds(grown, 0.25)
        assert grown.went_back == 0

    migrated(tmp_path, 1 << 30)
    in_a_loop(tmp_path, work)


class Moving(Balancer):
    """All pages of its one process, this one, lie wrong however many steps its pass takes."""

    def __init__(self, existing: str = "rebalance") -> None:
        self.record = Record(
            procfs.identify(Root(), os.getpid()), "x", "/a", Placement(Mempolicy(Mode.BIND, frozenset({1})))
        )
        self.record.outcomes = frozenset({Outcome.APPLIED})
        # So large that no pass is over for its age.
        self.record.bytes_by_node = {0: 1 << 40}
        handling = Handling(existing=existing)
        effective = Effective("/a", "active", self.record.placement, handling, None, None, ())
        super().__init__(
            Root(),
            {self.record.process.pid: self.record},
            lambda path: effective,
            lambda: Machine({}, None, None),
            Budgets(),
            Tally(),
            lambda: self.observes,
            asyncio.Event(),
        )
        self.interval = 0.01
        self.observes = False
        self.measured = self.steps = 0
        self.distance = 1.0
        self.comes_to_an_end = False

    async def _measure(
        self, record: Record, placement: Placement, effective: Effective
    ) -> tuple[Share, tuple[Span, ...]] | None:
        self.measured += 1
        record.distance = self.distance
        return (lambda region: None), ()

    def _move(self, active: passes.Pass, allowed: int) -> StepResult | None:
        self.steps += 1
        return StepResult(bytes_moved=4096, seconds=0.001, done=self.comes_to_an_end)

    async def measures_and_moves_nothing(self) -> None:
        """From now on, but for a step that is under way."""
        measured = self.measured
        await until(lambda: self.measured > measured)
        steps = self.steps
        await until(lambda: self.measured > measured + 3)
        assert self.steps == steps


def test_nothing_is_begun_while_the_kill_switch_is_on() -> None:
    async def run() -> None:
        balancer = Moving()
        balancer.observes = True
        await balancer._look(balancer.record)
        assert (balancer.measured, balancer._passes) == (1, {})
        balancer.observes = False
        await balancer._look(balancer.record)
        assert list(balancer._passes) == [balancer.record.process.pid]
        balancer.close()

    asyncio.run(run())


def test_a_pass_that_is_under_way_stops_at_the_kill_switch() -> None:
    async def run() -> None:
        balancer = Moving()

        async def work() -> None:
            await until(lambda: balancer.steps >= 3)
            balancer.observes = True
            await balancer.measures_and_moves_nothing()
            balancer.observes = False
            steps = balancer.steps
            await until(lambda: balancer.steps > steps)

        await while_it_runs(balancer, work)

    asyncio.run(run())


def test_existing_once_is_until_it_is_right_once() -> None:
    """However many passes that takes: a process that has just executed a program has its memory still to fill."""

    async def run() -> None:
        balancer = Moving("once")
        balancer.comes_to_an_end = True

        async def passes_are_begun() -> int:
            steps = balancer.steps
            for _ in range(5):
                await balancer._look(balancer.record)
                for active in list(balancer._passes.values()):
                    await balancer._step(active)
            return balancer.steps - steps

        assert await passes_are_begun() == 5
        balancer.distance = 0.0
        assert await passes_are_begun() == 0
        balancer.distance = 1.0
        assert await passes_are_begun() == 0, "it was right once"
        balancer.record.renew()
        assert await passes_are_begun() == 5
        balancer.close()

    asyncio.run(run())


@pytest.mark.parametrize("found", [0.0, 0.5])
def test_existing_once_is_over_with_a_pass_that_brings_it_there(found: float) -> None:
    async def run() -> None:
        balancer = Moving("once")
        balancer.comes_to_an_end = True
        await balancer._look(balancer.record)
        (active,) = balancer._passes.values()
        balancer.distance = found
        await balancer._step(active)
        balancer.distance = 1.0
        await balancer._look(balancer.record)
        assert len(balancer._passes) == (found > 0)
        balancer.close()

    asyncio.run(run())


@pytest.mark.parametrize("reason", NEVER_TOUCHED)
def test_a_pass_that_is_under_way_stops_when_its_process_is_denied_or_held(reason: str) -> None:
    async def run() -> None:
        balancer = Moving()

        async def work() -> None:
            await until(lambda: balancer.steps >= 3)
            balancer.record.outcomes = frozenset({Outcome.APPLIED, Outcome.REFUSED})
            balancer.record.reasons = frozenset({reason})
            await balancer.measures_and_moves_nothing()

        await while_it_runs(balancer, work)

    asyncio.run(run())


class Slow(Balancer):
    """Looks and steps of processes named `large` take until `release` is set; all others are done at once."""

    def __init__(self, tmp_path: Path, records: dict[int, Record]) -> None:
        super().__init__(
            Root(tmp_path),
            records,
            lambda path: None,
            lambda: Machine({}, None, None),
            Budgets(),
            Tally(),
            lambda: False,
            asyncio.Event(),
        )
        self.release = asyncio.Event()
        self.looked: Counter[int] = Counter()
        self.stepped: Counter[int] = Counter()

    async def _look(self, record: Record) -> None:
        record.measure_at = asyncio.get_running_loop().time() + 0.01
        self.looked[record.process.pid] += 1
        if record.comm == "large":
            await self.release.wait()

    async def _step(self, active: passes.Pass) -> None:
        self.stepped[active.record.process.pid] += 1
        if active.record.comm == "large":
            await self.release.wait()
        active.due = asyncio.get_running_loop().time() + 0.01

    def begin(self, record: Record) -> None:
        # What is looked at of a pass here; its mover is not asked.
        mover = cast(ProcessPass, None)
        self._passes[record.process.pid] = passes.Pass(record, mover, (), "", 0.5, (), float("inf"))


def processes(names: list[str]) -> dict[int, Record]:
    placement = Placement(Mempolicy(Mode.INTERLEAVE, frozenset({0, 1})))
    return {pid: Record(ProcessId(pid, 1), name, "/a", placement) for pid, name in enumerate(names, 1)}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not what():
            await asyncio.sleep(0.005)


def while_it_runs(balancer: Balancer, work: Callable[[], Coroutine[None, None, None]]) -> Coroutine[None, None, None]:
    async def run() -> None:
        task = asyncio.create_task(balancer.run())
        await work()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        balancer.close()

    return run()


def test_a_large_process_is_measured_beside_the_others(tmp_path: Path) -> None:
    """Neither are the others measured later for it, nor their pages moved later; and it is measured once at a time."""

    async def run() -> None:
        records = processes(["large", "large", "small", "small"])
        balancer = Slow(tmp_path, records)
        balancer.begin(records[4])

        async def work() -> None:
            await until(lambda: balancer.looked[3] >= 5 and balancer.stepped[4] >= 5)
            assert (balancer.looked[1], balancer.looked[2]) == (1, 1)
            balancer.release.set()
            await until(lambda: balancer.looked[1] >= 3)

        await while_it_runs(balancer, work)

    asyncio.run(run())


def test_a_step_that_does_not_come_back_holds_nobody_up(tmp_path: Path) -> None:
    async def run() -> None:
        records = processes(["large", "small"])
        balancer = Slow(tmp_path, records)
        for record in records.values():
            balancer.begin(record)

        async def work() -> None:
            await until(lambda: balancer.stepped[2] >= 5)
            assert balancer.stepped[1] == 1
            balancer.release.set()
            await until(lambda: balancer.stepped[1] >= 3)

        await while_it_runs(balancer, work)

    asyncio.run(run())


def test_a_pass_that_ended_while_another_had_its_turn_is_not_stepped_again(tmp_path: Path) -> None:
    class Ending(Slow):
        """A large process's pass ends with the step that is released, amid the small one's second."""

        async def _step(self, active: passes.Pass) -> None:
            await super()._step(active)
            if active.record.comm == "large":
                self.ended = True
                self._passes.pop(active.record.process.pid)
            elif self.stepped[2] == 2:
                self.release.set()
                await until(lambda: self.ended)

        ended = False

    async def run() -> None:
        records = processes(["large", "small"])
        balancer = Ending(tmp_path, records)
        # The small one's first, so that the other is still in the round that it ends in.
        for record in reversed(records.values()):
            record.measure_at = float("inf")
            balancer.begin(record)

        async def work() -> None:
            await until(lambda: balancer.stepped[2] >= 4)
            assert balancer.ended
            assert balancer.stepped[1] == 1

        await while_it_runs(balancer, work)

    asyncio.run(run())


def test_only_some_are_measured_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        balancer = Slow(tmp_path, processes(["large"] * 20))

        async def work() -> None:
            await until(lambda: balancer.looked.total() >= balancing.BESIDE)
            await asyncio.sleep(0.05)
            assert balancer.looked.total() == balancing.BESIDE
            balancer.release.set()
            await until(lambda: len(balancer.looked) == 20)

        await while_it_runs(balancer, work)

    asyncio.run(run())


def test_two_steps_at_once_do_not_spend_the_same(tmp_path: Path) -> None:
    """What a step may move is paid before it, what it did not move given back after it."""

    class Blocked(Balancer):
        def _move(self, active: passes.Pass, allowed: int) -> StepResult | None:
            asked.append(allowed)
            gate.wait()
            return StepResult(bytes_moved=10 * MIB)

    async def run() -> None:
        now = 0.0
        budgets = Budgets(lambda: now)
        budgets.configure("shared", 1, 100 * MIB)
        balancer = Blocked(
            Root(tmp_path),
            {},
            lambda path: None,
            lambda: Machine({}, None, None),
            budgets,
            Tally(),
            lambda: False,
            asyncio.Event(),
        )
        mover = cast(ProcessPass, None)
        begun = [
            passes.Pass(each, mover, ("shared",), "", 0.5, (), float("inf")) for each in processes(["a", "b"]).values()
        ]
        tasks = [
            asyncio.create_task(balancer._paid(each, budgets.allowance(each.keys, 60 * MIB))) for each in begun[:1]
        ]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(balancer._paid(begun[1], budgets.allowance(begun[1].keys, 60 * MIB))))
        await until(lambda: len(asked) == 2)
        assert asked == [60 * MIB, 40 * MIB]
        assert budgets.allowance(["shared"], 1 << 40) == 0
        gate.set()
        await asyncio.gather(*tasks)
        assert budgets.allowance(["shared"], 1 << 40) == 80 * MIB
        balancer.close()

    asked: list[int] = []
    gate = threading.Event()
    asyncio.run(run())


def test_what_takes_long_to_measure_is_measured_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Long by the processor's time: a machine that is busy with something else makes a process no dearer."""
    waits = 0.0

    def figures(*_: object) -> tuple[Share, Measurement]:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        time.sleep(waits)
        return lambda _: None, Measurement({0: MIB}, {})

    monkeypatch.setattr(measuring, "figures", figures)

    async def run() -> None:
        records = processes(["large"])
        balancer = Slow(tmp_path, records)
        balancer.interval, balancer.measuring_share = 0.1, 0.002
        placement = records[1].placement
        assert placement
        effective = Effective("/a", "active", placement, Handling(), None, None, ())
        records[1].measure_at = 1.0
        begin = asyncio.get_running_loop().time()
        assert await balancer._measure(records[1], placement, effective)
        assert records[1].measure_at - begin >= 0.02 / 0.002
        nonlocal waits
        waits = 0.5
        begin = asyncio.get_running_loop().time()
        assert await balancer._measure(records[1], placement, effective)
        assert records[1].measure_at - begin < waits / 0.002
        balancer.interval, balancer.measuring_share = 600.0, 1.0
        begin = asyncio.get_running_loop().time()
        assert await balancer._measure(records[1], placement, effective)
        assert records[1].measure_at - begin >= 600.0
        balancer.close()

    asyncio.run(run())


def test_a_pass_comes_to_the_end_of_a_terabyte() -> None:
    """Looking at 1 GiB of small pages takes about 16 x 4 ms, and for nine times as long the process is left alone."""
    for gibibytes in (1, 100, 1024, 16 << 10):
        assert passes.longest_pass(gibibytes << 30) >= 1.5 * 10 * 16 * 0.004 * gibibytes
    assert passes.longest_pass(0) == passes.LONGEST_PASS

"""When pages are moved and when not, as far as it takes no pages to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.engine import balancing
from hetmemd.engine.balancing import Balancer
from hetmemd.engine.record import Record
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine.topology import Machine
from hetmemd.memory.budget import Budgets
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

"""The pace of calls, and which spans a pass goes through."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import plan
from hetmemd.memory.moving import CALL_SECONDS, Pace
from hetmemd.memory.rebalance import ProcessPass, StepResult
from hetmemd.memory.regions import Region
from hetmemd.memory.targets import Span, all_of, spans


@given(st.floats(0, 0.01), st.floats(1e-7, 1e-4))
def test_calls_come_to_take_their_time(fixed: float, each: float) -> None:
    """Where a call costs something even for nothing, as move_pages does."""
    pace = Pace()
    for _ in range(60):
        count = pace.pages(False, CALL_SECONDS)
        pace.learn(False, count, fixed + each * count)
    count = pace.pages(False, CALL_SECONDS)
    assert count == Pace.FEWEST or fixed + each * count <= CALL_SECONDS * 1.1
    assert count == Pace.MOST or fixed + each * (count + 1) >= CALL_SECONDS * 0.9


def test_a_fast_call_at_most_doubles_the_next() -> None:
    pace = Pace()
    first = pace.pages(True, CALL_SECONDS)
    pace.learn(True, first, 1e-9)
    assert pace.pages(True, CALL_SECONDS) <= 2 * first
    assert pace.pages(False, CALL_SECONDS) == first
    pace.learn(False, 100, 100.0)
    assert pace.pages(False, CALL_SECONDS) == Pace.FEWEST


def region(start: int, end: int, kind: str = "anon", **more: object) -> Region:
    facts: dict[str, object] = {"is_bound": False, "pages_by_node": {0: 1}, "is_shared": False, "mapmax": 1} | more
    return Region(start, end, kind, "/x" if kind == "file" else "", DEFAULT, page_size=4096, **facts)  # type: ignore[arg-type]


def test_spans_join_neighbours_and_leave_out_what_is_not_acted_on() -> None:
    found = [
        region(0, 10),
        region(10, 20, "heap"),
        region(30, 40, "shm"),
        region(40, 50, is_bound=True),
        region(50, 60, "file", mapmax=2),
        region(60, 70, "file"),
        region(70, 80, pages_by_node={}),
        region(80, 90, "stack", mapmax=2),
    ]
    target, heap = plan.ratio({0: 1}), plan.ratio({1: 1})
    assert spans(found, all_of(target)) == [Span(0, 20, target), Span(60, 70, target), Span(80, 90, target)]
    each = {"anon": target, "heap": heap}
    assert spans(found[:3], lambda region: each.get(region.kind)) == [Span(0, 10, target), Span(10, 20, heap)]
    assert [span[:2] for span in spans(found, all_of(target, 2))] == [(0, 20), (30, 40), (50, 70), (80, 90)]


def test_a_folder_has_no_pages_to_move(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="running system"):
        ProcessPass(Root(tmp_path), ProcessId(1, 1), all_of(plan.ratio({0: 1})))


@given(st.floats(0.001, 1.0), st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_steps_take_no_more_than_their_share_of_a_process(share: float, took: float, wait: float) -> None:
    rest = StepResult(seconds=took, wait=wait).rest(share)
    assert took <= share * (took + rest) * 1.000001
    assert rest >= wait
    assert StepResult(seconds=took).rest(1.0) == 0.0

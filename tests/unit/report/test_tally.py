"""Counters and histograms."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.report import tally
from hetmemd.report.tally import Distribution, Tally


@given(st.lists(st.floats(0, 100)))
def test_a_distribution_counts_everything_once(values: list[float]) -> None:
    bounds = (0.1, 1.0, 10.0)
    distribution = Distribution(bounds)
    for value in values:
        distribution.observe(value)
    expected = [(bound, sum(value <= bound for value in values)) for bound in (*bounds, float("inf"))]
    assert distribution.cumulative() == expected
    # From 3.12 on, sum() makes good for what is rounded on the way.
    assert distribution.total == pytest.approx(sum(values))


def test_a_negative_time_counts_as_none() -> None:
    distribution = Distribution((1.0,))
    distribution.observe(-5.0)
    assert (distribution.cumulative(), distribution.total) == ([(1.0, 1), (float("inf"), 1)], 0.0)


def test_an_application_that_did_not_hold_is_a_failure_as_well() -> None:
    counted = Tally()
    counted.application("applied")
    counted.application("refused", "EPERM")
    totals = counted.totals()
    assert totals.applications == 2
    assert totals.not_applied_by_outcome_reason == {("refused", "EPERM"): 1}


def test_reasons_do_not_grow_for_ever() -> None:
    counted = Tally()
    for number in range(1000):
        counted.application("deferred", f"reason {number}")
        counted.pages_failed(f"reason {number}")
    totals = counted.totals()
    assert len(totals.not_applied_by_outcome_reason) <= 101
    assert sum(totals.not_applied_by_outcome_reason.values()) == 1000
    assert totals.not_applied_by_outcome_reason["deferred", tally.OTHER] == 900
    assert sum(totals.failed_pages_by_reason.values()) == 1000


def test_known_nodes_count_from_zero() -> None:
    counted = Tally()
    counted.nodes((0, 1))
    assert counted.totals().pages_by_source_target == {(0, 1): 0, (1, 0): 0}


def test_nothing_is_lost_between_threads() -> None:
    counted = Tally()

    def work() -> None:
        for _ in range(2000):
            counted.pages_moved(0, 1, 1, 4096)
            counted.event("proc-connector")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = counted.totals()
    assert totals.pages_by_source_target == {(0, 1): 8000}
    assert totals.bytes_by_source_target == {(0, 1): 8000 * 4096}
    assert totals.events_by_source == {"proc-connector": 8000}

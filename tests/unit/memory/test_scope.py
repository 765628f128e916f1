"""Which memory the mover holds against a policy about classes, and that it reads `min_region` as the binder does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.regionwise import Asked, decide_regions
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.memory import plan, targets
from hetmemd.memory.regions import Region, with_runs
from hetmemd.memory.scope import narrowed, scope

PAGE = 4096
WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)
LOCAL = Mempolicy(Mode.LOCAL)
NODES = frozenset({0, 1})
RATIO, HOME = plan.ratio({0: 3, 1: 1}), plan.within([0])


def region(start: int, end: int, kind: str = "anon", policy: Mempolicy = DEFAULT, task: Mempolicy = DEFAULT) -> Region:
    """In pages."""
    return Region(start * PAGE, end * PAGE, kind, "", policy, policy != task, {0: 1}, PAGE, False, 1)


def share(asked: Asked) -> targets.Share:
    return narrowed(
        targets.all_of(RATIO), asked.scope, HOME, lambda found: asked.is_met(found, NODES), asked.min_region
    )


def test_min_region_keeps_nothing_from_being_taken_home() -> None:
    asked = Asked(WEIGHTED, scope(("all", "!stack")), min_region=64 << 20)
    (stack,) = with_runs([region(0, 2048, "stack", WEIGHTED, WEIGHTED)])
    (bound,) = with_runs([region(0, 2048, "stack", LOCAL, WEIGHTED)])
    (small,) = with_runs([region(0, 2048, "anon", WEIGHTED, WEIGHTED)])
    assert share(asked)(stack) is HOME
    assert share(asked)(bound) is HOME
    assert share(asked)(small) is None


def test_neighbours_count_together() -> None:
    asked = Asked(WEIGHTED, scope(("heap",)), min_region=10 * PAGE)
    found = with_runs([region(0, 9, "heap"), region(9, 11, "heap"), region(11, 30), region(40, 42, "heap")])
    assert [share(asked)(each) for each in found] == [RATIO, RATIO, None, None]


def test_what_was_large_enough_to_be_bound_goes_on() -> None:
    asked = Asked(WEIGHTED, scope(("heap",)), min_region=10 * PAGE)
    (shrunk,) = with_runs([region(0, 2, "heap", WEIGHTED)])
    assert share(asked)(shrunk) is RATIO


kinds = st.sampled_from(["heap", "anon", "stack", "exec", "file", "guard"])
words = st.sampled_from([("heap", "anon"), ("stack",), ("all",), ("all", "!stack"), ("all", "!anon", "!exec")])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), kinds), max_size=9), words, st.integers(0, 12))
def test_the_mover_and_the_binder_read_min_region_alike(
    gaps: list[tuple[int, int, str]], memory: tuple[str, ...], least: int
) -> None:
    asked = Asked(WEIGHTED, scope(memory), min_region=least * PAGE)
    task = DEFAULT if asked.scope.is_inclusive else WEIGHTED
    at, found = 0, []
    for gap, length, kind in gaps:
        at += gap
        found.append(region(at, at + length, kind, task, task))
        at += length
    for verdict in decide_regions(with_runs(found), asked, NODES).verdicts:
        target = share(asked)(verdict.region)
        if verdict.state == "change":
            assert target is (RATIO if verdict.wanted == WEIGHTED else HOME)
        elif verdict.reason == "min_region":
            assert target is None


@pytest.mark.parametrize("kind", ["heap", "stack"])
def test_a_region_alone_is_its_own_run(kind: str) -> None:
    assert [each.run for each in with_runs([region(0, 3, kind), region(4, 5, kind)])] == [3 * PAGE, PAGE]

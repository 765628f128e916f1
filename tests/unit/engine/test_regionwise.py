"""Which mbind calls bring a process's regions from what is to what should be, on a kernel made of a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine import decide, regionwise
from hetmemd.engine.regionwise import (
    ALWAYS,
    LOCAL,
    Asked,
    Change,
    RegionMark,
    Regionwise,
    decide_regions,
    followed,
    intended,
    settled,
    without,
)
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.memory.classes import KINDS
from hetmemd.memory.regions import Region, with_runs
from hetmemd.memory.scope import CLASSES, Scope, scope
from hetmemd.remote.regions import Bind, HomeNode

STATIC = Flag.STATIC_NODES
WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), STATIC)
BIND = Mempolicy(Mode.BIND, frozenset({1}), STATIC)
THEIRS = Mempolicy(Mode.BIND, frozenset({0}))
ALLOWED = frozenset({0, 1})
PAGE = 4096
ANON = Asked(WEIGHTED, scope(("heap", "anon")))
ALL_BUT = Asked(WEIGHTED, scope(("all", "!stack", "!exec")))
NOTHING = Asked(None, scope(("all",)))


def region(
    start: int, end: int, kind: str = "anon", policy: Mempolicy | None = None, task: Mempolicy = DEFAULT
) -> Region:
    """In pages."""
    shown = task if policy is None else policy
    return Region(start * PAGE, end * PAGE, kind, "", shown, shown != task, {}, PAGE, False, 1)


def change(start: int, end: int, policy: Mempolicy, replaced: Mempolicy = DEFAULT, **more: object) -> Change:
    return Change(start * PAGE, end * PAGE, policy, replaced, **more)  # type: ignore[arg-type]


def undo(start: int, end: int) -> Change:
    return change(start, end, DEFAULT, undoes=True)


def mark(start: int, end: int, issued: Mempolicy, replaced: Mempolicy = DEFAULT, **more: object) -> RegionMark:
    return RegionMark(start * PAGE, end * PAGE, issued, replaced, **more)  # type: ignore[arg-type]


def states(decision: Regionwise) -> list[tuple[str, str]]:
    return [(verdict.state, verdict.reason) for verdict in decision.verdicts]


def test_the_inclusive_form_binds_its_classes_and_joins_neighbours() -> None:
    found = [
        region(0, 4, "exec"),
        region(10, 20, "heap"),
        region(20, 25),
        region(25, 30),
        region(31, 40),
        region(40, 50, "stack"),
        region(50, 60, "guard"),
        region(60, 70, "shm"),
        region(70, 80, "special"),
    ]
    assert decide_regions(found, ANON, ALLOWED).changes == (change(10, 30, WEIGHTED), change(31, 40, WEIGHTED))


def test_the_exclusive_form_keeps_the_classes_that_it_names_local() -> None:
    found = [
        region(10, 20, "heap", task=WEIGHTED),
        region(40, 50, "stack", task=WEIGHTED),
        region(60, 70, "exec", task=WEIGHTED),
    ]
    decision = decide_regions(found, ALL_BUT, ALLOWED)
    assert decision.changes == (change(40, 50, LOCAL),)
    assert states(decision) == [("task", ""), ("change", ""), ("task", "")]


def test_all_memory_has_the_task_s_policy_and_no_region_its_own() -> None:
    assert not Asked(WEIGHTED, scope(("all",))).is_regional
    assert not decide_regions([region(0, 9)], Asked(WEIGHTED, scope(("all",))), ALLOWED).changes


def test_T4_a_region_that_the_application_bound_is_left_alone() -> None:
    found = [region(0, 9, policy=THEIRS), region(9, 20)]
    decision = decide_regions(found, ANON, ALLOWED)
    assert states(decision) == [("foreign", "own-bind"), ("change", "")]
    assert decision.changes == (change(9, 20, WEIGHTED),)


def test_T4_the_regions_of_a_thread_with_its_own_policy_are_the_application_s() -> None:
    decision = decide_regions([region(0, 9, task=THEIRS)], ANON, ALLOWED, is_foreign=True)
    assert states(decision) == [("foreign", "thread")]
    assert not decision.changes


def test_T4_override_replaces_and_remembers() -> None:
    asked = replace(ANON, overrides=True)
    decision = decide_regions([region(0, 9, policy=THEIRS)], asked, ALLOWED, is_foreign=True)
    assert decision.changes == (change(0, 9, WEIGHTED, THEIRS, overrides=True),)
    marks = intended((), decision.changes)
    assert decide_regions([region(0, 9, policy=WEIGHTED)], NOTHING, ALLOWED, marks).changes == (
        change(0, 9, THEIRS, THEIRS, undoes=True),
    )


def test_T4_without_a_mark_a_value_that_was_issued_since_boot_is_ours() -> None:
    found = [region(0, 9, policy=WEIGHTED), region(10, 20, policy=LOCAL)]
    assert decide_regions(found, NOTHING, ALLOWED, (), {WEIGHTED, LOCAL}).changes == (undo(0, 9),)
    assert not decide_regions(found, NOTHING, ALLOWED, (), set()).changes


def test_L3_what_is_bound_is_undone_when_the_policy_goes() -> None:
    marks = (mark(0, 20, WEIGHTED), mark(30, 40, LOCAL))
    found = [
        region(0, 5, policy=WEIGHTED),
        region(5, 20, "guard", policy=WEIGHTED),
        region(30, 40, "stack", policy=LOCAL),
        region(50, 60, policy=THEIRS),
    ]
    assert decide_regions(found, NOTHING, ALLOWED, marks).changes == (undo(0, 20), undo(30, 40))


def test_what_became_code_or_a_stack_is_unbound() -> None:
    marks = (mark(0, 20, WEIGHTED),)
    found = [region(0, 10, "exec", policy=WEIGHTED), region(10, 20, "stack", policy=WEIGHTED)]
    assert decide_regions(found, ANON, ALLOWED, marks).changes == (undo(0, 20),)


def test_I6_a_mask_that_the_cpuset_cuts_to_nothing_is_not_issued_and_taken_back() -> None:
    asked = Asked(BIND, scope(("anon",)))
    spread = Mempolicy(Mode.BIND, frozenset({0}), STATIC)
    found = [region(0, 9), region(10, 20, policy=spread)]
    decision = decide_regions(found, asked, frozenset({0}), (mark(10, 20, BIND),))
    assert states(decision) == [("left", "no-allowed-node"), ("change", "undo")]
    assert decision.changes == (undo(10, 20),)


def test_min_region_counts_neighbours_of_one_class_together() -> None:
    asked = replace(ANON, min_region=10 * PAGE)
    found = with_runs([region(0, 9, "heap"), region(9, 11, "heap"), region(11, 15), region(20, 22)])
    assert decide_regions(found, asked, ALLOWED).changes == (change(0, 11, WEIGHTED),)
    # What is bound already stays so when it shrinks.
    small = [region(0, 2, policy=WEIGHTED)]
    assert states(decide_regions(small, asked, ALLOWED, (mark(0, 9, WEIGHTED),))) == [("bound", "")]


def test_min_region_is_about_what_is_bound_to_the_policy_not_about_what_is_left_out() -> None:
    asked = replace(ALL_BUT, min_region=16384 * PAGE)
    found = [region(0, 2048, "stack", task=WEIGHTED), region(3000, 3100, task=WEIGHTED)]
    assert decide_regions(found, asked, ALLOWED).changes == (change(0, 2048, LOCAL),)


def test_a_region_that_was_moved_keeps_what_it_gets_back() -> None:
    """mremap(2): the kernel takes the policy along, and no address of it is the same."""
    marks = (mark(0, 9, WEIGHTED, THEIRS), mark(20, 30, LOCAL))
    found = [region(100, 109, policy=WEIGHTED), region(120, 130, "stack", policy=LOCAL), region(140, 145)]
    now = followed(marks, found, ALLOWED)
    assert [each for each in now if each.start >= 100 * PAGE] == [
        mark(100, 109, WEIGHTED, THEIRS),
        mark(120, 130, LOCAL),
    ]
    assert decide_regions(found, NOTHING, ALLOWED, now).changes == (
        change(100, 109, THEIRS, THEIRS, undoes=True),
        undo(120, 130),
    )
    assert followed(now, found, ALLOWED) == now


def test_a_region_that_was_enlarged_as_it_was_moved() -> None:
    marks = (mark(0, 9, WEIGHTED, THEIRS), mark(20, 30, LOCAL))
    found = [region(100, 120, policy=WEIGHTED), region(200, 250, policy=LOCAL)]
    now = followed(marks, found, ALLOWED)
    assert mark(100, 120, WEIGHTED, THEIRS) in now
    # `local` is too common: of another size it may well be the application's own.
    assert decide_regions(found, NOTHING, ALLOWED, now).changes == (change(100, 120, THEIRS, THEIRS, undoes=True),)


def test_what_the_application_binds_elsewhere_has_moved_from_nowhere() -> None:
    marks = (mark(0, 9, WEIGHTED, THEIRS), mark(20, 30, LOCAL))
    here = [region(0, 9, policy=WEIGHTED), region(20, 30, policy=LOCAL)]
    found = [*here, region(100, 109, policy=THEIRS), region(120, 130, policy=LOCAL)]
    assert followed(marks, found, ALLOWED) == marks
    # A part of it was unmapped: what has another value is not that.
    assert followed(marks, found[1:3], ALLOWED) == marks


def test_no_two_regions_have_moved_from_one_place() -> None:
    marks = (mark(0, 9, WEIGHTED), mark(20, 30, WEIGHTED, earlier=BIND))
    found = [region(100, 109, policy=WEIGHTED), region(200, 212, policy=WEIGHTED), region(300, 309, policy=WEIGHTED)]
    moved = [each for each in followed(marks, found, ALLOWED) if each.start >= 100 * PAGE]
    assert moved == [mark(100, 109, WEIGHTED), mark(200, 212, WEIGHTED, earlier=BIND)]
    # Of those that come as near as one another it is the first.
    for sizes in ((9, 9), (8, 8), (8, 10), (10, 8)):
        marks = (mark(0, sizes[0], WEIGHTED, THEIRS, home=0), mark(20, 20 + sizes[1], WEIGHTED, THEIRS, home=1))
        assert mark(100, 109, WEIGHTED, THEIRS, home=0) in followed(marks, found[:1], ALLOWED)
    # What is left of several tells alone.
    marks = (mark(0, 9, BIND, THEIRS), mark(20, 30, WEIGHTED, earlier=BIND))
    found = [region(100, 110, policy=WEIGHTED), region(200, 209, policy=BIND)]
    moved = [each for each in followed(marks, found, ALLOWED) if each.start >= 100 * PAGE]
    assert moved == [mark(100, 110, WEIGHTED, earlier=BIND), mark(200, 209, BIND, THEIRS)]


def test_what_was_lost_is_compared_by_policy_and_not_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def shows(now: Mempolicy, value: Mempolicy, allowed: frozenset[int]) -> bool:
        nonlocal compared
        compared += 1
        return decide.shows(now, value, allowed)

    monkeypatch.setattr(regionwise, "shows", shows)
    many = 300
    marks = [mark(2 * at, 2 * at + 1, WEIGHTED) for at in range(many)]
    # The application has bound each of them itself, and moved as many others that show hetmemd's.
    here = [region(2 * at, 2 * at + 1, policy=THEIRS) for at in range(many)]
    there = [region(9 * many + 2 * at, 9 * many + 2 * at + 1, policy=WEIGHTED) for at in range(many)]
    assert len(followed(marks, [*here, *there], ALLOWED)) == 2 * many
    assert compared <= 2 * many


def test_shared_and_huge_memory_only_where_somebody_looked() -> None:
    asked = Asked(WEIGHTED, scope(("shm", "hugetlb", "exec", "file")))
    found = [region(0, 9, "shm"), region(10, 20, "hugetlb"), region(20, 30, "exec"), region(30, 40, "file")]
    assert states(decide_regions(found, asked, ALLOWED)) == [
        ("left", "shared"),
        ("left", "no-huge-pages"),
        ("task", ""),
        ("task", ""),
    ]
    assert decide_regions(found, asked, ALLOWED, cleared={0}).changes == (change(0, 9, WEIGHTED),)


def test_a_home_node_is_a_call_of_its_own() -> None:
    asked = Asked(BIND, scope(("all",)), home_node=0)
    (first,) = decide_regions([region(0, 9, task=BIND)], asked, ALLOWED).changes or (None,)
    assert first is None, "it has the task's policy, which has no home: but it shows the same, and no call can tell"
    found = [region(0, 9)]
    decision = decide_regions(found, asked, ALLOWED)
    assert decision.changes[0].calls == [Bind(0, 9 * PAGE, BIND), HomeNode(0, 9 * PAGE, 0)]
    bound = [region(0, 9, policy=BIND)]
    marks = intended((), decision.changes)
    again = decide_regions(bound, asked, ALLOWED, marks)
    assert again.changes[0].calls == [HomeNode(0, 9 * PAGE, 0)]
    marks = settled(again.verdicts, marks, [(0, 9 * PAGE, 0)])
    assert marks == (mark(0, 9, BIND, home=0),)
    assert not decide_regions(bound, asked, ALLOWED, marks).changes
    gone = decide_regions(bound, Asked(BIND, scope(("anon",))), ALLOWED, marks)
    assert gone.changes[0].calls == [Bind(0, 9 * PAGE, BIND)]


def test_marks_before_an_act_know_both_values() -> None:
    before = (mark(0, 20, BIND),)
    assert intended(before, [change(5, 10, WEIGHTED)]) == (
        mark(0, 5, BIND),
        mark(5, 10, WEIGHTED, earlier=BIND),
        mark(10, 20, BIND),
    )
    assert intended(before, [undo(0, 20)]) == before
    assert without(before, [(0, 5 * PAGE), (7 * PAGE, 9 * PAGE)]) == (mark(5, 7, BIND), mark(9, 20, BIND))


# -- properties, on a kernel made of a table

Table = list[tuple[int, int, str, Mempolicy | None]]
"""Start, end, kind and own policy."""
OWN = st.sampled_from([None, None, None, THEIRS, LOCAL])


@st.composite
def tables(draw: st.DrawFn) -> Table:
    at, table = 0, []
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.integers(0, 2))
        length = draw(st.integers(1, 9))
        table.append((at, at + length, draw(st.sampled_from(KINDS)), draw(OWN)))
        at += length
    return table


scopes = st.one_of(
    st.frozensets(st.sampled_from(sorted(CLASSES)), min_size=1).map(lambda kinds: Scope(kinds, True)),
    st.frozensets(st.sampled_from(sorted(CLASSES)), min_size=1).map(lambda kinds: Scope(kinds, False)),
)
asks = st.builds(
    Asked, st.sampled_from([WEIGHTED, BIND, LOCAL, DEFAULT]), scopes, min_region=st.sampled_from([0, 5 * PAGE])
)


def seen(table: Table, task: Mempolicy) -> list[Region]:
    return with_runs([region(start, end, kind, own, task) for start, end, kind, own in table])


def task_policy(asked: Asked) -> Mempolicy:
    return asked.policy if asked.policy and not asked.scope.is_inclusive else DEFAULT


def mbind(table: Table, changes: tuple[Change, ...]) -> Table:
    after = []
    for start, end, kind, own in table:
        now = own
        for each in changes:
            if each.start <= start * PAGE and end * PAGE <= each.end:
                now = None if each.policy == DEFAULT else each.policy
            else:
                assert end * PAGE <= each.start or each.end <= start * PAGE, "half a region"
        after.append((start, end, kind, now))
    return after


@given(tables(), asks)
def test_deciding_is_idempotent_and_leaves_alone_what_is_not_ours(table: Table, asked: Asked) -> None:
    task = task_policy(asked)
    decision = decide_regions(seen(table, task), asked, ALLOWED)
    assert all(
        before.end < after.start or before.policy != after.policy for before, after in pairwise(decision.changes)
    )
    marks = intended((), decision.changes)
    after = mbind(table, decision.changes)
    again = decide_regions(seen(after, task), asked, ALLOWED, marks, {WEIGHTED, BIND})
    assert again.changes == ()
    for (_, _, kind, own), (_, _, _, now) in zip(table, after, strict=True):
        if own is not None and own != task:
            assert now == own, "the application's"
        if now != own:
            assert kind in ALWAYS
    marks = settled(again.verdicts, marks)
    assert decide_regions(seen(after, task), asked, ALLOWED, marks).changes == ()


@given(tables(), asks, asks)
def test_another_policy_and_none_in_the_end_leaves_everything_as_it_was(
    table: Table, first: Asked, second: Asked
) -> None:
    now: Table = table
    marks: tuple[RegionMark, ...] = ()
    issued = {WEIGHTED, BIND}
    for asked in (first, second, NOTHING):
        task = task_policy(asked)
        # As the engine goes about it: the threads first, then the regions.
        decision = decide_regions(seen(now, task), asked, ALLOWED, marks, issued)
        marks = intended(marks, decision.changes)
        now = mbind(now, decision.changes)
        marks = without(marks, [(each.start, each.end) for each in decision.changes if each.undoes])
        marks = settled(decide_regions(seen(now, task), asked, ALLOWED, marks, issued).verdicts, marks)
    assert now == table
    assert marks == ()


@given(tables(), asks)
def test_of_regions_that_were_all_moved_nothing_stays_bound(table: Table, asked: Asked) -> None:
    task, asked = task_policy(asked), replace(asked, overrides=True)
    changes = decide_regions(seen(table, task), asked, ALLOWED).changes
    bound, intent = mbind(table, changes), intended((), changes)
    marks = settled(decide_regions(seen(bound, task), asked, ALLOWED, intent).verdicts, intent)
    # Apart, so that what was one mark over neighbours is several regions.
    moved = [(start + 1000 * at, end + 1000 * at, kind, own) for at, (start, end, kind, own) in enumerate(bound, 1)]
    now = followed(marks, seen(moved, task), ALLOWED)
    assert all(before.end <= after.start for before, after in pairwise(now))
    known = settled(decide_regions(seen(moved, task), asked, ALLOWED, now).verdicts, now)
    assert followed(known, seen(moved, task), ALLOWED) == known
    assert {mark.replaced for mark in now} <= {mark.replaced for mark in marks}
    undone = decide_regions(seen(moved, task), NOTHING, ALLOWED, now, {WEIGHTED, BIND}).changes
    left = {own for _, _, _, own in mbind(moved, undone)}
    assert not left & {WEIGHTED, BIND}


def followed_one_by_one(marks: tuple[RegionMark, ...], found: list[Region]) -> tuple[RegionMark, ...]:
    """`followed`, as it is said: each region with each mark."""

    def show(region: Region, values: tuple[Mempolicy | None, ...]) -> bool:
        return any(region.policy and value and decide.shows(region.policy, value, ALLOWED) for value in values)

    def is_ours(region: Region) -> bool:
        covering = [
            (min(each.end, region.end) - max(each.start, region.start), -each.start, each)
            for each in marks
            if each.start < region.end and region.start < each.end
        ]
        if not covering or region.policy == DEFAULT:
            return False
        best = max(covering, key=lambda each: each[:2])[2]
        return show(region, (best.issued, best.earlier))

    lost = list(without(marks, [(each.start, each.end) for each in found if is_ours(each)]))
    moved: list[RegionMark] = []
    for each in found:
        if is_ours(each) or not each.is_bound or each.policy == DEFAULT:
            continue
        alike = [mark for mark in lost if show(each, (mark.issued, mark.earlier))]
        if len({mark.replaced for mark in alike}) == 1:
            best = min(alike, key=lambda mark: abs(mark.end - mark.start - each.size))
            if best.end - best.start == each.size or best.issued.mode.takes_nodes:
                lost.remove(best)
                moved.append(replace(best, start=each.start, end=each.end))
    rest = without(marks, [(each.start, each.end) for each in moved])
    return tuple(sorted((*rest, *moved), key=lambda mark: mark.start)) if moved else marks


POLICIES = st.sampled_from([WEIGHTED, WEIGHTED, WEIGHTED, BIND, LOCAL, THEIRS])


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    at, ranges = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12)):
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    return ranges


@given(ranges(), ranges(), st.sampled_from([0, 1, 10, 100, 100]), st.data())
def test_marks_follow_their_regions_as_it_is_said(
    marked: list[tuple[int, int]], mapped: list[tuple[int, int]], away: int, data: st.DataObject
) -> None:
    earlier, replaced = st.sampled_from([None, None, BIND]), st.sampled_from([DEFAULT, DEFAULT, THEIRS])
    marks = tuple(
        mark(*place, data.draw(POLICIES), data.draw(replaced), earlier=data.draw(earlier)) for place in marked
    )
    found = [region(away + start, away + end, policy=data.draw(POLICIES)) for start, end in mapped]
    assert followed(marks, found, ALLOWED) == followed_one_by_one(marks, found)


@pytest.mark.parametrize("words", [("all",), ("heap",), ("all", "!stack")])
def test_scopes(words: tuple[str, ...]) -> None:
    made = scope(words)
    assert made.is_all == (words == ("all",))
    assert made.is_inclusive == ("all" not in words)
    assert ("stack" in made.classes) == (words == ("all",))

"""Decisions about one thread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.decide import (
    FIRST_WAIT,
    FORGIVEN,
    STRIKES,
    Decision,
    Mark,
    Verb,
    carries,
    decide,
    inherited,
    issuable,
    seen_applied,
    shows,
)
from hetmemd.kernel.features import Features
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.machine.topology import Machine
from hetmemd.remote.readback import as_shown
from hetmemd.remote.result import Outcome

S = Flag.STATIC_NODES
BOTH = frozenset({0, 1})
WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, BOTH, S)
BOUND = Mempolicy(Mode.BIND, frozenset({1}), S)

nodes = st.frozensets(st.integers(0, 3), min_size=1)
with_nodes = st.builds(Mempolicy, st.sampled_from([mode for mode in Mode if mode.takes_nodes]), nodes, st.just(S))
policies = st.one_of(with_nodes, st.sampled_from([DEFAULT, Mempolicy(Mode.LOCAL)]))


@given(policies, policies, nodes, st.none() | st.builds(Mark, policies), st.sets(policies, max_size=3))
def test_L1_a_decision_that_was_carried_out_decides_nothing_more(
    now: Mempolicy, wanted: Mempolicy, allowed: frozenset[int], mark: Mark | None, issued: set[Mempolicy]
) -> None:
    first = decide(now, wanted, allowed, mark, issued)
    if first.verb is Verb.APPLY:
        shown = as_shown(first.policy, allowed)
        assert shown is not None
        assert first.mark is not None
        then = decide(shown, wanted, allowed, first.mark, issued | {first.policy})
        assert (then.verb, then.outcome) == (Verb.NOTHING, Outcome.APPLIED)
    elif first.verb is Verb.RESTORE:
        then = decide(DEFAULT, wanted, allowed, None, issued)
        assert then.verb is Verb.NOTHING


@given(policies, st.none() | policies, nodes, st.sets(policies, max_size=3))
def test_T4_a_policy_that_was_never_issued_is_never_replaced(
    now: Mempolicy, wanted: Mempolicy | None, allowed: frozenset[int], issued: set[Mempolicy]
) -> None:
    if now != DEFAULT and not any(shows(now, value, allowed) for value in issued):
        assert decide(now, wanted, allowed, None, issued).verb in (Verb.LEAVE, Verb.NOTHING)


def test_T4_while_it_is_not_known_whether_a_newer_value_arrived_both_are_ours() -> None:
    mark = Mark(BOUND, DEFAULT, WEIGHTED)
    assert decide(BOUND, None, BOTH, mark, ()).verb is Verb.RESTORE
    assert decide(WEIGHTED, None, BOTH, mark, ()).verb is Verb.RESTORE
    assert decide(Mempolicy(Mode.LOCAL), None, BOTH, mark, ()).verb is Verb.NOTHING


def test_T4_local_is_too_common_to_be_known_again_without_a_mark() -> None:
    local = Mempolicy(Mode.LOCAL)
    assert decide(local, None, BOTH, None, {local}).verb is Verb.NOTHING
    assert decide(local, None, BOTH, Mark(local), {local}).verb is Verb.RESTORE


def test_T4_an_old_kernel_that_does_not_show_balancing_is_believed() -> None:
    balanced = Mempolicy(Mode.BIND, BOTH, S | Flag.NUMA_BALANCING)
    assert shows(Mempolicy(Mode.BIND, BOTH, S), balanced, BOTH)


def test_T4_the_ledger_beats_equality_with_what_was_issued() -> None:
    """A thread that we gave one value, and that carries another of ours, set it itself."""
    assert decide(BOUND, WEIGHTED, BOTH, Mark(WEIGHTED), {WEIGHTED, BOUND}).verb is Verb.LEAVE
    assert decide(BOUND, WEIGHTED, BOTH, None, {WEIGHTED, BOUND}).verb is Verb.APPLY


def test_T3_a_task_without_a_policy_gets_back_what_was_replaced() -> None:
    local = Mempolicy(Mode.LOCAL)
    decision = decide(WEIGHTED, None, BOTH, Mark(WEIGHTED, local), {WEIGHTED})
    assert (decision.verb, decision.policy, decision.outcome) == (Verb.RESTORE, local, None)
    assert decide(WEIGHTED, None, BOTH, None, {WEIGHTED}).policy == DEFAULT
    assert decide(BOUND, None, BOTH, None, {WEIGHTED}).verb is Verb.NOTHING


def test_I6_a_policy_that_a_cpuset_cuts_is_right_as_it_shows() -> None:
    shown = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0}), S)
    assert decide(shown, WEIGHTED, frozenset({0}), None, ()).outcome is Outcome.APPLIED


def test_I6_cut_to_nothing_gives_the_default_back_to_what_carries_ours() -> None:
    only_zero = frozenset({0})
    assert decide(DEFAULT, BOUND, only_zero, None, {BOUND}).verb is Verb.NOTHING
    decision = decide(Mempolicy(Mode.BIND, only_zero, S), BOUND, only_zero, None, {Mempolicy(Mode.BIND, BOTH, S)})
    assert (decision.verb, decision.outcome, decision.reason) == (Verb.RESTORE, Outcome.DEFERRED, "no-allowed-node")


def test_I6_a_preferred_node_keeps_its_mask_when_the_cpuset_changes() -> None:
    preferred = Mempolicy(Mode.PREFERRED, frozenset({1}), S)
    assert shows(preferred, preferred, frozenset({0}))
    assert decide(preferred, preferred, frozenset({0}), None, {preferred}).verb is Verb.RESTORE


def test_I8_default_as_a_policy_takes_ours_away_and_leaves_the_applications() -> None:
    assert decide(WEIGHTED, DEFAULT, BOTH, None, {WEIGHTED}).verb is Verb.APPLY
    assert decide(BOUND, DEFAULT, BOTH, None, {WEIGHTED}).outcome is Outcome.FOREIGN


@pytest.mark.parametrize(("table", "mode"), [({0: 1, 1: 1}, Mode.WEIGHTED_INTERLEAVE), (None, Mode.INTERLEAVE)])
def test_L5_interleave_stands_for_weighted_interleave_before_6_9(table: dict[int, int] | None, mode: Mode) -> None:
    machine = Machine({}, table)
    assert issuable(WEIGHTED, machine) == Mempolicy(mode, BOTH, S)
    assert issuable(BOUND, machine) == BOUND


@pytest.mark.parametrize("mode", [Mode.BIND, Mode.PREFERRED_MANY])
def test_L5_balancing_is_left_out_where_the_kernel_does_not_take_it(mode: Mode) -> None:
    balanced = Mempolicy(mode, BOTH, S | Flag.NUMA_BALANCING)
    machine = Machine({}, features=Features(balancing=frozenset({Mode.BIND})))
    assert issuable(balanced, machine) == (balanced if mode is Mode.BIND else Mempolicy(mode, BOTH, S))
    assert issuable(balanced, Machine({})) == balanced


OWN = Mempolicy(Mode.INTERLEAVE, BOTH)


@given(policies, policies, nodes, st.none() | st.builds(Mark, policies, policies), st.sets(policies, max_size=3))
def test_T3_T4_what_is_overridden_is_given_back(
    own: Mempolicy, wanted: Mempolicy, allowed: frozenset[int], mark: Mark | None, issued: set[Mempolicy]
) -> None:
    """A foreign policy is replaced at once; when the task leaves it has what it had, as far as its nodes allow."""
    taken = decide(own, wanted, allowed, mark, issued, overrides=True)
    if taken.verb is not Verb.APPLY or carries(own, allowed, mark, issued):
        return
    assert taken.mark is not None
    assert taken.mark.replaced == own
    shown = as_shown(wanted, allowed)
    assert shown is not None
    kept = seen_applied(wanted, taken.mark, None)
    left = decide(shown, None, allowed, kept, issued | {wanted})
    if own == DEFAULT == wanted:
        assert kept is None
    elif shown == own and kept is None:
        assert left.verb is Verb.NOTHING
    else:
        assert left.verb is Verb.RESTORE
        possible = not own.mode.takes_nodes or own.nodes & allowed
        assert left.policy == (own if possible else DEFAULT)


class Stubborn:
    """A thread that sets its own policy again so many seconds after each time that it was replaced."""

    def __init__(self, rest: float) -> None:
        self.rest = rest
        self.mark: Mark | None = None
        self.applied: list[float] = []

    def look(self, at: float) -> Decision:
        """One look at a time when it has its own policy."""
        decision = decide(OWN, BOUND, BOTH, self.mark, (), overrides=True, at=at)
        if decision.verb is Verb.APPLY:
            self.applied.append(at)
            self.mark = seen_applied(BOUND, decision.mark, None)
        return decision


def test_T4_what_is_set_again_is_replaced_later_and_later_and_then_contested() -> None:
    thread = Stubborn(rest=0.0)
    at = 1000.0
    while (decision := thread.look(at)).outcome is not Outcome.CONTESTED:
        assert decision.verb is Verb.APPLY or (decision.outcome, decision.reason) == (Outcome.DEFERRED, "set-again")
        at += 0.1
        assert at < 2000
    waits = [later - earlier for earlier, later in zip(thread.applied, thread.applied[1:], strict=False)]
    assert waits == pytest.approx([FIRST_WAIT * 2**strike for strike in range(STRIKES)], abs=0.2)
    assert thread.mark is not None and thread.mark.replaced == OWN
    assert thread.look(at + 10 * FORGIVEN).outcome is Outcome.CONTESTED
    other = decide(OWN, WEIGHTED, BOTH, thread.mark, (), overrides=True, at=at)
    assert other.verb is Verb.APPLY, "another policy begins anew"


@given(st.floats(FORGIVEN + 1, 1e6), st.integers(1, 30))
def test_T4_a_rare_occasion_is_no_contest(rest: float, times: int) -> None:
    thread = Stubborn(rest)
    for number in range(times):
        assert thread.look(1000 + number * rest).verb is Verb.APPLY


def test_T4_a_default_that_is_set_again_and_again_is_contested_too() -> None:
    """Also where foreign policies are respected: nobody can tell a default that the application wants from none."""
    worn = Mark(BOUND, arrived=True, strikes=STRIKES, at=10)
    assert decide(DEFAULT, BOUND, BOTH, worn, (), at=1e6).outcome is Outcome.CONTESTED
    assert decide(DEFAULT, BOUND, BOTH, Mark(BOUND, arrived=True, at=10), (), at=10.5).outcome is Outcome.DEFERRED
    assert decide(DEFAULT, BOUND, BOTH, Mark(BOUND), (), at=10.5).verb is Verb.APPLY, "it never arrived"


def test_T4_default_as_an_overriding_policy_remembers_too() -> None:
    first = decide(OWN, DEFAULT, BOTH, None, (), overrides=True)
    assert (first.verb, first.policy) == (Verb.APPLY, DEFAULT)
    mark = seen_applied(DEFAULT, first.mark, None)
    assert mark == Mark(DEFAULT, OWN, arrived=True)
    left = decide(DEFAULT, None, BOTH, mark, ())
    assert (left.verb, left.policy) == (Verb.RESTORE, OWN)


def test_T4_relative_nodes_are_remembered_as_those_that_they_came_to() -> None:
    relative = Mempolicy(Mode.BIND, frozenset({1}), Flag.RELATIVE_NODES)
    mark = decide(relative, WEIGHTED, BOTH, None, (), overrides=True).mark
    assert mark is not None and mark.replaced == Mempolicy(Mode.BIND, frozenset({1}))


def test_T4_a_child_inherits_what_was_replaced_in_its_parent() -> None:
    assert seen_applied(BOUND, None, OWN) == Mark(BOUND, OWN, arrived=True)
    assert seen_applied(BOUND, None, None) is None
    assert seen_applied(DEFAULT, None, DEFAULT) is None


def test_T3_what_was_never_looked_at_gets_back_what_its_maker_does() -> None:
    local = Mempolicy(Mode.LOCAL)
    assert inherited(WEIGHTED, BOTH, Mark(WEIGHTED, local)) == Mark(WEIGHTED, local)
    assert inherited(BOUND, BOTH, Mark(WEIGHTED, local)) is None, "its own"
    assert inherited(WEIGHTED, BOTH, None) is None


@pytest.mark.parametrize("issued", [DEFAULT, Mempolicy(Mode.LOCAL)])
def test_T4_what_many_have_by_themselves_is_not_known_again(issued: Mempolicy) -> None:
    assert inherited(issued, BOTH, Mark(issued, WEIGHTED)) is None

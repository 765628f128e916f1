"""Decisions about one thread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.decide import Mark, Verb, decide, issuable, shows
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
        then = decide(shown, wanted, allowed, Mark(first.policy), issued | {first.policy})
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

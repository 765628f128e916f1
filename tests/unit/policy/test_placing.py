"""What a request comes to: selectors, weights, shares, and what blocks. The rules have theirs in test_rules_issued."""

from __future__ import annotations

import pytest

from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.policy.effective import Effective, Placement, fold
from hetmemd.policy.resolve import CgroupFacts
from tests.unit.policy.given import TWO_SOCKETS, machine, nodes_of, policy, resolved


def weights_of(effective: Effective) -> dict[int, int]:
    assert effective.placement is not None, effective.notes
    return dict(effective.placement.weights)


def test_a_tier_that_is_not_there_is_told_with_those_that_are() -> None:
    effective = resolved("/a", policy("/a", "bind", "tier:7"))
    assert effective.state == "blocked"
    assert "selects no node of this machine, whose memory tiers are 4, 22" in "".join(effective.notes)
    assert "not told by the kernel" in "".join(resolved("/a", policy("/a", "bind", "tier:7"), on=TWO_SOCKETS).notes)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("all", {0, 1, 2, 3}),
        ("dram", {0, 1}),
        ("cpuless", {2, 3}),
        ("dram+cpuless", {0, 1, 2, 3}),
        ("all!2", {0, 1, 3}),
        ("all+!2", {0, 1, 3}),
        ("all,!2", {0, 1, 3}),
        ("0-1,3,!1", {0, 3}),
        ("!0,2", {1, 3}),
        ("all!dram", {2, 3}),
        ("0-1,3", {0, 1, 3}),
        ("0+cpuless!3", {0, 2}),
        (" dram + 2 ", {0, 1, 2}),
    ],
)
def test_selectors(nodes: str, expected: set[int]) -> None:
    assert nodes_of(resolved("/a", policy("/a", "interleave", nodes), TWO_SOCKETS)) == expected


def test_selector_tier() -> None:
    assert nodes_of(resolved("/a", policy("/a", "bind", "tier:22"))) == {1}
    assert resolved("/a", policy("/a", "bind", "tier:7")).state == "blocked"


def test_selector_nearest_is_evaluated_for_who_receives_it() -> None:
    given = policy("/a", "weighted-interleave", "nearest", weights="bandwidth")
    facts = {"/a": CgroupFacts(cpus=frozenset(range(4))), "/a/b": CgroupFacts(cpus=frozenset({2}))}
    assert weights_of(resolved("/a", given, TWO_SOCKETS, facts)) == {0: 3, 1: 3, 2: 1, 3: 1}
    assert weights_of(resolved("/a/b", given, TWO_SOCKETS, facts)) == {1: 3, 3: 1}
    assert nodes_of(resolved("/a/c", given, TWO_SOCKETS)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"0": 3, "1": 1}, {0: 3, 1: 1}),
        ({"dram": 3, "cpuless": 1}, {0: 3, 1: 1}),
        ({"all": 2, "1": 5}, {0: 2, 1: 5}),
        ({"0-1": 9}, {0: 9, 1: 9}),
        ("bandwidth", {0: 3, 1: 1}),
        ("capacity", {0: 1, 1: 1}),
        ("kernel", {0: 3, 1: 1}),
    ],
)
def test_weights(weights: object, expected: dict[int, int]) -> None:
    assert weights_of(resolved("/a", policy("/a", "weighted-interleave", "all", weights=weights))) == expected


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"0": 3}, "no weight is given for node 1"),
        ({"dram": 3}, "no weight is given for node 1"),
        ({"all": 3, "dram": 2}, "node 0 has two weights"),
    ],
)
def test_a_node_without_one_weight_blocks(weights: object, says: str) -> None:
    effective = resolved("/a", policy("/a", "weighted-interleave", "all", weights=weights))
    assert effective.state == "blocked"
    assert any(says in note for note in effective.notes)


@pytest.mark.parametrize(("weights", "way"), [("bandwidth", "by hand"), ("kernel", "by hand")])
def test_weights_without_figures_block_and_name_the_way_round(weights: str, way: str) -> None:
    bare = machine(("0", None), ("", None))
    effective = resolved("/a", policy("/a", "weighted-interleave", "all", weights=weights), bare)
    assert (effective.state, effective.placement) == ("blocked", None)
    assert effective.wanted is not None and effective.wanted.mempolicy.nodes == {0, 1}
    assert any(way in note for note in effective.notes)


def test_preferred_must_come_to_one_node() -> None:
    assert nodes_of(resolved("/a", policy("/a", "preferred", "dram"))) == {0}
    effective = resolved("/a", policy("/a", "preferred", "dram"), TWO_SOCKETS)
    assert effective.state == "blocked" and any("preferred-many" in note for note in effective.notes)


@pytest.mark.parametrize("memory", [["heap", "anon"], ["all", "!stack"], "heap"])
def test_classes_of_memory_are_part_of_the_placement(memory: object) -> None:
    effective = resolved("/a", policy("/a", "bind", "0-1", memory=memory))
    assert (effective.state, effective.notes) == ("active", ())
    assert effective.placement is not None
    assert effective.placement.memory == ((memory,) if isinstance(memory, str) else tuple(memory))  # type: ignore[arg-type]


def shares(mode: Mode, nodes: set[int], allowed: set[int], **weights: int) -> dict[int, float]:
    by_node = {int(key[1:]): weight for key, weight in weights.items()}
    policy_of = Mempolicy(mode, frozenset(nodes), Flag.STATIC_NODES)
    return Placement(policy_of, by_node).shares(frozenset(allowed))


def test_shares() -> None:
    both = {0, 1}
    assert shares(Mode.WEIGHTED_INTERLEAVE, both, both, n0=3, n1=1) == {0: 0.75, 1: 0.25}
    assert shares(Mode.WEIGHTED_INTERLEAVE, both, {1, 2}, n0=3, n1=1) == {1: 1.0}
    assert shares(Mode.INTERLEAVE, both, both) == {0: 0.5, 1: 0.5}
    assert shares(Mode.INTERLEAVE, both, {2}) == {}
    assert shares(Mode.BIND, both, both) == {0: 0.5, 1: 0.5}
    assert Placement(DEFAULT).shares(frozenset(both)) == {}
    assert Placement(Mempolicy(Mode.LOCAL)).shares(frozenset(both)) == {}


@pytest.mark.parametrize("mode", list(Mode))
def test_only_interleaving_asks_for_a_ratio(mode: Mode) -> None:
    assert Placement(Mempolicy(mode)).is_ratio == (mode in (Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE))


def test_relative_shares_are_by_place() -> None:
    relative = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.RELATIVE_NODES)
    placement = Placement(relative, {0: 3, 1: 1})
    assert placement.shares(frozenset({2, 5})) == {2: 0.75, 5: 0.25}
    assert placement.shares(frozenset({5})) == {5: 1.0}
    assert placement.shares(frozenset()) == {}


def test_with_relative_nodes_a_selector_gives_its_weight_to_the_places_of_its_nodes() -> None:
    """Numbers are places, in `weights` as in `nodes`."""
    facts = {"/a": CgroupFacts(mems=frozenset({1, 2}))}  # the second one of DRAM, the first one without CPUs
    for weights, expected in (
        ({"dram": 3, "cpuless": 1}, {0: 3, 1: 1}),
        ({"0": 5, "1": 2}, {0: 5, 1: 2}),
        ({"all": 4, "1": 7}, {0: 4, 1: 7}),
    ):
        given = policy("/a", "weighted-interleave", "0-1", weights=weights, flags=["relative"])
        assert weights_of(resolved("/a", given, TWO_SOCKETS, facts)) == expected


def test_fold_is_the_kernels() -> None:
    """mm/mempolicy.c, mpol_relative_nodemask(): the places are taken modulo the number of allowed nodes."""
    assert fold(frozenset({0, 2, 4}), frozenset({1, 3, 5})) == {1, 5, 3}
    assert fold(frozenset({3}), frozenset({7})) == {7}
    assert fold(frozenset({1}), frozenset()) == frozenset()

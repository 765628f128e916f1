"""Rules I6 and L5, and how every mode and flag is issued."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetmemd.kernel.features import Features
from hetmemd.kernel.mempolicy import DEFAULT, NO_FLAGS, Flag, Mempolicy, Mode
from hetmemd.policy.resolve import CgroupFacts
from tests.unit.policy.given import DRAM_CXL, TWO_SOCKETS, machine, nodes_of, policy, resolved

STATIC, RELATIVE, BALANCING = Flag.STATIC_NODES, Flag.RELATIVE_NODES, Flag.NUMA_BALANCING
WITH_NODES = [mode for mode in Mode if mode.takes_nodes]


@pytest.mark.parametrize("mode", WITH_NODES)
@pytest.mark.parametrize(("flags", "issued"), [([], STATIC), (["static"], STATIC), (["relative"], RELATIVE)])
def test_I6_every_mode_with_nodes_is_static_unless_relative_is_asked_for(
    mode: Mode, flags: list[str], issued: Flag
) -> None:
    nodes = "0" if mode is Mode.PREFERRED else "0-1"
    placement = resolved("/a", policy("/a", mode.word, nodes, flags=flags)).placement
    assert placement is not None
    assert placement.mempolicy == Mempolicy(mode, frozenset(range(1 if nodes == "0" else 2)), issued)


@pytest.mark.parametrize("mode", ["bind", "preferred-many"])
@pytest.mark.parametrize("more", [[], ["static"], ["relative"]])
def test_balancing_goes_beside_static_and_relative(mode: str, more: list[str]) -> None:
    placement = resolved("/a", policy("/a", mode, "0-1", flags=["balancing", *more])).placement
    assert placement is not None
    assert placement.mempolicy.flags == BALANCING | (RELATIVE if more == ["relative"] else STATIC)


@pytest.mark.parametrize("mode", ["bind", "preferred-many"])
def test_a_home_node_goes_with_the_placement(mode: str) -> None:
    given = policy("/a", mode, "0-1", home_node=1) + policy("/a/b/c", mode, "0-1")
    own, inherited, other = (resolved(path, given).placement for path in ("/a", "/a/b", "/a/b/c"))
    assert own is not None and inherited is not None and other is not None
    assert (own.home_node, inherited.home_node) == (1, 1)
    assert other.home_node is None, "placement is one atom (I3)"


def test_a_home_node_may_be_one_without_memory_or_outside_of_the_nodes() -> None:
    """set_mempolicy_home_node(2) asks for a node that is online, no more."""
    empty = machine(("0", 300), ("1", 300), ("", 100), memoryless=(1,))
    effective = resolved("/a", policy("/a", "bind", "0,2", home_node=1), empty)
    assert effective.placement is not None and effective.placement.home_node == 1
    assert not any("home_node 1" in note for note in effective.notes)


def test_a_home_node_that_does_not_exist_is_left_out() -> None:
    effective = resolved("/a", policy("/a", "bind", "0-1", home_node=7))
    assert effective.placement is not None and effective.placement.home_node is None
    assert "home_node 7 does not exist on this machine and is left out" in effective.notes and "I6" in effective.rules


@pytest.mark.parametrize("mode", ["default", "local"])
def test_I6_no_flag_with_modes_without_nodes(mode: str) -> None:
    placement = resolved("/a", policy("/a", mode)).placement
    assert placement is not None and placement.mempolicy.flags == NO_FLAGS
    assert (mode == "default") == (placement.mempolicy == DEFAULT)


def test_I6_the_request_is_not_cut_by_the_cpuset() -> None:
    effective = resolved("/a", policy("/a", "interleave", "0-1"), facts={"/a": CgroupFacts(mems=frozenset({1}))})
    assert nodes_of(effective) == {0, 1}
    assert effective.placement is not None and effective.placement.shares(frozenset({1})) == {1: 1.0}


def test_I6_a_disjoint_cpuset_blocks() -> None:
    effective = resolved("/a", policy("/a", "interleave", "0"), facts={"/a": CgroupFacts(mems=frozenset({1}))})
    assert (effective.state, effective.placement) == ("blocked", None)
    assert effective.wanted is not None and effective.wanted.mempolicy.nodes == {0}
    assert "I6" in effective.rules


def test_I6_a_child_has_its_parents_cpuset_where_it_has_none() -> None:
    effective = resolved("/a/b", policy("/a/b", "bind", "0"), facts={"/a": CgroupFacts(mems=frozenset({1}))})
    assert effective.state == "blocked"


def test_I6_an_empty_cpuset_says_nothing() -> None:
    nothing: frozenset[int] = frozenset()
    effective = resolved("/a", policy("/a", "bind", "nearest"), facts={"/a": CgroupFacts(nothing, nothing)})
    assert nodes_of(effective) == {0, 1}


def test_I6_a_node_that_does_not_exist_is_cut() -> None:
    effective = resolved("/a", policy("/a", "interleave", "1-5"))
    assert nodes_of(effective) == {1} and effective.state == "active"
    assert "cut: there is no memory node 2-5 on this machine" in effective.notes
    assert "I6" in effective.rules


def test_I6_cut_to_nothing_is_blocked() -> None:
    effective = resolved("/a", policy("/a", "interleave", "5"))
    assert effective.state == "blocked" and effective.placement is None


def test_L5_what_the_kernel_does_by_itself_is_said() -> None:
    other = machine(("0", 300), ("", 100), table={0: 1, 1: 1})
    none = machine(("0", 300), ("", 100))
    given = policy("/a", "weighted-interleave", "all", weights={"0": 3, "1": 1})
    assert "L5" not in resolved("/a", given, DRAM_CXL).rules
    for on, says in ((other, "table says 1:1"), (none, "before 6.9")):
        effective = resolved("/a", given, on)
        assert effective.state == "active" and "L5" in effective.rules
        assert any(says in note and "3:1" in note for note in effective.notes)


def test_what_is_not_known_of_the_kernel_is_not_guessed() -> None:
    given = policy("/a", "weighted-interleave", "all", weights={"0": 3, "1": 1})
    unknown = replace(machine(("0", 300), ("", 100)), knows_weights=False)
    effective = resolved("/a", given, unknown)
    assert effective.state == "active" and "L5" not in effective.rules
    assert any("not known here" in note and "3:1" in note for note in effective.notes)
    blocked = resolved("/a", policy("/a", "weighted-interleave", "all", weights="kernel"), unknown)
    assert blocked.state == "blocked" and "is not known here" in blocked.notes[-1]


def test_I6_selectors_are_evaluated_again_for_who_inherits() -> None:
    """The request is inherited, not what it came to."""
    facts = {"/a": CgroupFacts(cpus=frozenset({0})), "/a/b": CgroupFacts(cpus=frozenset({2}))}
    given = policy("/a", "interleave", "nearest")
    assert nodes_of(resolved("/a", given, TWO_SOCKETS, facts)) == {0, 2}
    assert nodes_of(resolved("/a/b", given, TWO_SOCKETS, facts)) == {1, 3}


def test_I6_relative_nodes_are_places_and_need_not_exist() -> None:
    facts = {"/a": CgroupFacts(mems=frozenset({1, 3}))}
    effective = resolved("/a", policy("/a", "interleave", "0-5", flags=["relative"]), TWO_SOCKETS, facts)
    assert nodes_of(effective) == set(range(6))
    assert effective.placement is not None
    assert effective.placement.shares(frozenset({1, 3})) == {1: 0.5, 3: 0.5}


def test_L5_a_kernel_that_does_not_take_balancing_is_told_of() -> None:
    here = replace(DRAM_CXL, features=Features(balancing=frozenset({Mode.BIND})))
    many = resolved("/a", policy("/a", "preferred-many", flags=["balancing"]), on=here)
    assert many.state == "active" and "L5" in many.rules
    assert "this kernel does not take balancing with preferred-many: it is left out" in many.notes
    assert "L5" not in resolved("/a", policy("/a", "bind", flags=["balancing"]), on=here).rules


def test_L5_a_kernel_without_the_mode_blocks() -> None:
    here = replace(DRAM_CXL, features=Features(modes=frozenset({Mode.DEFAULT, Mode.BIND})))
    many = resolved("/a", policy("/a", "preferred-many"), on=here)
    assert (many.state, many.placement) == ("blocked", None)
    assert "blocked: this kernel has no mode preferred-many" in many.notes
    assert resolved("/a", policy("/a", "weighted-interleave"), on=here).state == "active"

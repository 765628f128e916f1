"""Rule I5: a policy's nodes as a wall for its subtree."""

from __future__ import annotations

from hypothesis import given as drawn
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import Flag
from hetmemd.policy.effective import Source
from hetmemd.policy.resolve import CgroupFacts
from tests.unit.policy.given import ETC, TWO_SOCKETS, mode_of, nodes_of, policy, resolved

FILE = f"{ETC}/50-test.toml"


def test_I5_a_childs_nodes_are_cut_and_its_mode_wins() -> None:
    given = policy("/a", "bind", "0-1", confine=True) + policy("/a/b", "interleave", "1-3")
    effective = resolved("/a/b", given, TWO_SOCKETS)
    assert (mode_of(effective), nodes_of(effective)) == ("interleave", {1})
    assert effective.state == "active"
    assert "I5" in effective.rules
    assert "the wall cuts nodes 1-3 to 1" in effective.notes
    assert effective.wall == frozenset({0, 1})


def test_I5_a_wall_that_changes_nothing_is_no_reason() -> None:
    effective = resolved("/a/b", policy("/a", nodes="0-1", confine=True) + policy("/a/b", nodes="1"), TWO_SOCKETS)
    assert "I5" not in effective.rules


def test_I5_walls_nest_by_intersection() -> None:
    given = (
        policy("/a", nodes="0-2", confine=True)
        + policy("/a/b", nodes="1-3", confine=True)
        + policy("/a/b/c", "interleave", "all")
    )
    assert nodes_of(resolved("/a/b", given, TWO_SOCKETS)) == {1, 2}
    assert nodes_of(resolved("/a/b/c", given, TWO_SOCKETS)) == {1, 2}


def test_I5_cut_to_nothing_gives_way_to_who_set_the_wall() -> None:
    given = policy("/a", "interleave", "0-1", confine=True) + policy("/a/b", "bind", "2")
    effective = resolved("/a/b", given, TWO_SOCKETS)
    assert effective.state == "conflict"
    assert (mode_of(effective), nodes_of(effective)) == ("interleave", {0, 1})
    assert effective.own == Source("/a/b", FILE, 6)
    assert effective.inherited_from == Source("/a", FILE, 1)
    assert effective.notes[0].startswith(f"conflict: {FILE}:6 gives way to the wall of {FILE}:1")


def test_I5_local_has_no_nodes_and_gives_way() -> None:
    effective = resolved("/a/b", policy("/a", nodes="1", confine=True) + policy("/a/b", "local"))
    assert (effective.state, mode_of(effective), nodes_of(effective)) == ("conflict", "bind", {1})


def test_I5_a_wall_that_an_outer_wall_cuts_to_nothing_is_no_wall() -> None:
    given = (
        policy("/a", "interleave", "0-1", confine=True)
        + policy("/a/b", "bind", "2-3", confine=True)
        + policy("/a/b/c", "bind", "1-2")
    )
    setter, child = resolved("/a/b", given, TWO_SOCKETS), resolved("/a/b/c", given, TWO_SOCKETS)
    assert setter.state == "conflict" and nodes_of(setter) == {0, 1}
    assert any("confine is no wall here" in note for note in setter.notes)
    assert child.state == "active" and nodes_of(child) == {1}


def test_I5_the_innermost_wall_gives_its_placement() -> None:
    given = (
        policy("/a", "interleave", "0-2", confine=True)
        + policy("/a/b", "bind", "1-2", confine=True)
        + policy("/a/b/c", "local")
    )
    effective = resolved("/a/b/c", given, TWO_SOCKETS)
    assert (mode_of(effective), nodes_of(effective)) == ("bind", {1, 2})
    assert effective.inherited_from is not None and effective.inherited_from.cgroup == "/a/b"


def test_I5_relative_is_folded_then_cut_then_static() -> None:
    given = policy("/a", nodes="0-2", confine=True) + policy("/a/b", "interleave", "0-1", flags=["relative"])
    facts = {"/a/b": CgroupFacts(mems=frozenset({1, 3}))}
    effective = resolved("/a/b", given, TWO_SOCKETS, facts)
    assert nodes_of(effective) == {1}
    assert effective.placement is not None and effective.placement.mempolicy.flags == Flag.STATIC_NODES


@drawn(
    st.frozensets(st.integers(0, 5), min_size=1),
    st.frozensets(st.integers(0, 3), min_size=1),
    st.dictionaries(st.sampled_from(["all", "1", "2-3", "4,5"]), st.integers(1, 255)).map(
        lambda more: {"all": 9} | more
    )
    | st.fixed_dictionaries({"0-5": st.integers(1, 255)})
    | st.tuples(*[st.integers(1, 255)] * 6).map(lambda each: {str(place): weight for place, weight in enumerate(each)})
    | st.just({"dram": 3, "cpuless": 1})
    | st.sampled_from(["bandwidth", "kernel"]),
)
def test_I5_a_wall_of_all_nodes_leaves_the_shares_of_relative_nodes(
    places: frozenset[int], mems: frozenset[int], weights: object
) -> None:
    """Weights are by place, before and after the places are folded."""
    nodes = ",".join(map(str, sorted(places)))
    relative = policy("/a/b", "weighted-interleave", nodes, weights=weights, flags=["relative"])
    facts = {"/a/b": CgroupFacts(mems=mems)}
    without = resolved("/a/b", relative, TWO_SOCKETS, facts).placement
    within = resolved("/a/b", policy("/a", "bind", "all", confine=True) + relative, TWO_SOCKETS, facts).placement
    assert without is not None and within is not None
    assert within.mempolicy.flags == Flag.STATIC_NODES
    assert within.shares(mems) == without.shares(mems)


def test_I5_a_relative_wall_stands_where_its_cpuset_is() -> None:
    given = policy("/a", nodes="0", flags=["relative"], confine=True) + policy("/a/b", nodes="all")
    effective = resolved("/a/b", given, TWO_SOCKETS, {"/a": CgroupFacts(mems=frozenset({2, 3}))})
    assert effective.wall == frozenset({2}) and nodes_of(effective) == {2}


def test_I5_selectors_of_the_walls_policy_never_lead_out_of_it() -> None:
    """`nearest` means the nodes of the cgroup that receives it; the wall is where it was set."""
    given = policy("/a", nodes="nearest", confine=True) + policy("/a/b", "local")
    facts = {"/a": CgroupFacts(cpus=frozenset({0})), "/a/b": CgroupFacts(cpus=frozenset({2}))}
    effective = resolved("/a/b", given, TWO_SOCKETS, facts)
    assert effective.state == "conflict" and nodes_of(effective) == {0, 2}


def test_I5_where_no_policy_reaches_nothing_is_applied_and_no_wall_is_crossed() -> None:
    effective = resolved("/a/b", policy("/a", nodes="0", confine=True, inherit="self"))
    assert (effective.state, effective.placement, effective.wall) == ("default", None, frozenset({0}))


def test_I5_the_wall_sets_no_wall_for_itself_by_relative_nodes() -> None:
    """With a wall, relative nodes are issued as static, also where the wall was set."""
    given = policy("/a", "interleave", "0-1", flags=["relative"], confine=True)
    effective = resolved("/a", given, TWO_SOCKETS, {"/a": CgroupFacts(mems=frozenset({1, 3}))})
    assert nodes_of(effective) == {1, 3}
    assert effective.placement is not None and effective.placement.mempolicy.flags == Flag.STATIC_NODES


def test_I5_a_home_node_outside_is_left_out() -> None:
    given = policy("/a", nodes="0", confine=True) + policy("/a/b", nodes="0-1", home_node=1)
    effective = resolved("/a/b", given)
    assert effective.placement is not None and effective.placement.home_node is None


def test_I5_a_wall_of_nodes_that_do_not_exist_lets_nothing_out() -> None:
    effective = resolved("/a/b", policy("/a", nodes="7", confine=True) + policy("/a/b", nodes="0"))
    assert effective.state == "blocked" and effective.placement is None


def test_I5_a_weight_for_every_node_that_is_left_is_enough() -> None:
    given = policy("/a", nodes="0", confine=True) + policy("/a/b", "weighted-interleave", "all", weights={"0": 5})
    effective = resolved("/a/b", given)
    assert effective.placement is not None and effective.placement.weights == {0: 5}

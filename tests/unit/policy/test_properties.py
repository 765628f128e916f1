"""What holds for every tree, every set of tables and every machine."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import Mode
from hetmemd.machine.topology import Machine
from hetmemd.policy import placing
from hetmemd.policy.effective import Effective
from hetmemd.policy.language import DIRECTORIES, Table
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import DRAM_CXL, TWO_SOCKETS, above, machine, policy, tables

MACHINES = st.sampled_from([DRAM_CXL, TWO_SOCKETS, machine(("0", None), ("", None)), machine(("0", 5)), Machine({})])
LEVELS = ["a", "b", r"c\x2dd"]
PATHS = st.lists(st.sampled_from(LEVELS), max_size=4).map(lambda levels: "/" + "/".join(levels))
PATTERNS = st.one_of(
    PATHS,
    st.lists(st.sampled_from([*LEVELS, "*", "**", "?", "[ab]", "c*"]), min_size=1, max_size=3).map(
        lambda levels: "/" + "/".join(levels)
    ),
)
NODES = st.sampled_from(["all", "dram", "cpuless", "nearest", "0", "1", "2-3", "0-1", "all!0", "7", "tier:22"])
NODE_SETS = st.none() | st.frozensets(st.integers(0, 4), min_size=1)
FACTS = st.builds(CgroupFacts, cpus=NODE_SETS, mems=NODE_SETS)
TREES = st.dictionaries(PATHS, FACTS, min_size=1, max_size=12)


@st.composite
def single(draw: st.DrawFn) -> str:
    """One table as text."""
    mode = draw(st.sampled_from(["", "default", "local", *["bind", "interleave", "weighted-interleave"] * 2]))
    more: dict[str, object] = {}
    nodes = draw(NODES)
    if mode not in ("", "default", "local"):
        more["confine"] = draw(st.booleans())
        if mode == "weighted-interleave":
            more["weights"] = draw(st.sampled_from(["bandwidth", "kernel", "capacity", {"all": 2, "0": 3}]))
            if nodes[0].isdigit() and isinstance(more["weights"], dict):
                more["weights"] = {"0-9": 3}
        elif draw(st.booleans()):
            more["flags"] = ["relative"]
    if draw(st.booleans()):
        more["inherit"] = draw(st.sampled_from(["self", "subtree"]))
    if draw(st.booleans()):
        more["tolerance"] = draw(st.sampled_from([0.1, 0.2]))
    if draw(st.booleans()):
        more["rate"] = draw(st.sampled_from(["1MiB/s", "2MiB/s"]))
    more["enabled"] = draw(st.sampled_from([True, True, True, False]))
    return policy(draw(PATTERNS), mode, nodes, **more)


@st.composite
def files(draw: st.DrawFn) -> tuple[tuple[Table, ...], ...]:
    """The tables of some files with different names."""
    names = draw(st.lists(st.sampled_from(["10", "20", "30", "40"]), unique=True, max_size=4))
    return tuple(
        tables(
            "".join(draw(st.lists(single(), max_size=3))),
            f"{name}.toml",
            draw(st.sampled_from(DIRECTORIES)),
        )
        for name in names
    )


def flat(given_files: tuple[tuple[Table, ...], ...]) -> tuple[Table, ...]:
    return tuple(table for file in given_files for table in file)


def without_losers(found: dict[str, Effective]) -> dict[str, Effective]:
    return {path: replace(effective, losers=()) for path, effective in found.items()}


@given(TREES, files(), MACHINES, st.randoms(use_true_random=False))
def test_F1_the_order_in_which_files_come_does_not_matter(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine, order: random.Random
) -> None:
    shuffled = list(given_files)
    order.shuffle(shuffled)
    assert resolve(tree, flat(given_files), on) == resolve(tree, flat(tuple(shuffled)), on)


@given(TREES, files(), MACHINES)
def test_an_unrelated_policy_changes_nothing(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    before = resolve(tree, flat(given_files), on)
    more = tables(policy("/elsewhere/**") + policy("/x*", confine=True, rate="1MiB/s"), "99.toml")
    assert resolve(tree, (*more, *flat(given_files)), on) == before


@given(TREES, files(), MACHINES)
def test_a_cgroup_is_concerned_only_by_what_matches_it_or_above(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    found = resolve(tree, flat(given_files), on)
    for path in tree:
        related = [each for each in flat(given_files) if any(each.pattern.matches(here) for here in above(path))]
        assert resolve(tree, related, on)[path] == found[path]


@given(TREES, files(), MACHINES)
def test_resolution_is_idempotent_and_no_matter_of_what_else_is_asked(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    chosen = flat(given_files)
    found = resolve(tree, chosen, on)
    assert resolve(dict(reversed(tree.items())), chosen, on) == found
    for path in tree:
        facts = {here: tree[here] for here in above(path) if here in tree}
        assert resolve(facts, chosen, on, only=[path]) == {path: found[path]}


@given(TREES, files(), MACHINES)
def test_I5_a_wall_is_never_crossed_by_what_is_issued(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    """Walls are worked out here from the tables anew: each own confining policy above, unless cut to nothing."""
    chosen = flat(given_files)
    whole = {here: tree.get(here, CgroupFacts()) for path in tree for here in above(path)}
    found = resolve(whole, chosen, on)
    by_place = {(table.file, table.line): table for table in chosen}
    for path, effective in found.items():
        wall: frozenset[int] | None = None
        confines = placing.Confines()
        for here in reversed(above(path)):
            facts = whole[here]
            confines = placing.Confines(
                confines.cpus if facts.cpus is None else facts.cpus, confines.mems if facts.mems is None else facts.mems
            )
            own = found[here].own
            table = by_place[own.file, own.line] if own else None
            if table is not None and table.confine and table.request is not None:
                nodes = placing.wall_nodes(table.request, on, confines)
                if wall is None or not nodes:
                    wall = nodes
                elif nodes & wall:
                    wall &= nodes
        if wall is not None and effective.placement is not None:
            issued = effective.placement.mempolicy
            assert issued.mode.takes_nodes
            assert issued.nodes and issued.nodes <= wall
            assert int(issued.flags) & (1 << 14) == 0, "relative nodes would be folded by the kernel, over the wall"


@given(TREES, files(), MACHINES)
def test_I6_what_is_issued_can_be_issued(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    for effective in resolve(tree, flat(given_files), on).values():
        assert (effective.placement is None) == (effective.state in ("default", "blocked"))
        assert effective.placement is None or effective.placement == effective.wanted
        if effective.placement is None:
            continue
        policy_of, weights = effective.placement.mempolicy, effective.placement.weights
        assert policy_of.mode.takes_nodes == bool(policy_of.nodes)
        assert policy_of.mode.takes_nodes == bool(int(policy_of.flags) & (1 << 14 | 1 << 15))
        assert set(weights) == (set(policy_of.nodes) if policy_of.mode is Mode.WEIGHTED_INTERLEAVE else set())
        assert all(1 <= weight <= 255 for weight in weights.values())
        shares = effective.placement.shares(on.memory_nodes)
        assert not shares or abs(sum(shares.values()) - 1) < 1e-9
        assert bool(shares) == policy_of.mode.takes_nodes


@given(TREES, files(), MACHINES)
def test_I7_a_child_pays_for_all_that_its_parent_pays_for(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    whole = {here: CgroupFacts() for path in tree for here in above(path)}
    found = resolve(whole, flat(given_files), on)
    for path in set(whole) - {"/"}:
        parent = found[path.rpartition("/")[0] or "/"].buckets
        child = found[path].buckets
        assert child[len(child) - len(parent) :] == parent
        assert len({bucket.key for bucket in child}) == len(child)


@given(TREES, files(), MACHINES)
def test_I1_a_cgroup_without_an_own_policy_is_as_its_parent(
    tree: dict[str, CgroupFacts], given_files: tuple[tuple[Table, ...], ...], on: Machine
) -> None:
    chosen = [table for table in flat(given_files) if table.inherit == "subtree"]
    assume(chosen)
    whole = {here: CgroupFacts() for path in tree for here in above(path)}
    found = resolve(whole, chosen, on)
    for path in set(whole) - {"/"}:
        if found[path].own is None:
            parent = found[path.rpartition("/")[0] or "/"]
            for same in ("state", "placement", "wanted", "handling", "buckets", "wall"):
                assert getattr(found[path], same) == getattr(parent, same)

"""Scenarios for properties: machines, trees with cpusets, and policy files that get in each other's way.

Most tables are about one path and what lies on it, so that walls nest, handling is inherited over several levels and
patterns compete, instead of each table standing alone somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from hetmemd.machine.topology import Machine
from hetmemd.policy.effective import Effective
from hetmemd.policy.language import DIRECTORIES, Table
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import DRAM_CXL, TWO_SOCKETS, above, machine, policy, tables

MACHINES = st.sampled_from(
    [
        TWO_SOCKETS,
        TWO_SOCKETS,
        DRAM_CXL,
        machine(("0", None), ("", None)),
        machine(("0", 300), ("1", 300), ("", 100), memoryless=(1,), tiers={0: 4, 2: 22}),
        machine(("0", 5)),
        Machine({}),
    ]
)
LEVELS = ["a", "b", r"c\x2dd"]
GLOBS = ["*", "**", "?", "[ab]", "[!a]", "c*"]
SPINES = st.lists(st.sampled_from(LEVELS), min_size=2, max_size=4)
NODES = st.sampled_from(
    ["all", "dram", "cpuless", "nearest", "0", "1", "2-3", "0-1", "1-2", "0,2", "all!0", "dram!0+2", "7", "tier:22"]
)
WEIGHTS = st.sampled_from(["bandwidth", "kernel", "capacity", {"all": 2, "0": 3}, {"dram": 4, "cpuless": 1}, {"0": 3}])
NODE_SETS = st.none() | st.frozensets(st.integers(0, 4), min_size=1)
FACTS = st.builds(CgroupFacts, cpus=NODE_SETS, mems=NODE_SETS)
HANDLING = st.fixed_dictionaries(
    {},
    optional={
        "existing": st.sampled_from(["rebalance", "once", "leave"]),
        "rate": st.sampled_from(["1MiB/s", "2MiB/s"]),
        "rate_total": st.sampled_from(["3MiB/s", "4MiB/s"]),
        "burst": st.sampled_from(["64KiB", "1MiB"]),
        "tolerance": st.sampled_from([0.1, 0.2]),
        "min_region": st.sampled_from([0, "2MiB"]),
        "min_age": st.sampled_from(["1s", "2s"]),
        "shared": st.sampled_from(["skip", "move"]),
        "foreign": st.sampled_from(["respect", "override"]),
    },
)


@dataclass(frozen=True)
class Scenario:
    tree: dict[str, CgroupFacts]
    """With everything above each cgroup."""
    files: tuple[tuple[Table, ...], ...]
    machine: Machine

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(table for file in self.files for table in file)

    def resolved(self) -> dict[str, Effective]:
        return resolve(self.tree, self.tables, self.machine)


def path(levels: list[str]) -> str:
    return "/" + "/".join(levels)


@st.composite
def patterns(draw: st.DrawFn, spine: list[str]) -> str:
    """Mostly the beginning of the spine, with some of its levels as globs."""
    if draw(st.integers(0, 4)) == 0:
        far = st.sampled_from(["/**/a", "/**/b", "/**", "/*/**/a", "/a/**/b"])
        return draw(far | st.lists(st.sampled_from([*LEVELS, *GLOBS]), max_size=3).map(path))
    begin = spine[: draw(st.integers(0, len(spine)))]
    return path([draw(globs(level)) if draw(st.integers(0, 3)) == 0 else level for level in begin])


def globs(level: str) -> st.SearchStrategy[str]:
    """Some that stand for the level as well."""
    return st.sampled_from([*GLOBS, level + "*", "*" + level, "**"])


@st.composite
def placements(draw: st.DrawFn) -> tuple[str, str, dict[str, object]]:
    """A mode, nodes, and the keys that go with them."""
    common = ["bind", "preferred-many", "interleave", "weighted-interleave"]
    mode = draw(st.sampled_from(["default", "local", "local", "preferred", *common, *common]))
    nodes = draw(NODES)
    more: dict[str, object] = {}
    if mode == "preferred" and nodes in ("2-3", "0-1", "1-2", "0,2"):
        nodes = "1"  # two numbers are a fault, selectors that come to two nodes are not
    if mode not in ("default", "local"):
        more["confine"] = draw(st.booleans())
        flags = draw(st.sampled_from([[], ["static"], ["relative"]]))
        if mode == "weighted-interleave":
            weights = draw(WEIGHTS)
            # Numbers that leave one of the numbers without a weight are a fault.
            more["weights"] = {"0-9": 3} if nodes[0].isdigit() and weights == {"0": 3} else weights
        if mode in ("bind", "preferred-many"):
            flags = flags + draw(st.sampled_from([[], ["balancing"]]))
            if draw(st.booleans()):
                more["home_node"] = draw(st.integers(0, 4))
        more["flags"] = flags
    if draw(st.integers(0, 5)) == 0:
        more["memory"] = draw(st.sampled_from(["all", ["heap", "anon"], ["all", "!stack"]]))
    return mode, nodes, more


@st.composite
def texts(draw: st.DrawFn, spine: list[str]) -> str:
    """One table."""
    mode, nodes, more = draw(placements()) if draw(st.integers(0, 3)) else ("", "", {})
    more |= draw(HANDLING)
    if draw(st.integers(0, 3)) == 0:
        more["inherit"] = draw(st.sampled_from(["self", "subtree"]))
    more["enabled"] = draw(st.sampled_from([True, True, True, False]))
    return policy(draw(patterns(spine)), mode, nodes, **more)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    spine = draw(SPINES)
    others = draw(st.lists(st.lists(st.sampled_from(LEVELS), max_size=4), max_size=4))
    paths = sorted({here for levels in [spine, *others] for here in above(path(levels))})
    facts = {here: draw(FACTS) if draw(st.booleans()) else CgroupFacts() for here in paths}
    names = draw(st.lists(st.sampled_from(["10", "20", "30", "40"]), unique=True, max_size=4))
    files = tuple(
        tables(
            "".join(draw(st.lists(texts(spine), max_size=3))),
            f"{name}.toml",
            draw(st.sampled_from(DIRECTORIES)),
        )
        for name in names
    )
    return Scenario(facts, files, draw(MACHINES))


@st.composite
def rivals(draw: st.DrawFn) -> Scenario:
    """Tables whose patterns nearly all stand for some cgroup of one path, from files in any directory."""
    levels = draw(st.lists(st.sampled_from("ab"), min_size=2, max_size=5))
    names = draw(st.lists(st.sampled_from(["10", "20", "30"]), unique=True, min_size=1))
    files = []
    for name in names:
        found = draw(st.lists(standing_for(levels), min_size=1, max_size=3))
        text = "".join(policy(each, nodes="0", enabled=draw(st.integers(0, 5)) > 0) for each in found)
        files.append(tables(text, f"{name}.toml", draw(st.sampled_from([DIRECTORIES[0], *DIRECTORIES[:2]]))))
    return Scenario(dict.fromkeys(above(path(levels)), CgroupFacts()), tuple(files), DRAM_CXL)


@st.composite
def standing_for(draw: st.DrawFn, levels: list[str]) -> str:
    """A pattern that matches one of the cgroups on the path."""
    left = levels[: draw(st.integers(1, len(levels)))]
    made: list[str] = []
    while left:
        level = draw(st.sampled_from(["**", "*", "?", "[ab]", left[0] + "*", "*" + left[0], left[0], left[0]]))
        made.append(level)
        left = left[draw(st.integers(1, len(left))) if level == "**" else 1 :]
    return path(made)

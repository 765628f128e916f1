"""What holds for every tree, every set of tables and every machine."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import Mode
from hetmemd.policy import placing
from hetmemd.policy.effective import Handling
from hetmemd.policy.language import HANDLING_KEYS, RATE_KEYS, Table, strength
from hetmemd.policy.matching import Matcher
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import above, policy, tables
from tests.unit.policy.scenarios import Scenario, rivals, scenarios, texts


@given(scenarios(), st.randoms(use_true_random=False))
def test_F1_the_order_in_which_files_come_does_not_matter(scenario: Scenario, order: random.Random) -> None:
    shuffled = list(scenario.files)
    order.shuffle(shuffled)
    chosen = [table for file in shuffled for table in file]
    assert resolve(scenario.tree, chosen, scenario.machine) == scenario.resolved()


@given(scenarios(), st.permutations(["10", "20", "30", "40"]))
def test_F1_names_matter_by_their_order_alone(scenario: Scenario, names: list[str]) -> None:
    """Other names in the same order, and everything holds from the renamed files."""
    in_order = {name: f"x{number}" for number, name in enumerate(sorted(names))}

    def renamed(file: str) -> str:
        return file.replace(names_of[file], in_order[names_of[file]])

    names_of = {table.file: table.name.removesuffix(".toml") for table in scenario.tables}
    other = resolve(scenario.tree, [_moved(table, renamed(table.file)) for table in scenario.tables], scenario.machine)
    for path, effective in scenario.resolved().items():
        assert other[path].placement == effective.placement
        assert other[path].handling == effective.handling
        for mine, its in ((effective.own, other[path].own), (effective.inherited_from, other[path].inherited_from)):
            assert (mine is None) == (its is None)
            assert mine is None or its is None or (renamed(mine.file), mine.line) == (its.file, its.line)


def _moved(table: Table, file: str) -> Table:
    return Table(
        file,
        table.line,
        table.index,
        table.pattern,
        table.request,
        table.handling,
        table.enabled,
        table.inherit,
        table.confine,
    )


@given(scenarios(), st.lists(texts(["a", "b"]), min_size=1, max_size=3))
def test_an_unrelated_policy_changes_nothing(scenario: Scenario, texts_elsewhere: list[str]) -> None:
    elsewhere = (
        "".join(texts_elsewhere).replace("cgroup = '/", "cgroup = '/elsewhere/").replace("elsewhere/'", "elsewhere'")
    )
    more = tables(elsewhere, "99.toml")
    assert resolve(scenario.tree, (*more, *scenario.tables), scenario.machine) == scenario.resolved()


@given(scenarios())
def test_a_cgroup_is_concerned_only_by_what_matches_it_or_above(scenario: Scenario) -> None:
    found = scenario.resolved()
    for path in scenario.tree:
        related = [each for each in scenario.tables if any(each.pattern.matches(here) for here in above(path))]
        assert resolve(scenario.tree, related, scenario.machine)[path] == found[path]


@given(scenarios())
def test_resolution_is_idempotent_and_no_matter_of_what_else_is_asked(scenario: Scenario) -> None:
    found = scenario.resolved()
    assert scenario.resolved() == found
    assert resolve(dict(reversed(scenario.tree.items())), scenario.tables, scenario.machine) == found
    for path in scenario.tree:
        facts = {here: scenario.tree[here] for here in above(path)}
        assert resolve(facts, scenario.tables, scenario.machine, only=[path]) == {path: found[path]}


@given(scenarios())
def test_resolution_of_what_was_resolved_changes_nothing(scenario: Scenario) -> None:
    """What is issued, said outright for that very cgroup, is issued again: walls, cuts and weights are done."""
    for path, effective in scenario.resolved().items():
        placement = effective.placement
        if placement is None or not placement.mempolicy.nodes or int(placement.mempolicy.flags) & 1 << 14:
            continue
        more: dict[str, object] = {}
        if placement.weights:
            more["weights"] = {str(node): weight for node, weight in placement.weights.items()}
        if int(placement.mempolicy.flags) & 1 << 13:
            more["flags"] = ["balancing"]
        if placement.memory != ("all",):
            more["memory"] = list(placement.memory)
        if placement.home_node is not None:
            more["home_node"] = placement.home_node
        nodes = ",".join(map(str, sorted(placement.mempolicy.nodes)))
        said = tables(policy(path, placement.mempolicy.mode.word, nodes, **more), "zz.toml")
        again = resolve(scenario.tree, [*_only_walls(scenario, path), *said], scenario.machine)[path]
        assert again.placement == placement
        assert again.state == "active"


def _only_walls(scenario: Scenario, path: str) -> list[Table]:
    """What stands above the cgroup, so that its walls stand; nothing that could own the cgroup itself."""
    found = scenario.resolved()
    owners = {(own.file, own.line) for here in above(path)[1:] if (own := found[here].own)}
    return [
        table
        for table in scenario.tables
        if (table.file, table.line) in owners and not table.pattern.matches(path) and table.enabled
    ]


@given(scenarios())
def test_I5_a_wall_is_never_crossed_by_what_is_issued(scenario: Scenario) -> None:
    """Walls are worked out here from the tables anew: each own confining policy above, unless cut to nothing."""
    found = scenario.resolved()
    by_place = {(table.file, table.line): table for table in scenario.tables}
    for path, effective in found.items():
        wall: frozenset[int] | None = None
        confines = placing.Confines()
        for here in reversed(above(path)):
            facts = scenario.tree[here]
            confines = placing.Confines(
                confines.cpus if facts.cpus is None else facts.cpus, confines.mems if facts.mems is None else facts.mems
            )
            own = found[here].own
            table = by_place[own.file, own.line] if own else None
            if table is not None and table.confine and table.request is not None:
                nodes = placing.wall_nodes(table.request, scenario.machine, confines)
                if wall is None or not nodes:
                    wall = nodes
                elif nodes & wall:
                    wall &= nodes
        assert effective.wall == wall
        if wall is not None and effective.placement is not None:
            issued = effective.placement.mempolicy
            assert issued.mode.takes_nodes
            assert issued.nodes and issued.nodes <= wall
            assert int(issued.flags) & (1 << 14) == 0, "relative nodes would be folded by the kernel, over the wall"
            home = effective.placement.home_node
            assert home is None or home in wall


@given(scenarios())
def test_I6_what_is_issued_can_be_issued(scenario: Scenario) -> None:
    on = scenario.machine
    for path, effective in scenario.resolved().items():
        assert (effective.placement is None) == (effective.state in ("default", "blocked"))
        assert effective.placement is None or effective.placement == effective.wanted
        if effective.placement is None:
            continue
        issued, weights = effective.placement.mempolicy, effective.placement.weights
        flags = int(issued.flags)
        assert issued.mode.takes_nodes == bool(issued.nodes)
        assert issued.mode.takes_nodes == (flags & (1 << 14 | 1 << 15) in (1 << 14, 1 << 15))
        assert not flags & 1 << 13 or issued.mode in (Mode.BIND, Mode.PREFERRED_MANY)
        assert issued.mode is not Mode.PREFERRED or len(issued.nodes) == 1
        assert set(weights) == (set(issued.nodes) if issued.mode is Mode.WEIGHTED_INTERLEAVE else set())
        assert all(1 <= weight <= 255 for weight in weights.values())
        assert effective.placement.home_node is None or effective.placement.home_node in on.nodes
        if issued.nodes and not flags & 1 << 14:
            assert issued.nodes <= on.memory_nodes
            mems = next((m for here in above(path) if (m := scenario.tree[here].mems)), None)
            assert mems is None or issued.nodes & mems, "a disjoint cpuset blocks"
        shares = effective.placement.shares(on.memory_nodes)
        assert not shares or abs(sum(shares.values()) - 1) < 1e-9
        assert bool(shares) == issued.mode.takes_nodes


@given(scenarios())
def test_I7_a_child_pays_for_all_that_its_parent_pays_for(scenario: Scenario) -> None:
    found = scenario.resolved()
    by_place = {(table.file, table.line): table for table in scenario.tables}
    for path in set(scenario.tree) - {"/"}:
        parent, child = found[above(path)[1]].buckets, found[path].buckets
        assert child[len(child) - len(parent) :] == parent
        assert len({bucket.key for bucket in child}) == len(child)
        own = found[path].own
        table = by_place[own.file, own.line] if own else None
        said = table.handling.said() if table else {}
        limits = table is not None and bool(table.request or said.keys() & set(RATE_KEYS))
        assert len(child) - len(parent) == (1 + ("rate_total" in said) if limits else 0)


@given(scenarios())
def test_I1_a_cgroup_without_an_own_policy_is_as_its_parent(scenario: Scenario) -> None:
    chosen = [table for table in scenario.tables if table.inherit == "subtree"]
    tree = dict.fromkeys(scenario.tree, CgroupFacts())
    found = resolve(tree, chosen, scenario.machine)
    for path in set(tree) - {"/"}:
        if found[path].own is None:
            for same in ("state", "placement", "wanted", "handling", "buckets", "wall"):
                assert getattr(found[path], same) == getattr(found[above(path)[1]], same)


@given(scenarios())
def test_I1_I2_I3_placement_is_that_of_the_nearest_who_hands_it_on(scenario: Scenario) -> None:
    """Whole, from one table: its mode with its memory. A wall that replaces it is the business of I5."""
    found = scenario.resolved()
    by_place = {(table.file, table.line): table for table in scenario.tables}
    owns = {path: by_place[own.file, own.line] for path, effective in found.items() if (own := effective.own)}
    for path, effective in found.items():
        givers = [path, *(here for here in above(path)[1:] if here in owns and owns[here].inherit == "subtree")]
        giver = next((here for here in givers if here in owns and owns[here].request), None)
        replaced = any("gives way to the wall" in note for note in effective.notes)
        if giver is None:
            assert (effective.state, effective.wanted) == ("default", None)
        elif not replaced:
            request = owns[giver].request
            assert request is not None and effective.wanted is not None
            assert effective.wanted.mempolicy.mode is request.mode
            assert effective.wanted.memory == request.memory
            source = effective.inherited_from or effective.own
            assert source is not None
            assert (source.cgroup, source.file, source.line) == (giver, owns[giver].file, owns[giver].line)


@given(scenarios())
def test_I4_handling_comes_key_by_key_from_the_nearest_that_says_it(scenario: Scenario) -> None:
    """Against the rule's own words: the own table, else the nearest above that hands it on (I2), else the default."""
    found = scenario.resolved()
    by_place = {(table.file, table.line): table for table in scenario.tables}
    owns = {path: by_place[own.file, own.line] for path, effective in found.items() if (own := effective.own)}
    for path, effective in found.items():
        for key in set(HANDLING_KEYS) - set(RATE_KEYS):
            speakers = [owns[path]] if path in owns else []
            speakers += [owns[here] for here in above(path)[1:] if here in owns and owns[here].inherit == "subtree"]
            said = (value for table in speakers if (value := getattr(table.handling, key)) is not None)
            assert getattr(effective.handling, key) == next(said, getattr(Handling(), key))


@given(rivals())
def test_M1_M3_the_choice_is_a_total_order(scenario: Scenario) -> None:
    """Against a list of the rule's words, table by table, with `**` asked of everything above."""
    found = scenario.resolved()
    for path, effective in found.items():
        matching = [
            table
            for table in scenario.tables
            if table.enabled
            and table.pattern.matches(path)
            and not (
                "**" in table.pattern.text.split("/") and any(table.pattern.matches(here) for here in above(path)[1:])
            )
        ]
        own = (effective.own.file, effective.own.line) if effective.own else None
        strongest = max(matching, key=_strength) if matching else None
        assert own == (None if strongest is None else (strongest.file, strongest.line))
        # A total order: whoever wins among all wins against each alone, whichever comes first.
        for table in matching:
            assert strongest is not None
            for both in ([strongest, table], [table, strongest]):
                assert Matcher(both).match(path, None).own is strongest
    places = [_strength(table) for table in scenario.tables]
    assert len(set(places)) == len(places), "no two are equal"


def _strength(table: Table) -> tuple[object, ...]:
    text = table.pattern.text
    literal = min([text.index(sign) for sign in "*?[" if sign in text], default=None)
    prefix = len(text) if literal is None else literal
    return (-strength(table.file), literal is None, prefix, len(text), table.name, table.index)

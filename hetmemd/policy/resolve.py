"""From cgroups, tables and a machine to what holds for each cgroup, with the reasons. Pure.

One walk from the root: every cgroup is handed a placement, handling, walls and buckets by its parent, puts its own
policy on top, and hands on (I1 to I8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hetmemd.kernel import nodelist
from hetmemd.kernel.mempolicy import Mode
from hetmemd.machine.topology import Machine
from hetmemd.policy import placing
from hetmemd.policy.effective import Bucket, Effective, Handling, Placement, Source
from hetmemd.policy.language import RATE_KEYS, Request, Table
from hetmemd.policy.library import Library
from hetmemd.policy.matching import Match, Matcher, Reach
from hetmemd.policy.placing import Confines, Placed
from hetmemd.policy.quantity import burst_of


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What resolution has to know of one cgroup. None or nothing means: as the parent, and at the root: not confined.

    A cpuset is empty only where child partitions have taken all of it (cgroup-v2.rst, "cpuset.cpus.partition").
    """

    cpus: frozenset[int] | None = None
    """cpuset.cpus.effective."""
    mems: frozenset[int] | None = None
    """Nodes that its tasks may use, where that is known for the cgroup as a whole. Without it nothing is `blocked`
    for a cpuset's sake here: the threads' own Mems_allowed tell (I6)."""
    exists: bool = True
    """False for a cgroup that is resolved as if it were there (M2)."""


_NO_FACTS = CgroupFacts()


@dataclass(frozen=True, slots=True)
class _Owned:
    """A table, and the cgroup whose own policy it is."""

    table: Table
    request: Request
    cgroup: str

    @property
    def source(self) -> Source:
        return Source(self.cgroup, self.table.file, self.table.line)


@dataclass(frozen=True, slots=True)
class _Wall:
    nodes: frozenset[int]
    """After all outer walls: never empty for their sake."""
    owner: _Owned


@dataclass(frozen=True, slots=True)
class _Handed:
    """What a cgroup gives to its children. Walls and buckets go past `inherit = "self"` (I2)."""

    placement: _Owned | None
    handling: Mapping[str, Any]
    """By key, rates left out (I4)."""
    shown_rates: Mapping[str, Any]
    wall: _Wall | None
    buckets: tuple[Bucket, ...]
    reached: Reach | None
    """None at the top, above the root."""
    confines: Confines
    skips: bool
    """Some cgroup above kept its policy from its children."""


def resolve(
    tree: Mapping[str, CgroupFacts],
    library: Library | Sequence[Table],
    machine: Machine,
    defaults: Handling | None = None,
    only: Iterable[str] | None = None,
) -> dict[str, Effective]:
    """What holds for each cgroup of `tree`, or for those of `only`. Ancestors that `tree` lacks are supplied.

    `library` may be a plain sequence of tables. `defaults` are those of /etc/hetmemd.toml.
    """
    if not isinstance(library, Library):
        resolution = _Resolution(tree, Matcher(library), frozenset(), machine, defaults or Handling())
    else:
        matcher = Matcher(library.tables, library.masked_tables)
        resolution = _Resolution(tree, matcher, library.on_last_good, machine, defaults or Handling())
    return {path: resolution.effective(path) for path in (tree if only is None else only)}


class _Resolution:
    def __init__(
        self,
        tree: Mapping[str, CgroupFacts],
        matcher: Matcher,
        on_last_good: frozenset[str],
        machine: Machine,
        defaults: Handling,
    ) -> None:
        self._tree = tree
        self._matcher = matcher
        self._on_last_good = on_last_good
        self._machine = machine
        self._defaults = defaults
        self._cgroups: dict[str, _Cgroup] = {}
        self._placed: dict[tuple[int, Confines, frozenset[int] | None], Placed | str] = {}
        self._top = _Handed(None, {}, {}, None, (), None, Confines(), False)

    def effective(self, path: str) -> Effective:
        return self._cgroup(path).effective(self)

    def _cgroup(self, path: str) -> _Cgroup:
        """The cgroup and, made first, everything above it."""
        todo: list[str] = []
        here = path
        while here not in self._cgroups:
            todo.append(here)
            if here == "/":
                break
            here = here.rpartition("/")[0] or "/"
        for each in reversed(todo):
            above = self._top if each == "/" else self._cgroups[each.rpartition("/")[0] or "/"].handed
            match = self._matcher.match(each, above.reached)
            self._cgroups[each] = _Cgroup(each, self._tree.get(each, _NO_FACTS), match, above, self)
        return self._cgroups[path]

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def defaults(self) -> Handling:
        return self._defaults

    def is_last_good(self, table: Table) -> bool:
        return table.file in self._on_last_good

    def place(self, owned: _Owned, confines: Confines, wall: frozenset[int] | None) -> Placed:
        """`placing.place`, once for equal questions. `WallError`."""
        cpus = confines.cpus if owned.request.asks_for_cpus else None
        key = (id(owned.request), Confines(cpus, confines.mems), wall)
        if key not in self._placed:
            try:
                self._placed[key] = placing.place(owned.request, self._machine, confines, wall)
            except placing.WallError as error:
                self._placed[key] = str(error)
        found = self._placed[key]
        if isinstance(found, str):
            raise placing.WallError(found)
        return found


class _Cgroup:
    """One cgroup on the walk: what it was handed, what it owns, what it hands on."""

    def __init__(self, path: str, facts: CgroupFacts, match: Match, above: _Handed, resolution: _Resolution) -> None:
        self.path = path
        self.match = match
        self.above = above
        self.facts = facts
        self.confines = Confines(
            facts.cpus or above.confines.cpus,
            facts.mems or above.confines.mems,
        )
        table = match.own
        self.owned = _Owned(table, table.request, path) if table and table.request else None
        self.placement = self.owned or above.placement
        said = table.handling.said() if table else {}
        self.handling: Mapping[str, Any] = {
            **above.handling,
            **{key: value for key, value in said.items() if key not in RATE_KEYS},
        }
        self.buckets, self.shown_rates = self._buckets(table, said, above, resolution.defaults)
        self.wall_note = ""
        self.wall = self._wall(table, above, resolution.machine)
        keeps = table is not None and table.inherit == "self"
        self.handed = _Handed(
            above.placement if keeps else self.placement,
            above.handling if keeps else self.handling,
            self.shown_rates,
            self.wall,
            self.buckets,
            match.reached,
            self.confines,
            skips=keeps or (above.skips and self.owned is None),
        )

    def _buckets(
        self, table: Table | None, said: Mapping[str, Any], above: _Handed, defaults: Handling
    ) -> tuple[tuple[Bucket, ...], Mapping[str, Any]]:
        """A table that is handling only and says no rate is no limit: what it adds to moves has limits above."""
        if table is None or not (table.request or any(key in said for key in RATE_KEYS)):
            return above.buckets, above.shown_rates
        rate = said.get("rate", defaults.rate)
        burst = said.get("burst", defaults.burst)
        total = said.get("rate_total", defaults.rate_total if table.request else None)
        own = [Bucket(f"cgroup:{self.path}", rate, burst or burst_of(rate))]
        if total:
            own.append(Bucket(f"table:{table.file}#{table.index}", total, burst or burst_of(total)))
        shown = {"rate": rate, "rate_total": total, "burst": burst}
        return (*own, *above.buckets), shown

    def _wall(self, table: Table | None, above: _Handed, machine: Machine) -> _Wall | None:
        if table is None or not table.confine or self.owned is None:
            return above.wall
        nodes = placing.wall_nodes(self.owned.request, machine, self.confines)
        if above.wall is None:
            return _Wall(nodes, self.owned)
        left = nodes & above.wall.nodes
        if nodes and not left:
            outer = f"{_list(above.wall.nodes)} of {_place(above.wall.owner)}"
            self.wall_note = f"confine is no wall here: the wall {outer} leaves nothing of nodes {_list(nodes)}"
            return above.wall
        return _Wall(left, self.owned)

    def effective(self, resolution: _Resolution) -> Effective:
        placed, state, holder, conflict = self._place(resolution)
        own = Source(self.path, self.match.own.file, self.match.own.line) if self.match.own else None
        handling = replace(resolution.defaults, **self.handling, **self.shown_rates)
        inherited = holder.source if holder and holder is not self.owned else None
        notes = [conflict, self.wall_note, *placed.notes]
        return Effective(
            cgroup=self.path,
            state=state,
            placement=placed.placement,
            handling=handling,
            own=own,
            inherited_from=inherited,
            rules=self._rules(placed, state, holder, resolution),
            buckets=self.buckets,
            losers=self.match.losers,
            notes=tuple(filter(None, notes)),
            wanted=placed.wanted,
            wall=self.wall.nodes if self.wall else None,
        )

    def _place(self, resolution: _Resolution) -> tuple[Placed, str, _Owned | None, str]:
        """What holds, the state, whose placement it is, and a sentence where a wall replaced another."""
        if self.placement is None:
            return Placed(None, None), "default", None, ""
        wall = self.wall
        try:
            placed = resolution.place(self.placement, self.confines, wall.nodes if wall else None)
            return placed, "active" if placed.placement else "blocked", self.placement, ""
        except placing.WallError as error:
            assert wall is not None
            conflict = f"conflict: {_place(self.placement)} gives way to the wall of {_place(wall.owner)}: {error}"
        try:
            placed = resolution.place(wall.owner, self.confines, wall.nodes)
        except placing.WallError:
            # The selectors of the wall's policy mean other nodes here than where it was set: the wall stays.
            placed = placing.within(wall.nodes, wall.owner.request, resolution.machine, self.confines)
        return placed, "conflict" if placed.placement else "blocked", wall.owner, conflict

    def _rules(self, placed: Placed, state: str, holder: _Owned | None, resolution: _Resolution) -> tuple[str, ...]:
        table, above = self.match.own, self.above
        said = table.handling.said() if table else {}
        facts = (
            ("F1", self.match.is_masked),
            ("F2", any(each and resolution.is_last_good(each) for each in (table, holder and holder.table))),
            ("M1", table is not None),
            ("M2", not self.facts.exists),
            ("M3", table is not None and table.pattern.is_topmost),
            ("I1", self.owned is None),
            ("I2", above.skips and self.owned is None),
            ("I3", self.owned is not None and above.placement is not None),
            ("I4", table is not None and any(key not in said for key in above.handling)),
            ("I5", bool(state == "conflict" or (holder and holder is not self.placement) or self.wall_note)),
            ("I7", len(self.buckets) > 1),
            ("I8", self.owned is not None and self.owned.request.mode is Mode.DEFAULT),
        )
        rules = [rule for rule, holds in facts if holds]
        return tuple(sorted({*rules, *placed.rules}, key=_order))


def _order(rule: str) -> tuple[int, int]:
    return "FMITL".index(rule[0]), int(rule[1:])


def _place(owned: _Owned) -> str:
    return f"{owned.table.file}:{owned.table.line}"


def _list(nodes: frozenset[int]) -> str:
    return nodelist.format_list(nodes) or "(none)"


__all__ = ["CgroupFacts", "Effective", "Placement", "resolve"]

"""What is to be done about the regions of one process: what should be, compared with what numa_maps shows. Pure.

The counterpart of `decide`, which does this for threads (rules T3, T4, I6, L1, L3). Deciding twice without an act in
between decides the same; deciding after the act decides nothing more.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hetmemd.engine.decide import nodes_within, shows
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.memory.regions import Region
from hetmemd.memory.scope import Scope
from hetmemd.remote.regions import Bind, HomeNode, RegionCall

LOCAL = Mempolicy(Mode.LOCAL)
ALWAYS = frozenset({"heap", "anon", "stack"})
"""Classes that are bound without further question."""
ON_CONDITION = frozenset({"shm", "hugetlb"})
"""Classes that are bound where somebody looked whether they may be. `exec` and `file` never are: the page cache ignores
a region's policy; and `guard` and `special` are nobody's memory."""
TAKES_HOME = (Mode.BIND, Mode.PREFERRED_MANY)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the policy of a cgroup asks of the regions of the processes in it."""

    policy: Mempolicy | None
    """As it is issued; None where none reaches the process: then what hetmemd bound is undone (L3, T3)."""
    scope: Scope
    home_node: int | None = None
    min_region: int = 0
    """Bytes of neighbouring regions of one class, below which they are not bound to the policy. What the policy leaves
    out is kept local however small it is."""
    overrides: bool = False
    """`foreign = "override"`."""

    @property
    def is_regional(self) -> bool:
        """Whether any region is to have a policy of its own."""
        return self.policy is not None and (not self.scope.is_all or self.home_node is not None)

    def of(self, kind: str) -> Mempolicy | None:
        """The policy that a region of this class should have of its own; None for none."""
        if self.policy is None or kind not in ALWAYS | ON_CONDITION:
            return None
        if kind not in self.scope.classes:
            return None if self.scope.is_inclusive else LOCAL
        # A home node is a property of a region's policy: the task's has none.
        if (self.scope.is_inclusive or self.home_node is not None) and self.policy != DEFAULT:
            return self.policy
        return None

    def is_met(self, region: Region, allowed: frozenset[int]) -> bool:
        """Whether what a region shows is what it should have of its own."""
        wanted = self.of(region.kind)
        return wanted is not None and region.policy is not None and shows(region.policy, wanted, allowed)


@dataclass(frozen=True, slots=True)
class RegionMark:
    """What the ledger knows of a range of addresses."""

    start: int
    end: int
    issued: Mempolicy
    replaced: Mempolicy = DEFAULT
    earlier: Mempolicy | None = None
    """What was issued before, while it is not known whether the newer value arrived."""
    home: int | None = None
    """The home node, which the kernel shows nowhere."""


@dataclass(frozen=True, slots=True)
class Change:
    """A range that is to be bound; DEFAULT takes away what it has."""

    start: int
    end: int
    policy: Mempolicy
    replaced: Mempolicy
    """What it gets back when the policy goes."""
    home: int | None = None
    only_home: bool = False
    """It has the policy already."""
    overrides: bool = False
    """What it has of its own is the application's (T4)."""
    undoes: bool = False
    """What hetmemd gave it is taken away."""

    @property
    def calls(self) -> list[RegionCall]:
        calls: list[RegionCall] = []
        if not self.only_home:
            calls.append(Bind(self.start, self.end - self.start, self.policy))
        if self.home is not None:
            calls.append(HomeNode(self.start, self.end - self.start, self.home))
        return calls


Range = TypeVar("Range", RegionMark, Change)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One region, and why it is as it is."""

    region: Region
    wanted: Mempolicy | None
    """What it should have of its own."""
    state: str
    """`bound` (has what it should), `task` (should have none of its own, and has none), `change`, `foreign` (the
    application's, left alone), `left` (would be bound, but for `reason`)."""
    reason: str = ""
    ours: Mempolicy | None = None
    """What hetmemd issued to it, where what it has of its own is that."""


@dataclass(frozen=True, slots=True)
class Regionwise:
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...]
    """Ascending, neighbours joined."""


def decide_regions(
    found: Sequence[Region],
    asked: Asked,
    allowed: frozenset[int],
    marks: Sequence[RegionMark] = (),
    issued: Collection[Mempolicy] = (),
    *,
    is_foreign: bool = False,
    cleared: Collection[int] = (),
) -> Regionwise:
    """Compare regions (ascending) with what is asked.

    `marks` (ascending, disjoint) and `issued` are the ledger's, as for threads: where no mark tells, a value with nodes
    that was issued since boot is ours (T4). `is_foreign`: a thread carries a policy of the application's own, and so
    its regions are the application's as well. `cleared` are the starts of regions of shared and huge memory that may be
    bound. `allowed` as for threads (I6).
    """
    ledger = _Marks(marks, issued, allowed)
    home = asked.home_node if asked.policy and asked.policy.mode in TAKES_HOME else None
    verdicts: list[Verdict] = []
    changes: list[Change] = []
    for region in found:
        mark = ledger.mark_of(region.start, region.end)
        ours = ledger.value_of(region, mark)
        verdict = _judge(region, asked, allowed, ours, is_foreign, cleared)
        verdicts.append(verdict)
        if change := _change(verdict, mark, asked, home):
            changes.append(change)
    return Regionwise(tuple(verdicts), tuple(joined(changes)))


def _change(verdict: Verdict, mark: RegionMark | None, asked: Asked, home: int | None) -> Change | None:
    region, wanted = verdict.region, verdict.wanted
    replaced = mark.replaced if mark else DEFAULT
    if verdict.reason == "undo":
        return Change(region.start, region.end, replaced, replaced, undoes=True)
    its_home = home if wanted is not None and wanted == asked.policy else None
    if verdict.state == "change":
        assert wanted is not None
        if region.is_bound and verdict.ours is None and region.policy is not None:
            return Change(region.start, region.end, wanted, region.policy, its_home, overrides=True)
        return Change(region.start, region.end, wanted, replaced, its_home)
    if verdict.state == "bound" and verdict.ours is not None and (mark.home if mark else None) != its_home:
        # Taken away it is by binding anew: there is no call for it.
        return Change(region.start, region.end, verdict.ours, replaced, its_home, only_home=its_home is not None)
    return None


def _judge(
    region: Region,
    asked: Asked,
    allowed: frozenset[int],
    ours: Mempolicy | None,
    is_foreign: bool,
    cleared: Collection[int],
) -> Verdict:
    wanted = asked.of(region.kind)
    foreign = region.is_bound and ours is None
    if region.kind == "special":
        return Verdict(region, None, "task")
    if region.kind == "guard" and asked.policy is not None:
        # It holds nothing; what it has it keeps, as it may be memory again in a moment.
        return Verdict(region, None, "foreign" if foreign else "task", ours=ours)
    if wanted is None:
        if ours is not None:
            return Verdict(region, None, "change", "undo", ours=ours)
        return Verdict(region, None, "foreign" if foreign else "task")
    blocked = wanted.mode.takes_nodes and not nodes_within(wanted, allowed)
    if blocked:
        if ours is not None:
            return Verdict(region, wanted, "change", "undo", ours=ours)
        return Verdict(region, wanted, "left", "no-allowed-node")
    if region.policy is not None and shows(region.policy, wanted, allowed):
        return Verdict(region, wanted, "bound", ours=ours)
    if (foreign or is_foreign) and not asked.overrides:
        reason = f"own-{region.policy.mode.word}" if foreign and region.policy else "thread"
        return Verdict(region, wanted, "foreign", reason, ours=ours)
    if region.kind in ON_CONDITION and region.start not in cleared:
        return Verdict(region, wanted, "left", "shared" if region.kind == "shm" else "no-huge-pages", ours=ours)
    if ours is None and not asked.scope.is_large(region, asked.min_region):
        return Verdict(region, wanted, "left", "min_region")
    return Verdict(region, wanted, "change", ours=ours)


class _Marks:
    """The ledger's word on ranges. What it comes to is worked out once for each pair of policies."""

    def __init__(self, marks: Sequence[RegionMark], issued: Collection[Mempolicy], allowed: frozenset[int]) -> None:
        self._marks = marks
        self._starts = [mark.start for mark in marks]
        self._issued = [value for value in issued if value.mode.takes_nodes]
        self._allowed = allowed
        self._known: dict[tuple[Mempolicy, Mempolicy | None, Mempolicy | None], Mempolicy | None] = {}

    def mark_of(self, start: int, end: int) -> RegionMark | None:
        """The one that covers the most of a range."""
        best, most = None, 0
        for place in range(max(bisect.bisect_right(self._starts, start) - 1, 0), len(self._marks)):
            mark = self._marks[place]
            if mark.start >= end:
                break
            covered = min(mark.end, end) - max(mark.start, start)
            if covered > most:
                best, most = mark, covered
        return best

    def value_of(self, region: Region, mark: RegionMark | None) -> Mempolicy | None:
        """What was issued to a region, where that is what it has of its own.

        A region that was bound to what is the task's policy by now looks like one that was never bound: its mark tells.
        """
        if region.policy is None or region.policy == DEFAULT or not (region.is_bound or mark):
            return None
        key = (region.policy, mark.issued if mark else None, mark.earlier if mark else None)
        if key not in self._known:
            values = self._issued if mark is None else [value for value in key[1:] if value is not None]
            shown = (value for value in values if shows(region.policy, value, self._allowed))
            self._known[key] = next(shown, None)
        return self._known[key]


def joined(ranges: Sequence[Range]) -> list[Range]:
    """Neighbours that differ in nothing but their place made one."""
    joined: list[Range] = []
    for each in ranges:
        if joined and joined[-1].end == each.start and replace(joined[-1], start=each.start, end=each.end) == each:
            joined[-1] = replace(joined[-1], end=each.end)
        else:
            joined.append(each)
    return joined


def intended(marks: Sequence[RegionMark], changes: Sequence[Change]) -> tuple[RegionMark, ...]:
    """The ledger's marks before an act: what is there, and what may be there in a moment. Both ascend."""
    ledger = _Marks(marks, (), frozenset())
    kept: list[RegionMark] = []
    covered: list[tuple[int, int]] = []
    for change in changes:
        if change.undoes:
            continue  # until it is seen to be gone it is still ours
        mark = ledger.mark_of(change.start, change.end)
        kept.append(RegionMark(change.start, change.end, change.policy, change.replaced, mark.issued if mark else None))
        covered.append((change.start, change.end))
    return tuple(sorted((*kept, *without(marks, covered)), key=lambda mark: mark.start))


def without(marks: Sequence[RegionMark], ranges: Sequence[tuple[int, int]]) -> tuple[RegionMark, ...]:
    """The marks but for these ranges (both ascending): what was undone there is not ours any more."""
    ends = [end for _, end in ranges]
    kept: list[RegionMark] = []
    for mark in marks:
        at = mark.start
        for place in range(bisect.bisect_right(ends, mark.start), len(ranges)):
            start, end = ranges[place]
            if start >= mark.end:
                break
            if start > at:
                kept.append(replace(mark, start=at, end=start))
            at = end
        if at < mark.end:
            kept.append(replace(mark, start=at))
    return tuple(kept)


def followed(marks: Sequence[RegionMark], found: Sequence[Region], allowed: frozenset[int]) -> tuple[RegionMark, ...]:
    """The marks, those of regions that were moved (mremap(2)) where those are now. All ascend.

    A region that is moved keeps its policy. One that shows what was issued to a place where it is not any more, and has
    no mark, is the one that was there: of the same size, or of another where the value has nodes (a mapping of malloc's
    that is enlarged moves), since such a value would be taken for ours without a mark too. What it gets back in the end
    the mark alone tells; where several could be meant that tell differently, none is.
    """
    ledger = _Marks(marks, (), allowed)
    bound = [(region, ledger.value_of(region, ledger.mark_of(region.start, region.end))) for region in found]
    lost = _Lost(without(marks, [(region.start, region.end) for region, ours in bound if ours is not None]), allowed)
    moved: list[RegionMark] = []
    for region, ours in bound if lost.groups else ():
        if ours is not None or not region.is_bound or region.policy in (None, DEFAULT):
            continue
        if mark := lost.take(region):
            moved.append(replace(mark, start=region.start, end=region.end))
    if not moved:
        return tuple(marks)
    rest = without(marks, [(mark.start, mark.end) for mark in moved])
    return tuple(sorted((*rest, *moved), key=lambda mark: mark.start))


@dataclass(slots=True)
class _Group:
    """Lost marks that say the same of the policy of their region."""

    values: tuple[Mempolicy, ...]
    replaced: Mempolicy | None
    """What all of them tell; None where they differ."""
    by_size: list[tuple[int, int]] = field(default_factory=list)
    """Ascending: bytes, and the place in the order of all."""

    def nearest(self, size: int) -> list[tuple[int, int]]:
        """The first of the least size that is not below, and of the greatest that is."""
        above = bisect.bisect_left(self.by_size, (size, 0))
        found = self.by_size[above : above + 1]
        if above:
            found.append(self.by_size[bisect.bisect_left(self.by_size, (self.by_size[above - 1][0], 0))])
        return found


class _Lost:
    """Marks of places where nothing shows them any more. There may be thousands, of a process with as many regions of
    its own: a region is compared with the few policies that they name, not with each."""

    def __init__(self, marks: Sequence[RegionMark], allowed: frozenset[int]) -> None:
        self._marks = marks
        self._allowed = allowed
        self._shown: dict[Mempolicy, list[_Group]] = {}
        groups: dict[tuple[Mempolicy, Mempolicy | None], _Group] = {}
        for place, mark in enumerate(marks):
            values = tuple(value for value in (mark.issued, mark.earlier) if value is not None)
            group = groups.setdefault((mark.issued, mark.earlier), _Group(values, mark.replaced))
            group.by_size.append((mark.end - mark.start, place))
            if mark.replaced != group.replaced:
                group.replaced = None
        self.groups = list(groups.values())
        for group in self.groups:
            group.by_size.sort()

    def take(self, region: Region) -> RegionMark | None:
        """The mark of a region that was moved, which no other can have then; None where that cannot be told."""
        alike = [group for group in self._showing(region.policy) if group.by_size]
        told = {group.replaced for group in alike}
        if len(told) != 1 or None in told:
            return None
        near = [
            (abs(each - region.size), place, group) for group in alike for each, place in group.nearest(region.size)
        ]
        _, place, group = min(near, key=lambda each: each[:2])
        mark = self._marks[place]
        size = mark.end - mark.start
        if size != region.size and not mark.issued.mode.takes_nodes:
            return None
        del group.by_size[bisect.bisect_left(group.by_size, (size, place))]
        return mark

    def _showing(self, policy: Mempolicy | None) -> list[_Group]:
        """Those whose regions would show this policy."""
        if policy is None:
            return []
        if policy not in self._shown:
            self._shown[policy] = [
                group for group in self.groups if any(shows(policy, value, self._allowed) for value in group.values)
            ]
        return self._shown[policy]


def settled(
    verdicts: Iterable[Verdict], marks: Sequence[RegionMark], homes: Sequence[tuple[int, int, int]] = ()
) -> tuple[RegionMark, ...]:
    """The ledger's marks after the kernel was read again: what is bound and ours, and nothing else.

    `homes` were given since, as (start, end, node), ascending.
    """
    ledger = _Marks(marks, (), frozenset())
    starts = [start for start, _, _ in homes]
    found: list[RegionMark] = []
    for verdict in verdicts:
        region, ours = verdict.region, verdict.ours
        if ours is None:
            continue
        old = ledger.mark_of(region.start, region.end)
        home = old.home if old else None
        place = bisect.bisect_right(starts, region.start) - 1
        if place >= 0 and region.start < homes[place][1]:
            home = homes[place][2]
        found.append(RegionMark(region.start, region.end, ours, old.replaced if old else DEFAULT, None, home))
    return tuple(joined(found))

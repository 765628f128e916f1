"""Which table is a cgroup's own policy, and why the others are not (M1 to M3). Pure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass

from hetmemd.policy.effective import Loser
from hetmemd.policy.language import Table
from hetmemd.policy.pattern import START, names

_TOPMOST = "** makes an own policy only for the topmost cgroup that it matches (M3)"


@dataclass(frozen=True, slots=True)
class Reach:
    """What the matching of a cgroup leaves to those below it."""

    topmost: frozenset[int]
    """Indices of the `**` tables that match here or above: below, they make no own policy any more."""
    states: tuple[int, ...]
    """Of the patterns with `**` (`Pattern.step`)."""


@dataclass(frozen=True, slots=True)
class Match:
    """What matches one cgroup."""

    own: Table | None
    losers: tuple[Loser, ...]
    reached: Reach
    is_masked: bool
    """A table of a masked file would have matched (F1)."""


def _precedence(table: Table) -> tuple[int, bool, int, int]:
    """Less is stronger: directory, specificity (M1)."""
    exact, prefix, length = table.pattern.specificity
    return (table.strength, not exact, -prefix, -length)


class Matcher:
    """Tables in their order of strength. Asked for one cgroup after the other, parents first."""

    def __init__(self, tables: Iterable[Table], masked: Iterable[tuple[Table, str]] = ()) -> None:
        # Stable sorts, the least important first: the later table, the later file. Its path decides nothing but between
        # namesakes that `check` was given from anywhere.
        ordered = sorted(tables, key=lambda table: (os.fsencode(table.name), table.file, table.index), reverse=True)
        ordered.sort(key=_precedence)
        self._tables = ordered
        self._masked = list(masked)
        patterns = [table.pattern for table in (*ordered, *(table for table, _ in self._masked))]
        self._deep = [pattern for pattern in patterns if pattern.is_topmost]
        places = itertools.count()
        self._places = [next(places) if pattern.is_topmost else -1 for pattern in patterns]
        """Of each table, and then of each masked one: which of `_deep` its pattern is."""
        self._losers: dict[tuple[int, int | str], Loser] = {}

    def match(self, path: str, above: Reach | None) -> Match:
        """What matches the cgroup `path`, whose parent's `reached` is `above`; None where no parent was asked for."""
        states = self._states(path, above)
        topmost = above.topmost if above else frozenset()
        own: Table | None = None
        own_index = -1
        losers: list[Loser] = []
        reached: list[int] = []
        for index, table in enumerate(self._tables):
            if not self._matches(index, table, path, states):
                continue
            if table.pattern.is_topmost:
                if index in topmost:
                    losers.append(self._loser(index, _TOPMOST))
                    continue
                reached.append(index)
            if not table.enabled:
                losers.append(self._loser(index, "switched off: enabled = false"))
            elif own is None:
                own, own_index = table, index
            else:
                losers.append(self._loser(index, own_index))
        masked = [
            Loser(table.file, table.line, f"the file is masked by {by} (F1)")
            for index, (table, by) in enumerate(self._masked, len(self._tables))
            if self._matches(index, table, path, states)
        ]
        beneath = Reach(topmost.union(reached) if reached else topmost, states)
        return Match(own, (*losers, *masked), beneath, bool(masked))

    def _states(self, path: str, above: Reach | None) -> tuple[int, ...]:
        if above is None:
            states = (START,) * len(self._deep)
            for name in names(path):
                states = self._step(states, name)
            return states
        return self._step(above.states, path.rpartition("/")[2])

    def _step(self, states: tuple[int, ...], name: str) -> tuple[int, ...]:
        return tuple(state and pattern.step(state, name) for pattern, state in zip(self._deep, states, strict=True))

    def _matches(self, index: int, table: Table, path: str, states: tuple[int, ...]) -> bool:
        place = self._places[index]
        return table.pattern.matches(path) if place < 0 else table.pattern.accepts(states[place])

    def _loser(self, index: int, why: int | str) -> Loser:
        """A table that does not hold, by its index, and why: in words, or which table does. Made once."""
        key = (index, why)
        if key not in self._losers:
            loser = self._tables[index]
            said = why if isinstance(why, str) else _reason(loser, self._tables[why])
            self._losers[key] = Loser(loser.file, loser.line, said)
        return self._losers[key]


def _reason(loser: Table, winner: Table) -> str:
    place = f"{winner.file}:{winner.line}"
    if loser.strength != winner.strength:
        return f"{place} is in a stronger directory (M1)"
    if loser.pattern.specificity != winner.pattern.specificity:
        return f"{winner.pattern.text!r} of {place} is more specific (M1)"
    if loser.file != winner.file:
        return f"{place} is in a later file (M1)"
    return f"{place} is a later table of the file (M1)"

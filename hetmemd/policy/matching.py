"""Which table is a cgroup's own policy, and why the others are not (M1 to M3). Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from hetmemd.policy.effective import Loser
from hetmemd.policy.language import Table


@dataclass(frozen=True, slots=True)
class Match:
    """What matches one cgroup."""

    own: Table | None
    losers: tuple[Loser, ...]
    reached: frozenset[int]
    """Indices of the `**` tables that match here or above: below, they make no own policy any more."""
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
        self._why: dict[tuple[int, int], Loser] = {}

    def match(self, path: str, above: frozenset[int]) -> Match:
        """What matches the cgroup `path`, whose parent's `reached` is `above`."""
        own: Table | None = None
        own_index = -1
        losers: list[Loser] = []
        reached: list[int] = []
        for index, table in enumerate(self._tables):
            pattern = table.pattern
            if not pattern.matches(path):
                continue
            if pattern.is_topmost:
                if index in above:
                    why = "** makes an own policy only for the topmost cgroup that it matches (M3)"
                    losers.append(Loser(table.file, table.line, why))
                    continue
                reached.append(index)
            if not table.enabled:
                losers.append(Loser(table.file, table.line, "switched off: enabled = false"))
            elif own is None:
                own, own_index = table, index
            else:
                losers.append(self._lost(index, own_index))
        masked = [(table, by) for table, by in self._masked if table.pattern.matches(path)]
        losers += [Loser(table.file, table.line, f"the file is masked by {by} (F1)") for table, by in masked]
        return Match(own, tuple(losers), above.union(reached) if reached else above, bool(masked))

    def _lost(self, loser_index: int, winner_index: int) -> Loser:
        key = (loser_index, winner_index)
        if key not in self._why:
            loser, winner = self._tables[loser_index], self._tables[winner_index]
            self._why[key] = Loser(loser.file, loser.line, _reason(loser, winner))
        return self._why[key]


def _reason(loser: Table, winner: Table) -> str:
    place = f"{winner.file}:{winner.line}"
    if loser.strength != winner.strength:
        return f"{place} is in a stronger directory (M1)"
    if loser.pattern.specificity != winner.pattern.specificity:
        return f"{winner.pattern.text!r} of {place} is more specific (M1)"
    if loser.file != winner.file:
        return f"{place} is in a later file (M1)"
    return f"{place} is a later table of the file (M1)"

"""Who else may have moved the pages of a cgroup that is not as it should be, in words for a person (L6). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hetmemd.engine.record import Record
from hetmemd.machine.movers import Mover


def remarks(records: Iterable[Record], is_off: bool, movers: Sequence[Mover]) -> tuple[str, ...]:
    """Of the processes of one cgroup. `is_off`: its pages are further from the target than it tolerates."""
    of_all = list(records)
    undone = [record.went_back for record in of_all if record.went_back]
    on = ", ".join(mover.name for mover in movers if mover.is_on)
    if undone:
        processes = "one process" if len(undone) == 1 else f"{len(undone)} processes"
        passes = "one pass" if max(undone) == 1 else f"up to {max(undone)} passes in a row"
        what = f"pages of {processes} were moved back after {passes}"
        return (f"{what}: {_who(on, movers)} (L6)",)
    if is_off and on and any(record.has_settled for record in of_all):
        return (f"pages lie wrong that were in place, or moved, before: others may move them, {on} being on (L6)",)
    return ()


def _who(on: str, movers: Sequence[Mover]) -> str:
    if on:
        return f"of those that may do it, these are on: {on}"
    unknown = ", ".join(mover.name for mover in movers if mover.is_on is None)
    beside = f"whether {unknown} is on is not known, and others are not" if unknown else "no mover of the kernel is on"
    return f"{beside}; the program itself, a tool or a cpuset may do it"

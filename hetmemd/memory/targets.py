"""Which memory of a process is held against which target: the seam between what regions are and where pages go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from hetmemd.memory.plan import Target
from hetmemd.memory.regions import Region

Share = Callable[[Region], Target | None]
"""The target that a region's pages are held against; None for a region that is neither measured nor moved."""

TOGETHER = frozenset({"shm", "shared"})
"""What several processes may map: moved only for all of them (`shared = "move"`)."""


class Span(NamedTuple):
    """A range of addresses with one target."""

    start: int
    end: int
    target: Target


def all_of(target: Target, mappers: int = 0) -> Share:
    """All memory of the process's own. With `mappers`, the number of processes that agree to it, also what others map,
    where no page of a region is mapped more often than that."""

    def share(region: Region) -> Target | None:
        why = region.left_out
        return target if not why or (why in TOGETHER and region.mapmax <= mappers) else None

    return share


def spans(found: Iterable[Region], share: Share) -> list[Span]:
    """What is acted on and has pages, ascending, neighbours joined."""
    spans: list[Span] = []
    for region in found:
        target = share(region) if region.pages or region.is_part else None
        if target is None:
            continue
        if spans and spans[-1].end == region.start and spans[-1].target is target:
            spans[-1] = spans[-1]._replace(end=region.end)
        else:
            spans.append(Span(region.start, region.end, target))
    return spans


def cut(spans: Iterable[Span], within: tuple[int, int] | None) -> list[Span]:
    """What of the spans lies within these addresses; all of it for None."""
    if within is None:
        return list(spans)
    low, high = within
    return [
        span._replace(start=max(span.start, low), end=min(span.end, high))
        for span in spans
        if span.start < high and low < span.end
    ]

"""Where pages of a range are, from a part of them, with the error that comes with it.

A question to the kernel about 4096 pages drawn by chance costs 2 ms, whatever the size of the range; reading the exact
totals costs 10 ms for each GiB of small pages, during which the target's mmap lock is held region by region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hetmemd.kernel import pages
from hetmemd.memory.plan import Target
from hetmemd.memory.targets import Span

PAGES = 4096
"""Asked about at once: the error of a share is then 0.016 at most, at 95 %."""
SIGMAS = 1.96
"""For 95 % confidence."""
FEWEST = 512
"""Present pages without which an estimate says nothing; a sparse range may have fewer among those drawn."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Shares of the pages that are there."""

    counts: Mapping[int, int]
    """Pages found on each node."""

    @property
    def found(self) -> int:
        return sum(self.counts.values())

    def share(self, node: int) -> float:
        return self.counts.get(node, 0) / self.found if self.found else 0.0

    def error(self, node: int) -> float:
        """Half the width of the 95 % interval around `share`, after Wilson: it is right for shares near 0 and 1 too,
        where `share` is not its middle."""
        low, high = self.interval(node)
        return (high - low) / 2

    def interval(self, node: int) -> tuple[float, float]:
        """The 95 % interval of a node's share; (0, 1) where nothing was found."""
        count = self.found
        if not count:
            return 0.0, 1.0
        share, square = self.share(node), SIGMAS**2
        middle = (share + square / (2 * count)) / (1 + square / count)
        half = SIGMAS / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def is_within(self, target: Target, tolerance: float) -> bool | None:
        """Whether the distance is within the tolerance: None where the sample cannot tell at 95 %.

        A distance is half a sum of differences between shares: it is off by half of the sum of their errors at most.
        """
        if self.found < FEWEST:
            return None
        distance = target.distance(self.counts)
        error = sum(self.error(node) for node in {*self.counts, *target.shares}) / 2
        if distance + error <= tolerance:
            return True
        return False if distance - error > tolerance else None


@dataclass(slots=True)
class Settled:
    """A process that was as it should be when its exact figures were had last, and whose figures take long."""

    spans: tuple[Span, ...]
    """Of one target."""
    times: int = 0
    """Samples since then."""


def sample(tid: int, spans: Sequence[Span], chosen: np.random.Generator, count: int = PAGES) -> Estimate:
    """An estimate for some memory of the process that thread `tid` belongs to.

    Pages are drawn evenly over the addresses, with repetition; what is not there is left out, so that those found are
    drawn evenly over what is. Folios of any size count by their pages. `OSError` as `pages.query`.
    """
    starts = np.array([start for start, _, _ in spans], dtype=np.int64)
    sizes = np.array([(end - start) >> pages.PAGE_SHIFT for start, end, _ in spans], dtype=np.int64)
    ends = np.cumsum(sizes)
    if not len(ends) or not ends[-1]:
        return Estimate({})
    drawn = np.sort(chosen.integers(0, ends[-1], count))
    at = np.searchsorted(ends, drawn, side="right")
    addresses = starts[at] + ((drawn - (ends[at] - sizes[at])) << pages.PAGE_SHIFT)
    nodes = pages.query(tid, addresses)
    found, counts = np.unique(nodes[nodes >= 0], return_counts=True)
    return Estimate(dict(zip(found.tolist(), counts.tolist(), strict=True)))

"""How much may be moved now: token buckets, of which a move pays in several at once (I7). Pure: the clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(slots=True)
class _Bucket:
    rate: float
    burst: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.burst, self.level + self.rate * max(now - self.at, 0.0))
        self.at = now


class Budgets:
    """Buckets by key. A key that was never configured limits nothing.

    A bucket begins full. It may be overdrawn, by a folio or by what was in flight, and then gives nothing until it is
    above zero again: over any time t no more than `burst + rate * t` is paid, and one step's overdraft.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def configure(self, key: str, rate: int, burst: int) -> None:
        """Bytes per second, bytes. A bucket that is there keeps its level, cut to the new burst."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = _Bucket(rate, burst, burst, now)
        else:
            bucket.fill(now)
            bucket.rate, bucket.burst = rate, burst
            bucket.level = min(bucket.level, burst)

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all other buckets: those that are gone for good, since one that comes back begins full."""
        kept = set(keys)
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if key in kept}

    def allowance(self, keys: Iterable[str], most: int) -> int:
        """Bytes that may be moved now under all these buckets, at most `most`, never negative."""
        now = self._clock()
        allowed = float(most)
        for bucket in self._of(keys):
            bucket.fill(now)
            allowed = min(allowed, bucket.level)
        return max(int(allowed), 0)

    def pay(self, keys: Iterable[str], size: int) -> None:
        """Take `size` bytes out of each bucket."""
        now = self._clock()
        for bucket in self._of(keys):
            bucket.fill(now)
            bucket.level -= size

    def wait(self, keys: Iterable[str], size: int) -> float:
        """Seconds until `allowance` comes to `size`, or to the smallest of the bursts if that is less.

        Infinite where a rate is 0.
        """
        now = self._clock()
        longest = 0.0
        buckets = self._of(keys)
        wanted = min([float(size), *(bucket.burst for bucket in buckets)])
        for bucket in buckets:
            bucket.fill(now)
            lacking = wanted - bucket.level
            if lacking > 0:
                longest = max(longest, lacking / bucket.rate if bucket.rate > 0 else float("inf"))
        return longest

    def _of(self, keys: Iterable[str]) -> list[_Bucket]:
        return [self._buckets[key] for key in keys if key in self._buckets]

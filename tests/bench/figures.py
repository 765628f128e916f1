"""What each figure is held against. README.md shows the same as a table."""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple


class Limit(NamedTuple):
    value: float
    is_least: bool = False
    """Or else the most."""

    def __str__(self) -> str:
        return f"{'at least' if self.is_least else 'at most'} {self.value:g}"

    def holds(self, ratio: float) -> bool:
        return ratio >= self.value if self.is_least else ratio <= self.value


LIMITS = {
    "pause": {
        "blocked thread, pause, median / C": Limit(1.5),
        "blocked thread, pause, p99 / C": Limit(3.0),
        "spinning thread, pause, median / C": Limit(1.5),
        "spinning thread, pause, p99 / C": Limit(3.0),
        "all threads / C": Limit(2.0),
        "verification of an unchanged thread / 20 us": Limit(1.0),
    },
    "arrival": {
        "cgroup move to policy in force, p99 / 1 s": Limit(1.0),
        "region mapped to policy in force, median / 1 s": Limit(1.0),
        "file dropped to policy in force, p99 / 1 s": Limit(1.0),
        "file changed to policy in force, p99 / 1 s": Limit(1.0),
        "file masked to policy gone, p99 / 1 s": Limit(1.0),
        "file removed to policy gone, p99 / 1 s": Limit(1.0),
    },
    "events": {
        "processor time / C reader": Limit(3.0),
        "processor at 1000 forks/s / 1.2 %": Limit(1.0),
        "cgroup move to hint, p99 / 100 ms": Limit(1.0),
    },
    "regions": {
        "stop to bind, p99 / 2 ms": Limit(1.0),
    },
    "pages": {
        "C / queries": Limit(0.8, is_least=True),
        "moves / minimum, all on one node": Limit(1.0),
        "moves / minimum, by chance": Limit(1.0),
        "C / moves, the calls alone": Limit(0.95, is_least=True),
        "C / moves, whole passes, one lane": Limit(0.7, is_least=True),
        "C / moves, whole passes, two lanes": Limit(0.9, is_least=True),
        "call that moves, median / 20 ms": Limit(1.2),
        "migratepages / all to one node": Limit(1.0, is_least=True),
    },
    "harm": {
        "work while moving, bound by memory": Limit(0.9, is_least=True),
        "work while moving, Redis": Limit(0.9, is_least=True),
    },
    "footprint": {
        "growth / 2 MiB": Limit(1.0),
    },
}
"""By bench, by figure as it is printed."""


class Figures:
    """Prints each figure beside its limit. With `--check` what is beyond it is a failure."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="exit with 1 where a figure is beyond its limit")
        self._parser = parser
        self._is_checked = False
        self._beyond: list[str] = []

    def options(self) -> argparse.Namespace:
        chosen = self._parser.parse_args()
        self._is_checked = chosen.check
        return chosen

    def held(self, name: str, ratio: float, more: str = "") -> None:
        """`more`: what else there is to say of it, such as the range."""
        limit = next(limits[name] for limits in LIMITS.values() if name in limits)
        word = "" if limit.holds(ratio) else "   BEYOND"
        if word:
            self._beyond.append(name)
        print(f"{name}{more}: ratio {ratio:.3f}, limit {limit}{word}", flush=True)

    def end(self) -> None:
        if self._is_checked and self._beyond:
            sys.exit(1)

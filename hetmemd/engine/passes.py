"""A pass over a process's pages, between its steps: who pays for it, and until when it holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hetmemd.engine.record import Record
from hetmemd.memory.rebalance import ProcessPass

LEAST = 2 << 20
"""Bytes that are saved up before a step: a call has a fixed cost, and a huge folio is that large."""
LONGEST_PASS = 60.0
"""Seconds after which a pass is begun anew: regions come and go, and what was planned on is old;"""
PASS_PER_GIB = 1.0
"""seconds more for each GiB: looking at that page by page takes 0.07, ten times as long with the rests between, and a
pass must come to the end of a terabyte, however little it may move."""


@dataclass(slots=True)
class Pass:
    """One over one process, as the balancer has it."""

    record: Record
    mover: ProcessPass
    keys: tuple[str, ...]
    why: str
    before: float
    basis: tuple[object, ...]
    """What the pass was planned on: with anything of it another, it is over."""
    until: float
    moved: int = 0
    needs: int = LEAST
    """Bytes without which the next step would do nothing."""
    due: float = 0.0
    """When the next step can do something, in the loop's time."""
    failed: Counter[str] = field(default_factory=Counter)


def longest_pass(size: int) -> float:
    """Seconds that a pass over so many bytes may last."""
    return LONGEST_PASS + PASS_PER_GIB * size / (1 << 30)

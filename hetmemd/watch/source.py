"""What every source of events has in common: it is up or it says why not, counts, and never raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from hetmemd.report.snapshot import SourceView
from hetmemd.watch.hint import Hint, LostHint

Deliver = Callable[[Sequence[Hint]], None]


class Source:
    """One source. A subclass opens itself in `start`, and calls `tell` with what came of a batch of events."""

    name: ClassVar[str]

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.up = False
        self.events = 0
        self.losses = 0
        self.note = "not started"

    def view(self) -> SourceView:
        return SourceView(self.name, self.up, self.events, self.losses, self.note)

    def tell(self, hints: Sequence[Hint]) -> None:
        if hints:
            self._deliver(hints)

    def changed(self) -> None:
        """Nothing happened, but the source is in another state: whoever listens tells of that."""
        self._deliver(())

    def lost(self) -> None:
        """Events were lost: whoever listens scans."""
        self.losses += 1
        self._deliver((LostHint(self.name),))

    def fail(self, why: str) -> None:
        """The source is down for good; scans cover what it would have seen."""
        self.up = False
        self.note = why

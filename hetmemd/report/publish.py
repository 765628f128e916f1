"""Hands the newest snapshot from the engine to everything that reports."""

from __future__ import annotations

from hetmemd.report.snapshot import Snapshot


class Publisher:
    """One reference, replaced whole: a reader in another thread has the old snapshot or the new one, never a mix.

    Assigning an attribute is atomic in CPython, so that neither the engine nor a scrape ever waits for a lock.
    """

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: Snapshot | None = None

    def publish(self, snapshot: Snapshot) -> None:
        self._latest = snapshot

    @property
    def latest(self) -> Snapshot | None:
        """None until the first pass is over."""
        return self._latest

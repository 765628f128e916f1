"""What the lab tells the person who waits: on stderr, so that stdout is the job's alone."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_SECONDS = 10.0

_started = time.monotonic()


class LabError(Exception):
    """The lab itself cannot go on; `hint` says what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def say(message: str) -> None:
    """One line of the lab's own."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Tell of a slow step: when it begins, that it still goes on, and how long it took."""
    begun = time.monotonic()
    done = threading.Event()
    say(f"[{begun - _started:5.1f} s] {what} ...")

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"[{time.monotonic() - _started:5.1f} s] {what}: {time.monotonic() - begun:.0f} s so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"[{time.monotonic() - _started:5.1f} s] {what}: done in {time.monotonic() - begun:.1f} s")

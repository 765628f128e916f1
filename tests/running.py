"""A program that runs for as long as a test looks at it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Generator[subprocess.Popen[Any], None, None]:
    """Killed in the end, also where the test has failed: a Popen by itself would then wait for it."""
    with subprocess.Popen(command, **options) as popen:
        try:
            yield popen
        finally:
            popen.kill()


@contextlib.contextmanager
def ready(command: Sequence[str | Path], **options: Any) -> Generator[subprocess.Popen[Any], None, None]:
    """The same, once it has said its first line."""
    with running(command, stdout=subprocess.PIPE, **options) as popen:
        assert popen.stdout
        popen.stdout.readline()
        yield popen

"""What the tests of events and scans share: a cgroup of their own, small programs to watch, and waiting for a hint."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hetmemd.kernel import cgroupfs
from hetmemd.kernel.root import Root
from hetmemd.watch.hint import Hint

ROOT = Root()
DEADLINE = 30.0
"""Seconds until a hang is a failure."""
HERE = Path(__file__).parent


class Seen:
    """Collects hints, and waits for them."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []
        self._more = asyncio.Event()

    def deliver(self, hints: Sequence[Hint]) -> None:
        self.hints.extend(hints)
        self._more.set()

    async def until(self, enough: Callable[[list[Hint]], object]) -> None:
        """Wait until `enough` of the hints so far is true."""
        async with asyncio.timeout(DEADLINE):
            while not enough(self.hints):
                self._more.clear()
                await self._more.wait()

    async def hint(self, wanted: Hint) -> None:
        await self.until(lambda hints: wanted in hints)


class OwnCgroup:
    """A cgroup below the mount that belongs to one test."""

    def __init__(self, name: str) -> None:
        self.path = f"/{name}"
        self.directory = Path(cgroupfs.directory(ROOT, self.path))
        self.directory.mkdir()

    def make(self, name: str) -> str:
        """A cgroup below; its path as hints call it."""
        (self.directory / name).mkdir()
        return f"{self.path}/{name}"

    def remove(self) -> None:
        """The whole subtree; what still runs in it is ended first."""
        for directory, _, _ in os.walk(self.directory, topdown=False):
            kill = Path(directory, "cgroup.kill")
            # A threaded cgroup has none, and answers EOPNOTSUPP; its domain ends its tasks.
            with suppress(OSError):
                kill.write_text("1")
            while "populated 1" in Path(directory, "cgroup.events").read_text():
                # The kernel tells of the change by POLLPRI; here a test is over, and a turn of the scheduler will do.
                os.sched_yield()
            Path(directory).rmdir()


def move(pid: int, cgroup: str, file: str = "cgroup.procs") -> None:
    Path(cgroupfs.directory(ROOT, cgroup), file).write_text(str(pid))


def build(name: str, folder: Path) -> Path:
    """A small C program of this folder, compiled."""
    program = folder / name
    subprocess.run(["gcc", "-O1", "-pthread", "-o", program, HERE / f"{name}.c"], check=True)
    return program


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A program that waits on its standard input, for as long as the block lasts."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def number(process: subprocess.Popen[str]) -> int:
    """The number on its next line of output."""
    assert process.stdout is not None
    return int(process.stdout.readline())


IDLE = (sys.executable, "-c", "import sys; print(0, flush=True); sys.stdin.read()")
"""A process that says 0 when it is there, and waits."""

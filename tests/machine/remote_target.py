"""Programs to act on: built from targets/*.c, started, talked to, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hetmemd.kernel import procfs, vdso
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote.client import Tracer
from hetmemd.remote.regions import RegionCall, RegionsResult
from hetmemd.remote.result import Outcome, ThreadResult
from tests.lab.hetmemlab import targets

ROOT = Root()
_IN_A_GUEST = Path(__file__).parents[2] / targets.FOLDER

HANG = 60.0
"""Seconds after which something that never happened is a failure."""

NODE0 = frozenset({0})
# Relative: a daemon issues static ones, and would take those for its own wherever it finds them.
INTERLEAVE = Mempolicy(Mode.INTERLEAVE, NODE0, Flag.RELATIVE_NODES)
BIND = Mempolicy(Mode.BIND, NODE0, Flag.RELATIVE_NODES)
ALTERNATING = (INTERLEAVE, BIND)


def build(folder: Path, name: str, *options: str) -> Path:
    """The program from targets/NAME.c, compiled into `folder` once with the same options.

    In a guest of the lab it is the one that the host has built for it, static whatever the options.
    """
    if _IN_A_GUEST.is_dir():
        return _IN_A_GUEST / name
    program = folder / "".join([name, *options])
    if not program.exists():
        unfinished = folder / f"{program.name}.{os.getpid()}"
        targets.build(name, unfinished, *options)
        unfinished.rename(program)
    return program


class Target:
    """A running program, with everything it starts in a session of its own, killed at the end of the `with`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """`environment` is added to ours; `descriptors` are kept open in the program."""
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment} if environment else None,
            pass_fds=tuple(descriptors),
        )
        self.pid = self.process.pid

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    @property
    def identity(self) -> ProcessId:
        return procfs.identify(ROOT, self.pid)

    def line(self) -> str:
        """The next line that it prints, empty at the end."""
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, wanted: str) -> None:
        line = self.line()
        assert line == wanted, line

    def finish(self) -> str:
        """Close its input, and give back the rest of what it prints; it must end well."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.stdout
        rest = self.process.stdout.read()
        status = self.process.wait(HANG)
        assert status == 0, (status, rest)
        return rest

    def state(self, tid: int | None = None) -> str:
        return procfs.stat(ROOT, self.pid, tid).state

    def policy(self, tid: int | None = None) -> Mempolicy | None:
        return procfs.thread_policy(ROOT, self.pid, tid or self.pid)

    def policies(self) -> set[Mempolicy]:
        """Of all threads that live."""
        found = set()
        for tid in procfs.tids(ROOT, self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                policy = self.policy(tid)
                if policy is not None:  # it was alive when it was read
                    found.add(policy)
        return found

    def wait_blocked(self) -> None:
        """Until the leader sleeps in a syscall, or is dead."""

        def is_blocked() -> bool:
            state = self.state()
            return state == "Z" or (state == "S" and ROOT.read_text(f"/proc/{self.pid}/syscall")[:1].isdigit())

        wait_until(is_blocked)


def padding_of(target: Target) -> tuple[range, bytes]:
    """Of its vdso: where, and what is there."""
    base, _ = vdso.address(ROOT.read_bytes(f"/proc/{target.pid}/auxv"))
    fd = os.open(f"/proc/{target.pid}/mem", os.O_RDONLY)
    try:
        padding = vdso.describe(base, os.pread(fd, vdso.PAGE, base)).padding
        return padding, os.pread(fd, len(padding), padding.start)
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], bool]) -> None:
    """For what no event tells of: looked at again and again."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "never came to be"
        time.sleep(0.001)


def numbers(line: str) -> dict[str, int]:
    """`rounds 5 bad 0` as a dictionary."""
    words = line.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


class Acting:
    """A `Tracer` for tests that are not asynchronous."""

    def __init__(self, limit_seconds: float = 20.0) -> None:
        # Long: on a busy machine a slow test is not a wrong one. Tests of the limit set their own.
        self._runner = asyncio.Runner()
        self.tracer = Tracer(ROOT, limit_seconds)

    def with_tracer(self, tracer: Tracer) -> Acting:
        """The same with another tracer, which the caller closes."""
        other = Acting.__new__(Acting)
        other._runner, other.tracer = self._runner, tracer
        return other

    def __enter__(self) -> Acting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.tracer.close()
        self._runner.close()

    def apply(
        self,
        process: ProcessId | Target,
        policy: Mempolicy,
        tids: Sequence[int] | None = None,
        expected: Sequence[Mempolicy] = (),
    ) -> list[ThreadResult]:
        identity = process.identity if isinstance(process, Target) else process
        return self._runner.run(self.tracer.apply(identity, policy, tids, expected))

    def bind(
        self, process: ProcessId | Target, requests: Sequence[RegionCall], tids: Sequence[int] | None = None
    ) -> RegionsResult:
        identity = process.identity if isinstance(process, Target) else process
        return self._runner.run(self.tracer.bind(identity, requests, tids))

    def one(
        self, target: Target, policy: Mempolicy, tid: int | None = None, expected: Sequence[Mempolicy] = ()
    ) -> ThreadResult:
        """On the leader, or another thread."""
        (result,) = self.apply(target, policy, [tid or target.pid], expected)
        return result

    def alternate(self, target: Target, times: int) -> int:
        """That many acts on the leader, each another policy; how many of them came to an end."""
        applied = 0
        for turn in range(times):
            result = self.one(target, ALTERNATING[turn % 2])
            assert result.outcome in (Outcome.APPLIED, Outcome.DEFERRED), result
            applied += result.outcome is Outcome.APPLIED
        return applied

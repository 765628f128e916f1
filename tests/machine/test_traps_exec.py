"""A process executes another program while a tracer is at one of its threads: it gets there, and runs on unharmed.

README.md says which test shows which trap.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote.result import Outcome
from tests.machine.dying_tracer import SEIZED, SENT, STOPPED
from tests.machine.halted import Halted
from tests.machine.remote_target import ALTERNATING, BIND, ROOT, Acting, Target, wait_until
from tests.machine.trap import Trap

pytestmark = pytest.mark.root

Built = Callable[..., Path]

READ = "0 "  # arch/x86/entry/syscalls/syscall_64.tbl
LIMIT = 1.5
"""Seconds for an act that will not end by itself."""
PATIENT = 20.0


class Replacing:
    """`family replace`: a sleeping thread, and one that executes the next program when it is told to."""

    def __init__(self, target: Target, by: str) -> None:
        self.target = target
        target.expect("ready")
        count = {"leader": 2, "thread": 3}[by]
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) == count)
        wait_until(lambda: sum(self._is_reading(tid) for tid in procfs.tids(ROOT, target.pid)) == 1)
        (self.executing,) = filter(self._is_reading, procfs.tids(ROOT, target.pid))
        (self.sleeping,) = set(procfs.tids(ROOT, target.pid)) - {self.executing, target.pid}

    def _is_reading(self, tid: int) -> bool:
        return ROOT.read_text(f"/proc/{self.target.pid}/task/{tid}/syscall").startswith(READ)

    def execute(self) -> None:
        assert self.target.process.stdin
        self.target.process.stdin.write("\n")
        self.target.process.stdin.flush()

    def wait_stuck(self) -> None:
        """Until the thread waits amid its exec for others to end."""
        wait_until(lambda: self.target.state(self.executing) == "D")

    def is_served(self) -> None:
        """The next program has come, is called as any other, and ends as it should."""
        with Acting() as acting:
            for policy in ALTERNATING:
                assert [result.outcome for result in acting.apply(self.target, policy)] == [Outcome.APPLIED]
        assert procfs.status(ROOT, self.target.pid)["TracerPid"] == "0"
        assert self.target.finish() == "alive\n"


@pytest.fixture(params=["leader", "thread"])
def replacing(request: pytest.FixtureRequest, built: Built) -> Iterator[Replacing]:
    with Target([built("family"), "replace", request.param]) as target:
        yield Replacing(target, request.param)


@pytest.fixture
def by_thread(built: Built) -> Iterator[Replacing]:
    with Target([built("family"), "replace", "thread"]) as target:
        yield Replacing(target, "thread")


HOLD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from hetmemd.kernel import ptrace
ptrace.seize(int(sys.argv[2]), 0)
ptrace.interrupt(int(sys.argv[2]))
ptrace.wait_any()
print("holding", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_by_another(tid: int) -> Iterator[Target]:
    """As a debugger holds a thread. It lets go at its end."""
    with Target([sys.executable, "-c", HOLD, Path(__file__).parents[2], str(tid)]) as other:
        other.expect("holding")
        yield other


@pytest.mark.parametrize("step", [SEIZED, STOPPED, SENT])
def test_a_thread_that_is_held_keeps_an_exec_waiting_until_the_time_limit(replacing: Replacing, step: int) -> None:
    halted = Halted(replacing.target, replacing.sleeping, step, LIMIT)
    replacing.execute()
    replacing.wait_stuck()
    assert halted.is_halted()
    assert halted.said() == (Outcome.DEFERRED, "timeout")
    replacing.target.expect("ready")
    replacing.is_served()


@pytest.mark.parametrize("step", [SEIZED, STOPPED, SENT])
def test_a_leader_that_is_held_when_a_thread_takes_its_place(by_thread: Replacing, step: int) -> None:
    halted = Halted(by_thread.target, by_thread.target.pid, step, PATIENT)
    by_thread.execute()
    by_thread.target.expect("ready")
    assert halted.is_halted()
    halted.go_on()
    assert halted.said()[0] is Outcome.GONE
    by_thread.is_served()


def test_a_seized_thread_that_becomes_the_leader(by_thread: Replacing) -> None:
    """Nobody can stop it by the id that it had: it is let go by its process's."""
    halted = Halted(by_thread.target, by_thread.executing, SEIZED, PATIENT)
    by_thread.execute()
    by_thread.target.expect("ready")
    assert halted.is_halted()
    halted.go_on()
    assert halted.said() == (Outcome.GONE, "executed")
    by_thread.is_served()


def test_a_thread_that_stops_only_when_its_exec_is_over(replacing: Replacing) -> None:
    with held_by_another(replacing.sleeping) as other:
        halted = Halted(replacing.target, replacing.executing, SEIZED, PATIENT)
        replacing.execute()
        replacing.wait_stuck()
        halted.go_on()
        wait_until(halted.waits)
        other.finish()
        replacing.target.expect("ready")
        is_leader = replacing.executing == replacing.target.pid
        # A thread is reported under its process's id; the leader has its own still, and is called in another program.
        assert halted.said() == ((Outcome.APPLIED, "") if is_leader else (Outcome.GONE, "executed"))
        assert replacing.target.policy() == (BIND if is_leader else DEFAULT)
    replacing.is_served()


def test_a_thread_amid_its_exec_cannot_even_be_seized(replacing: Replacing) -> None:
    with held_by_another(replacing.sleeping) as other:
        halted = Halted(replacing.target, replacing.executing, 0, LIMIT)
        replacing.execute()
        replacing.wait_stuck()
        halted.go_on()
        assert halted.said() == (Outcome.DEFERRED, "timeout")
        # And when it is looked at only now, it is not tried.
        with Acting() as acting:
            result = acting.one(replacing.target, BIND, replacing.executing)
        assert (result.outcome, result.reason) == (Outcome.DEFERRED, "uninterruptible")
        other.finish()
        replacing.target.expect("ready")
    replacing.is_served()


@pytest.mark.parametrize("prefix", [(), ("setarch", "-R")], ids=["", "same-addresses"])
def test_chains_of_exec(built: Built, trap: Trap, prefix: tuple[str, ...]) -> None:
    """Another thread executes the next program while one is held, at whatever point it comes to.

    With addresses that do not change, an open memory file of the last program fits the next one all too well.
    """
    count = 150
    end = time.monotonic() + 60
    said: Counter[tuple[Outcome, str]] = Counter()
    programs = set()
    with Acting(limit_seconds=1.0) as acting, Target([*prefix, built("family"), "exec", str(count)]) as target:
        target.expect("ready")
        identity = target.identity
        for turn in itertools.count():
            assert time.monotonic() < end
            left = chained(target)
            results = acting.apply(identity, ALTERNATING[turn % 2])
            said.update((result.outcome, result.reason) for result in results)
            if any(result.pause_ns for result in results):
                programs.add(left)
            if left == b"0":
                break
        target.expect("done")
        assert {result.outcome for result in acting.apply(identity, DEFAULT)} == {Outcome.APPLIED}
        trap.serves(target)
        target.finish()
    for outcome, reason in said:
        assert outcome in (Outcome.APPLIED, Outcome.GONE, Outcome.DEFERRED), (outcome, reason)
        if outcome is not Outcome.APPLIED:
            assert trap.failures(outcome, reason) >= 0
    # Acts and execs did alternate: programs had a thread called, and threads were gone amid it. How many is a matter of
    # how busy the machine is.
    assert len(programs) > 1
    assert sum(times for (outcome, _), times in said.items() if outcome is Outcome.GONE) > 1


def chained(target: Target) -> bytes:
    """How many programs are to come; empty amid an exec."""
    words = ROOT.read_bytes(f"/proc/{target.pid}/cmdline").split(b"\0")
    return words[2] if len(words) > 2 else b""

"""Real strace and gdb at a program that a policy is for: their session goes on, and the policy comes after them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote.result import Outcome
from tests.machine.daemon import eventually
from tests.machine.real_program import command
from tests.machine.remote_target import INTERLEAVE, ROOT, Acting, Target, wait_until
from tests.machine.trap import Trap

pytestmark = pytest.mark.root

Built = Callable[..., Path]
THREADS = 3


@pytest.fixture
def target(built: Built, trap: Trap) -> Iterator[Target]:
    """Threads that sleep, and one that reads, byte by byte. Depends on the trap: ended before that is removed."""
    with Target([built("family"), "threads", str(THREADS)]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) == THREADS)
        target.wait_blocked()
        yield target
        assert target.finish() == "disturbed 0\n"


def tracers(target: Target) -> set[str]:
    """Of all its threads, by pid; `0` is none."""
    return {procfs.status(ROOT, target.pid, tid)["TracerPid"] for tid in procfs.tids(ROOT, target.pid)}


def send(target: Target, text: str) -> None:
    assert target.process.stdin
    target.process.stdin.write(text)
    target.process.stdin.flush()


def stays_as_it_is(trap: Trap, target: Target, debugger: Target) -> None:
    """Now and at every further try, those of the daemon and those of a tracer that is asked again and again."""
    before = trap.failures(Outcome.DEFERRED, "traced")
    eventually("tried again", lambda: trap.failures(Outcome.DEFERRED, "traced") > before)
    with Acting() as acting:
        for _ in range(20):
            said = {(result.outcome, result.reason) for result in acting.apply(target, INTERLEAVE)}
            assert said == {(Outcome.DEFERRED, "traced")}
    assert target.policies() == {DEFAULT}
    assert tracers(target) == {str(debugger.pid)}


def test_strace_with_all_threads(target: Target, trap: Trap, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["strace", "-f", "-e", "trace=all", "-o", f"/mnt/{log.name}", "-p", target.pid]
    with Target(command(tmp_path, [str(word) for word in words])) as strace:
        wait_until(lambda: tracers(target) == {str(strace.pid)})
        trap.catches(target.pid, Outcome.DEFERRED, "traced")
        stays_as_it_is(trap, target, strace)
        send(target, "abc")
        wait_until(lambda: log.read_text().count(" = 1\n") == 3)
        stays_as_it_is(trap, target, strace)
        os.kill(strace.pid, signal.SIGINT)
        assert strace.process.wait() in (0, -signal.SIGINT, 128 + signal.SIGINT)
    assert re.findall(r'"(.)", 1\) += 1$', log.read_text(), re.MULTILINE) == ["a", "b", "c"]
    # Nothing but what the program did itself: no call of ours, no signal, no stop.
    assert "mempolicy" not in log.read_text()
    assert not re.search(r"SIG(TRAP|STOP|SYS)", log.read_text())
    assert tracers(target) == {"0"}
    trap.lets_go(target.pid)


class Gdb:
    """By its machine interface."""

    def __init__(self, target: Target, folder: Path) -> None:
        words = ["gdb", "-nx", "-q", "--interpreter=mi", "-p", str(target.pid)]
        self.process = Target(command(folder, words))

    def until(self, wanted: str) -> re.Match[str]:
        """Read on to the line that begins with this pattern."""
        read = []
        while line := self.process.line():
            read.append(line)
            if matched := re.match(wanted, line):
                return matched
        pytest.fail("\n".join(read))

    def ask(self, what: str, wanted: str = r"\^done") -> re.Match[str]:
        send(self.process, f"-{what}\n")
        return self.until(wanted)

    def counter(self) -> str:
        """Where the program stands."""
        return self.ask("data-evaluate-expression $pc", r'\^done,value="(0x\w+)')[1]


def test_gdb_with_the_program_stopped_and_running(target: Target, trap: Trap, tmp_path: Path) -> None:
    gdb = Gdb(target, tmp_path)
    with gdb.process as process:
        gdb.until(r"\*stopped")
        where = gdb.counter()
        trap.catches(target.pid, Outcome.DEFERRED, "traced")
        stays_as_it_is(trap, target, process)
        assert gdb.counter() == where
        gdb.ask("break-insert read")
        gdb.ask("exec-continue", r"\*running")
        stays_as_it_is(trap, target, process)
        # What it is blocked in comes to its end; the next one hits.
        send(target, "a")
        gdb.until(r'\*stopped,reason="breakpoint-hit"')
        where = gdb.counter()
        stays_as_it_is(trap, target, process)
        assert gdb.counter() == where
        gdb.ask("break-delete")
        gdb.ask("target-detach")
        send(process, "-gdb-exit\n")
        assert process.process.wait() == 0
    assert tracers(target) == {"0"}
    trap.lets_go(target.pid)

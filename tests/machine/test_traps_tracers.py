"""A daemon whose tracers die or hang amid their acts: it says so of the task, counts it, and harms nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.daemon import Daemon, Group, eventually, fresh_path
from tests.machine.dying_tracer import SEIZED, STOPPED
from tests.machine.remote_target import ROOT, Acting, Target, padding_of, wait_until
from tests.machine.trap import GIVEN, Trap

pytestmark = pytest.mark.root

Built = Callable[..., Path]

SABOTAGED = """
import sys
sys.path.insert(0, sys.argv[1])
from hetmemd import service
from hetmemd.remote.client import Tracer
Tracer._command = lambda self: [sys.executable, "-I", "-S", *sys.argv[2:6]]
sys.exit(service.main(sys.argv[6:]))
"""


class Sabotaged(Daemon):
    """Each tracer of it gets a signal at that step of `dying_tracer`."""

    def __init__(self, folder: Path, step: int, number: signal.Signals) -> None:
        super().__init__(folder)
        self._tracer = [str(Path(dying_tracer.__file__).resolve()), str(step), str(int(number)), "0"]

    @property
    def command(self) -> list[str]:
        checkout = str(Path(__file__).parents[2])
        return [sys.executable, "-c", SABOTAGED, checkout, *self._tracer, "--root", str(self.folder)]


@pytest.fixture
def sabotaged(request: pytest.FixtureRequest) -> Iterator[Trap]:
    """Of a step and a signal."""
    with tempfile.TemporaryDirectory(prefix="hetmemd-") as folder:
        daemon = Sabotaged(Path(folder), *request.param)
        daemon.start()
        group = Group(fresh_path())
        trap = Trap(daemon, group)
        yield trap
        trap.remove()
        group.remove()
        daemon.end()


@contextlib.contextmanager
def reading(built: Built) -> Iterator[Target]:
    """Ended before the cgroup that it is taken into is removed."""
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        yield target
        assert target.finish() == "alive\n"


@pytest.mark.parametrize(
    ("sabotaged", "reason"),
    [
        ((SEIZED, signal.SIGKILL), "tracer-died"),
        ((STOPPED, signal.SIGKILL), "tracer-died"),
        ((STOPPED, signal.SIGSTOP), "timeout"),
    ],
    indirect=["sabotaged"],
)
def test_tracers_that_never_come_to_the_end_of_an_act(built: Built, sabotaged: Trap, reason: str) -> None:
    with reading(built) as target:
        sabotaged.catches(target.pid, Outcome.DEFERRED, reason)
        assert target.policy() == DEFAULT
        eventually("replaced", lambda: sabotaged.daemon.metric("tracer_restarts_total") >= 1)
        sabotaged.cgroup.leave(target.pid)


def test_a_thread_that_cannot_leave_a_dead_tracers_stub(built: Built, trap: Trap) -> None:
    """Stopped by job control as it is, it makes the call only when it goes on: and then the policy is there."""
    with reading(built) as target, Acting() as acting:
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        for step in range(dying_tracer.STEPS):
            with contextlib.closing(dying_tracer.make(step)) as tracer:
                acting.with_tracer(tracer).one(target, GIVEN)
            wait_until(lambda: target.state() == "T")
            if int(ROOT.read_text(f"/proc/{target.pid}/syscall").split()[-1], 16) in padding_of(target)[0]:
                break
        else:
            pytest.fail("never died in the stub")
        trap.catches(target.pid, Outcome.DEFERRED, "stub")
        assert target.policy() == DEFAULT
        os.kill(target.pid, signal.SIGCONT)
        trap.lets_go(target.pid)

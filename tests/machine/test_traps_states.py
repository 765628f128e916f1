"""Tasks that a policy cannot be given to, now or ever: each stays unharmed, and the daemon says which it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote import client, wire
from hetmemd.remote.client import Tracer
from hetmemd.remote.result import Outcome
from hetmemd.remote.wire import Request
from tests.conftest import HERE
from tests.machine import dying_tracer
from tests.machine.daemon import Group, fresh_path
from tests.machine.dying_tracer import SEIZED, STOPPED
from tests.machine.halted import Halted, is_halted, waits
from tests.machine.remote_target import BIND, HANG, INTERLEAVE, ROOT, Acting, Target, wait_until
from tests.machine.trap import GIVEN, Trap

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab(kernel="6.1"),
    pytest.mark.lab(kernel="newest", topology="two-sockets"),
]

Built = Callable[..., Path]

FILTERS = ("no filter", "errno", "trap", "kill", "strict")
"""Of seccomp, that do not let a policy be set."""
LEAST_AND_MOST = ("no filter", "kill")
SOME = FILTERS if HERE is None else LEAST_AND_MOST
"""Guests are slow."""
LIMIT = 1.0 if HERE is None else 3.0
"""Seconds; a tracer that comes no further is given up after twice that, and looked at before."""


@pytest.fixture
def reading(built: Built, trap: Trap) -> Iterator[Target]:
    """A process that blocks in a read, and has seen nothing of it all when that ends."""
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        yield target
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["write", "send", "receive"])
def test_blocked_in_a_large_call(built: Built, trap: Trap, kind: str) -> None:
    with Target([built("large"), kind]) as target:
        target.expect("ready")
        target.wait_blocked()
        trap.catches(target.pid, Outcome.DEFERRED, "short-io")
        assert target.policy() == DEFAULT
        # Amid the copying it would not be known from a thread that computes.
        trap.forgets(target.pid)
        assert target.finish() == "complete\n"


def test_stopped_by_job_control(reading: Target, trap: Trap) -> None:
    os.kill(reading.pid, signal.SIGSTOP)
    os.waitpid(reading.pid, os.WUNTRACED)
    trap.serves(reading)
    wait_until(lambda: reading.state() == "T")
    # Nor was the parent told of another stop, or of a continuation.
    assert os.waitpid(reading.pid, os.WUNTRACED | os.WCONTINUED | os.WNOHANG) == (0, 0)
    os.kill(reading.pid, signal.SIGCONT)


@contextlib.contextmanager
def frozen_v2(folder: Path) -> Iterator[None]:
    def freeze(frozen: int) -> None:
        (folder / "cgroup.freeze").write_text(str(frozen))
        wait_until(lambda: f"frozen {frozen}" in (folder / "cgroup.events").read_text())

    try:
        freeze(1)
        yield
    finally:
        freeze(0)


def test_frozen_by_cgroup_v2(reading: Target, trap: Trap) -> None:
    with frozen_v2(trap.cgroup.folder):
        trap.catches(reading.pid, Outcome.DEFERRED, "frozen")
        assert reading.policy() == DEFAULT
    trap.lets_go(reading.pid)
    with frozen_v2(trap.cgroup.folder), Acting() as acting:
        # Nothing has to be done, so nothing stands in the way.
        assert acting.one(reading, GIVEN).outcome is Outcome.APPLIED


@pytest.fixture(params=SOME)
def filtered(request: pytest.FixtureRequest, built: Built) -> Iterator[Target]:
    """As `reading`, under a seccomp filter of each kind that does not let it set a policy."""
    kind: str = request.param
    command: list[str | Path] = [built("family"), "read"] if kind == "no filter" else [built("filters"), kind]
    with Target(command) as target:
        target.expect("ready")
        target.wait_blocked()
        yield target
        assert target.finish() == "alive\n"


@pytest.fixture
def cgroup() -> Iterator[Group]:
    """Of version 2, and of no policy."""
    group = Group(fresh_path())
    yield group
    group.remove()


def test_frozen_between_the_look_and_the_act(cgroup: Group, filtered: Target) -> None:
    """It stops, but its call waits for the thaw: it is taken back before. Later, its filter would not be suspended."""
    cgroup.take(filtered.pid)
    halted = Halted(filtered, filtered.pid, SEIZED, limit=LIMIT)
    with frozen_v2(cgroup.folder):
        assert halted.is_halted()
        halted.go_on()
        assert halted.said() == (Outcome.DEFERRED, "timeout")
    # As if nothing had been, and it can be called as before.
    assert filtered.policy() == DEFAULT
    with Acting() as acting:
        assert acting.one(filtered, BIND).outcome is Outcome.APPLIED


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup of version 1's freezer."""
    lines = [line.split() for line in ROOT.read_text("/proc/mounts").splitlines()]
    mounts = [fields[1] for fields in lines if fields[2] == "cgroup" and "freezer" in fields[3].split(",")]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if not mounts:
            if subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "none", folder], check=False).returncode:
                pytest.skip("this kernel has no freezer of version 1")
            stack.callback(subprocess.run, ["umount", folder], check=True)
        path = Path(mounts[0] if mounts else folder) / f"hetmemd-{os.getpid()}"
        path.mkdir()
        yield path
        (path / "freezer.state").write_text("THAWED")
        wait_until(lambda: not (path / "cgroup.procs").read_text())
        path.rmdir()


@contextlib.contextmanager
def frozen_v1(folder: Path, pid: int) -> Iterator[None]:
    (folder / "cgroup.procs").write_text(str(pid))
    (folder / "freezer.state").write_text("FROZEN")
    try:
        wait_until(lambda: (folder / "freezer.state").read_text() == "FROZEN\n")
        yield
    finally:
        (folder / "freezer.state").write_text("THAWED")
        (folder.parent / "cgroup.procs").write_text(str(pid))


def test_frozen_by_cgroup_v1(reading: Target, trap: Trap, freezer: Path) -> None:
    with frozen_v1(freezer, reading.pid):
        trap.catches(reading.pid, Outcome.DEFERRED, "uninterruptible")
        assert reading.policy() == DEFAULT
    trap.lets_go(reading.pid)


def test_frozen_by_cgroup_v1_between_the_look_and_the_act(filtered: Target, freezer: Path) -> None:
    """It never stops, and so nothing is done to it: the tracer is killed for that. Whatever its filter would do to it
    for the call, it was not suspended, as it is only from the stop on."""
    halted = Halted(filtered, filtered.pid, SEIZED, limit=LIMIT)
    with frozen_v1(freezer, filtered.pid):
        assert halted.is_halted()
        halted.go_on()
        assert halted.said() == (Outcome.DEFERRED, "timeout")
    assert filtered.policy() == DEFAULT
    with Acting() as acting:
        assert acting.one(filtered, BIND).outcome is Outcome.APPLIED


@pytest.mark.parametrize("kind", LEAST_AND_MOST)
def test_frozen_by_cgroup_v1_amid_the_act(built: Built, freezer: Path, kind: str) -> None:
    """It does not come to its call, nor stop again. With the tracer gone, a filter that ends whoever makes the call
    would do so at the thaw: it is left to the thread until then, even by a daemon that ends, and takes it back."""
    command: list[str | Path] = [built("family"), "read"] if kind == "no filter" else [built("filters"), kind]
    with Target(command) as target:
        target.expect("ready")
        target.wait_blocked()
        halted = Halted(target, target.pid, STOPPED, limit=LIMIT)
        tracer = halted.pid
        with frozen_v1(freezer, target.pid):
            assert halted.is_halted()
            halted.go_on()
            assert halted.said() == (Outcome.DEFERRED, "timeout")
            assert procfs.status(ROOT, target.pid)["TracerPid"] == str(tracer)
            with Acting() as acting:  # another is there
                assert acting.one(target, BIND).outcome is Outcome.DEFERRED
        wait_until(lambda: procfs.stat(ROOT, tracer).state == "Z")
        assert target.policy() == DEFAULT
        with Acting() as acting:
            assert acting.one(target, BIND).outcome is Outcome.APPLIED
        assert target.finish() == "alive\n"


def test_frozen_by_cgroup_v1_amid_the_act_whose_caller_is_cancelled(built: Built, freezer: Path) -> None:
    """As looks are at a stop of the daemon: the tracer is not killed before it can be seen that it is overdue."""

    async def scenario(target: Target, tracer: Tracer) -> None:
        asking = asyncio.create_task(tracer.apply(target.identity, BIND, [target.pid]))
        while not is_halted(tracer):
            await asyncio.sleep(0.001)
        with frozen_v1(freezer, target.pid):
            os.kill(tracer.pid or 0, signal.SIGCONT)
            while not waits(tracer):
                await asyncio.sleep(0.001)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with Target([built("filters"), "kill"]) as target:
        target.expect("ready")
        target.wait_blocked()
        with contextlib.closing(dying_tracer.make(STOPPED, signal.SIGSTOP, LIMIT)) as tracer:
            asyncio.run(scenario(target, tracer))
            wait_until(lambda: procfs.status(ROOT, target.pid)["TracerPid"] == "0")
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


def test_a_tracer_that_was_left_to_a_thread_goes_on_with_no_other(built: Built, freezer: Path) -> None:
    """What these were to call may not be wanted any more."""

    async def scenario(target: Target, tracer: Tracer) -> int:
        call, data = wire.set_mempolicy(BIND)
        tids = tuple(procfs.tids(ROOT, target.pid))
        request = Request(target.identity, tids, (call,), data, policy=None, once=True)
        asking = asyncio.create_task(tracer._ask(request, {}))
        while not is_halted(tracer):
            await asyncio.sleep(0.001)
        left = tracer.pid or 0
        with frozen_v1(freezer, target.pid):
            os.kill(left, signal.SIGCONT)
            with pytest.raises(client._Died, match="timeout"):
                await asking
        return left

    with Target([built("family"), "threads", "3"]) as target:
        target.expect("ready")
        target.wait_blocked()
        with contextlib.closing(dying_tracer.make(STOPPED, signal.SIGSTOP, LIMIT)) as tracer:
            left = asyncio.run(scenario(target, tracer))
            wait_until(lambda: procfs.stat(ROOT, left).state == "Z")
        assert target.policies() == {DEFAULT}
        assert target.finish() == "disturbed 0\n"


ASKING = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.machine import dying_tracer
from tests.machine.halted import is_halted
from tests.machine.remote_target import *
async def ask(target, limit):
    tracer = dying_tracer.make(dying_tracer.STOPPED, signal.SIGSTOP, limit)
    asking = asyncio.create_task(tracer.apply(target, BIND, [target.pid]))
    while not is_halted(tracer):
        await asyncio.sleep(0.001)
    print(tracer.pid, flush=True)
    while not tracer._board.is_overdue():
        await asyncio.sleep(0.001)
    assert tracer.pids == {tracer.pid}
    if limit > 1.0:
        tracer.close()
    else:
        left = tracer.pid
        await asking
        assert tracer.pid is None and tracer.pids == {left}
    print("left", flush=True)
    signal.pause()
asyncio.run(ask(procfs.identify(ROOT, int(sys.argv[2])), float(sys.argv[3])))
"""


@pytest.mark.parametrize("limit", [1.0, 4.0], ids=["overstays", "closed"])
def test_a_tracer_that_is_left_to_a_thread_outlives_the_daemon(built: Built, freezer: Path, limit: float) -> None:
    checkout = Path(__file__).parents[2]
    with Target([built("filters"), "kill"]) as target:
        target.expect("ready")
        target.wait_blocked()
        with Target([sys.executable, "-c", ASKING, checkout, str(target.pid), str(limit)]) as daemon:
            left = int(daemon.line())
            handle = os.pidfd_open(left)
            try:
                with frozen_v1(freezer, target.pid):
                    os.kill(left, signal.SIGCONT)
                    daemon.expect("left")
                    daemon.process.kill()
                    daemon.process.wait()
                    assert procfs.status(ROOT, target.pid)["TracerPid"] == str(left)
                    # Nobody waits for the end of what it could write.
                    assert ROOT.path(f"/proc/{left}/fd/2").resolve() == Path(os.devnull)
                assert select.select([handle], [], [], HANG)[0], "still there"
            finally:
                os.close(handle)
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


def test_a_tracer_more_than_can_be_left_to_frozen_threads(
    built: Built, freezer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, and the thread makes its call by itself at the thaw."""
    monkeypatch.setattr(client, "MOST_LEFT", 0)
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        halted = Halted(target, target.pid, STOPPED, limit=LIMIT)
        with frozen_v1(freezer, target.pid):
            halted.go_on()
            assert halted.said() == (Outcome.DEFERRED, "timeout")
        wait_until(lambda: target.policy() == BIND)
        assert target.finish() == "alive\n"


def test_zombies(trap: Trap) -> None:
    with Target(["cat"]) as target:
        trap.cgroup.take(target.pid)
        trap.lets_go(target.pid)
        os.kill(target.pid, signal.SIGKILL)
        wait_until(lambda: target.state() == "Z")
        # There is nothing left to give a policy to, and so nothing that failed.
        trap.says(target.pid, Outcome.GONE, "")
    with Acting() as acting, Target(["true"]) as target:
        wait_until(lambda: target.state() == "Z")
        result = acting.one(target, INTERLEAVE)
        assert (result.outcome, result.reason) == (Outcome.GONE, "exited")
        assert trap.failures(result.outcome, result.reason) >= 0


def test_a_dead_leader_with_live_threads(built: Built, trap: Trap) -> None:
    join = ["sh", "-c", 'echo 0 >"$0" && exec "$@"', str(trap.cgroup.folder / "cgroup.procs")]
    with Target([*join, built("family"), "leader"]) as target:
        target.expect("ready")
        wait_until(lambda: target.state() == "Z")
        trap.lets_go(target.pid)
        assert target.finish() == "alive\n"
    with Acting() as acting, Target([built("family"), "leader"]) as target:
        target.expect("ready")
        wait_until(lambda: target.state() == "Z")
        leader, thread = acting.apply(target, INTERLEAVE)
        assert (leader.outcome, leader.reason) == (Outcome.GONE, "exited")
        assert (thread.outcome, thread.after) == (Outcome.APPLIED, INTERLEAVE)
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["vfork", "clone_vm"])
def test_T5_a_child_in_its_parents_memory(built: Built, trap: Trap, kind: str) -> None:
    with Target([built("family"), kind]) as target:
        target.expect("ready")
        child = int(target.line())
        trap.catches(target.pid, Outcome.DEFERRED, "shared-memory")
        trap.catches(child, Outcome.DEFERRED, "shared-memory")
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["vfork", "clone_vm"])
def test_T5_a_child_in_the_memory_of_a_parent_elsewhere(built: Built, trap: Trap, kind: str) -> None:
    """As when a manager starts a service: the child is in the service's cgroup, its memory is the manager's."""
    with Target([built("family"), kind]) as target:
        target.expect("ready")
        child = int(target.line())
        trap.catches(child, Outcome.DEFERRED, "shared-memory")
        assert trap.task(target.pid) == ("", "")
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


def test_T5_kernel_threads(trap: Trap) -> None:
    kthreadd = procfs.identify(ROOT, 2)
    with Acting() as acting:
        (result,) = acting.apply(kthreadd, INTERLEAVE)
    assert (result.outcome, result.reason) == (Outcome.UNSTEERABLE, "kernel-thread")
    assert trap.failures(result.outcome, result.reason) >= 0
    # The daemon does not even try.
    assert trap.task(kthreadd.pid) == ("", "")


@pytest.mark.parametrize("kind", ["poller", "worker"])
def test_io_uring_threads(built: Built, trap: Trap, kind: str) -> None:
    """They have the policy that they were made with; the rest of the process gets its own."""
    with Target([built("uring"), kind]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) == 2)
        trap.catches(target.pid, Outcome.UNSTEERABLE, "io-worker")
        leader, worker = procfs.tids(ROOT, target.pid)
        assert (target.policy(leader), target.policy(worker)) == (GIVEN, DEFAULT)
        assert target.finish() == "alive\n"


def test_T5_init_the_daemon_and_the_tracer(acting: Acting, trap: Trap) -> None:
    assert acting.tracer.pid is None
    (init,) = acting.apply(procfs.identify(ROOT, 1), INTERLEAVE, [1])
    assert (init.outcome, init.reason) == (Outcome.REFUSED, "init")
    assert acting.tracer.pid
    for pid in (os.getpid(), acting.tracer.pid):
        (result,) = acting.apply(procfs.identify(ROOT, pid), INTERLEAVE, [pid])
        assert (result.outcome, result.reason) == (Outcome.REFUSED, "self")
        assert trap.failures(result.outcome, result.reason) >= 0
    assert trap.failures(init.outcome, init.reason) >= 0
    # The daemon does not even try.
    assert trap.daemon.popen
    trap.cgroup.take(trap.daemon.popen.pid)
    with Target(["cat"]) as target:
        trap.cgroup.take(target.pid)
        trap.lets_go(target.pid)
    assert trap.task(trap.daemon.popen.pid) == ("", "")
    trap.cgroup.leave(trap.daemon.popen.pid)


TRACE = """
import sys
sys.path.insert(0, sys.argv[1])
from hetmemd.kernel import ptrace
ptrace.seize(int(sys.argv[2]), 0)
print("tracing", flush=True)
sys.stdin.read()
"""


def test_traced_by_a_program_that_lets_it_run(reading: Target, trap: Trap) -> None:
    checkout = Path(__file__).parents[2]
    with Target([sys.executable, "-c", TRACE, checkout, str(reading.pid)]) as other:
        other.expect("tracing")
        trap.catches(reading.pid, Outcome.DEFERRED, "traced")
        assert reading.policy() == DEFAULT
        other.finish()
    trap.lets_go(reading.pid)

"""Programs that run on while they are called, and that a call could harm: each finds out for itself, and finds nothing.

Most are first given a policy by the daemon and give it back, then called again and again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import procfs, ptrace, vdso
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote.act import ATTEMPTS
from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.daemon import Daemon, Group, fresh_path
from tests.machine.remote_target import ALTERNATING, INTERLEAVE, ROOT, Acting, Target, numbers, wait_until
from tests.machine.trap import GIVEN, Trap

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab(kernel="6.1"),
]

Built = Callable[..., Path]


def test_signals_that_are_queued(built: Built, trap: Trap, acting: Acting) -> None:
    total = 20000
    with Target([built("signals"), str(total)]) as target:
        target.expect("ready")
        applied = 0
        for turn in itertools.count():
            result = acting.one(target, ALTERNATING[turn % 2])
            if result.outcome is Outcome.GONE:
                break
            applied += result.outcome is Outcome.APPLIED
            # It ends when it has them all, and what is said of it then does not matter.
            assert result.outcome is Outcome.APPLIED or result.reason == "signals" or target.state() == "Z", result
        told = numbers(target.finish())
    assert applied > 20
    assert told == {"received": total, "misordered": 0, "miscoded": 0, "leaked": 0}


@pytest.mark.parametrize("kind", ["spin", "wait"])
def test_a_storm_of_signals(built: Built, trap: Trap, acting: Acting, kind: str) -> None:
    """Whenever the thread is stopped, a signal arrives before it can be called, and it is let go for that."""
    with Target([built("storm"), kind]) as target:
        target.expect("ready")
        if kind == "wait":
            target.wait_blocked()
        stopped = dying_tracer.STOPPED
        with contextlib.closing(dying_tracer.make(stopped, signal.SIGRTMIN, thread=target.pid)) as tracer:
            result = acting.with_tracer(tracer).one(target, INTERLEAVE)
        assert (result.outcome, result.reason) == (Outcome.DEFERRED, "signals")
        assert target.policy() == DEFAULT
        assert trap.failures(result.outcome, result.reason) >= 0
        trap.serves(target)
        assert numbers(target.finish()) == {"received": ATTEMPTS}


def test_restartable_sequences(built: Built, acting: Acting) -> None:
    # Not taken into a cgroup: before 6.2 that gives a task all processors back, and these threads must share one.
    # The C library's own registration is switched off: the program makes its own.
    with Target(["env", "GLIBC_TUNABLES=glibc.pthread.rseq=0", built("rseq")]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) == 3)
        stopped = 0
        for turn in range(60):
            results = acting.apply(target, ALTERNATING[turn % 2])
            assert {result.outcome for result in results} == {Outcome.APPLIED}
            stopped += sum(1 for result in results if result.pause_ns)
        told = numbers(target.finish())
    assert stopped >= 180
    assert told["committed"] > 0
    assert told["lost"] == 0


@pytest.mark.parametrize("kind", ["errno", "trap", "kill", "strict"])
def test_seccomp_filters(built: Built, trap: Trap, acting: Acting, kind: str) -> None:
    with Target([built("filters"), kind]) as target:
        target.expect("ready")
        wait_until(lambda: target.state() == "S" and procfs.status(ROOT, target.pid)["Seccomp"] != "0")
        target.wait_blocked()
        trap.serves(target)
        assert acting.alternate(target, 5) == 5
        assert procfs.status(ROOT, target.pid)["Seccomp"] == ("1" if kind == "strict" else "2")
        assert target.finish() == "alive\n"


@pytest.fixture
def lacking(request: pytest.FixtureRequest) -> Iterator[Trap]:
    """With a daemon that lacks the right that the test names."""
    with tempfile.TemporaryDirectory(prefix="hetmemd-") as folder:
        right: str = request.param
        daemon = Daemon(Path(folder), ["setpriv", f"--bounding-set=-{right}", f"--inh-caps=-{right}"])
        daemon.start()
        group = Group(fresh_path())
        trap = Trap(daemon, group)
        yield trap
        trap.remove()
        group.remove()
        daemon.end()


@pytest.mark.parametrize("lacking", ["sys_admin"], indirect=True)
def test_a_seccomp_filter_that_cannot_be_suspended(built: Built, lacking: Trap) -> None:
    with Target([built("filters"), "kill"]) as filtered, Target([built("family"), "read"]) as free:
        filtered.expect("ready")
        free.expect("ready")
        wait_until(lambda: procfs.status(ROOT, filtered.pid)["Seccomp"] != "0")
        lacking.catches(filtered.pid, Outcome.REFUSED, "seccomp")
        assert filtered.policy() == DEFAULT
        lacking.cgroup.take(free.pid)
        lacking.lets_go(free.pid)
        assert filtered.finish() == "alive\n"
        assert free.finish() == "alive\n"


@pytest.mark.parametrize("lacking", ["sys_ptrace"], indirect=True)
def test_without_the_right_to_trace(built: Built, lacking: Trap) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        lacking.catches(target.pid, Outcome.REFUSED, "unreadable")
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


def test_syscall_user_dispatch(built: Built, trap: Trap, acting: Acting) -> None:
    with Target([built("dispatch")]) as target:
        target.expect("ready")
        trap.catches(target.pid, Outcome.UNSTEERABLE, "syscall-user-dispatch")
        for _ in range(20):
            result = acting.one(target, INTERLEAVE)
            assert (result.outcome, result.reason) == (Outcome.UNSTEERABLE, "syscall-user-dispatch")
        assert target.policy() == DEFAULT
        os.kill(target.pid, signal.SIGTERM)
        assert numbers(target.finish()) == {"dispatched": 0}


def test_32_bit_programs(built: Built, trap: Trap, acting: Acting) -> None:
    with Target([built("thirtytwo")]) as target:
        target.expect("ready")
        trap.serves(target)
        assert acting.alternate(target, 200) > 150
        assert target.policy() in ALTERNATING
        assert target.finish() == "alive\n"


def test_a_64_bit_program_in_32_bit_code(built: Built, trap: Trap, acting: Acting) -> None:
    with Target([built("compat")]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) == 2)
        trap.catches(target.pid, Outcome.UNSTEERABLE, "compat")
        leader, other = procfs.tids(ROOT, target.pid)
        assert (target.policy(leader), target.policy(other)) == (DEFAULT, GIVEN)
        for _ in range(50):
            assert acting.one(target, INTERLEAVE).reason == "compat"
        assert target.finish() == "alive\n"


def test_static_programs(built: Built, trap: Trap, acting: Acting) -> None:
    with Target([built("family", "-static"), "threads", "3"]) as target:
        target.expect("ready")
        trap.serves(target)
        assert acting.alternate(target, 20) == 20
        assert target.finish() == "disturbed 0\n"


def test_pid_namespaces(built: Built, trap: Trap) -> None:
    """The task is pid 1 where it lives, and nothing else on that account."""
    command: list[str | Path] = [
        "unshare",
        "--pid",
        "--mount-proc",
        "--fork",
        "--kill-child",
        built("family"),
        "threads",
        "3",
    ]
    with Target(command) as target:
        target.expect("ready")
        inner = int(ROOT.read_text(f"/proc/{target.pid}/task/{target.pid}/children"))
        assert procfs.status(ROOT, inner)["NSpid"].split() == [str(inner), "1"]
        trap.serves(target, inner)
        assert target.policy() == DEFAULT
        assert target.finish() == "disturbed 0\n"


def test_a_vdso_without_room(built: Built, trap: Trap) -> None:
    """What somebody else has written behind the image is not overwritten."""
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        base, _ = vdso.address(ROOT.read_bytes(f"/proc/{target.pid}/auxv"))
        fd = os.open(f"/proc/{target.pid}/mem", os.O_RDWR)
        place = vdso.describe(base, os.pread(fd, vdso.PAGE, base)).padding.stop - 64
        # As its tracer: some kernels let nobody else (proc_mem.force_override=ptrace).
        ptrace.seize(target.pid, 0)
        ptrace.interrupt(target.pid)
        os.waitpid(target.pid, os.WUNTRACED)
        os.pwrite(fd, b"mine", place)
        ptrace.detach(target.pid)
        trap.catches(target.pid, Outcome.UNSTEERABLE, "vdso")
        assert os.pread(fd, 4, place) == b"mine"
        os.close(fd)
        assert target.finish() == "alive\n"

"""States in which a thread is not called, each with its outcome and reason; and what a dead tracer leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import cgroupfs, procfs, vdso
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote import target as remote_target
from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, INTERLEAVE, ROOT, Acting, Target, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]


def said(acting: Acting, target: Target, tid: int | None = None) -> tuple[Outcome, str]:
    result = acting.one(target, INTERLEAVE, tid)
    return result.outcome, result.reason


def test_a_stopped_process_is_called_and_stays_stopped(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        assert said(acting, target) == (Outcome.APPLIED, "")
        assert target.policy() == INTERLEAVE
        wait_until(lambda: target.state() == "T")
        # Nor was the parent told of another stop, or of a continuation.
        assert os.waitpid(target.pid, os.WUNTRACED | os.WCONTINUED | os.WNOHANG) == (0, 0)
        os.kill(target.pid, signal.SIGCONT)
        assert target.finish() == "alive\n"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup2 for one test; whatever is in it goes back to where this process is."""
    folder = Path(cgroupfs.directory(ROOT, f"/hetmemd-remote-{os.getpid()}"))
    folder.mkdir()
    yield folder
    (folder / "cgroup.freeze").write_text("0")
    wait_until(lambda: "populated 0" in (folder / "cgroup.events").read_text())
    folder.rmdir()


def test_a_frozen_process_is_left_for_the_thaw(built: Built, acting: Acting, cgroup: Path) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        (cgroup / "cgroup.procs").write_text(str(target.pid))
        (cgroup / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text())
        assert said(acting, target) == (Outcome.DEFERRED, "frozen")
        assert target.policy() == DEFAULT
        (cgroup / "cgroup.freeze").write_text("0")
        wait_until(lambda: "frozen 0" in (cgroup / "cgroup.events").read_text())
        assert said(acting, target) == (Outcome.APPLIED, "")
        (cgroup / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text())
        # Nothing has to be done, so nothing stands in the way.
        assert said(acting, target) == (Outcome.APPLIED, "")
        (cgroup / "cgroup.freeze").write_text("0")
        assert target.finish() == "alive\n"


TRACE = """
import sys
sys.path.insert(0, sys.argv[1])
from hetmemd.kernel import ptrace
ptrace.seize(int(sys.argv[2]), 0)
print("tracing", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_traced_already(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        checkout = Path(__file__).parents[2]
        with Target([sys.executable, "-c", TRACE, checkout, str(target.pid)]) as other:
            other.expect("tracing")
            result = acting.one(target, INTERLEAVE)
            assert (result.outcome, result.reason, result.errno) == (Outcome.DEFERRED, "traced", 1)
            other.finish()
        assert said(acting, target) == (Outcome.APPLIED, "")
        assert target.finish() == "alive\n"


def test_a_zombie_is_gone(acting: Acting) -> None:
    with Target(["true"]) as target:
        wait_until(lambda: target.state() == "Z")
        assert said(acting, target) == (Outcome.GONE, "exited")


def test_a_process_that_was_reaped_or_replaced_is_gone(built: Built, acting: Acting) -> None:
    with Target(["true"]) as target:
        identity = target.identity
        target.process.wait()
        assert [result.outcome for result in acting.apply(identity, INTERLEAVE)] == [Outcome.GONE]
        assert [result.outcome for result in acting.apply(identity, INTERLEAVE, [identity.pid])] == [Outcome.GONE]
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        earlier = ProcessId(target.pid, target.identity.start - 1)
        assert [result.outcome for result in acting.apply(earlier, INTERLEAVE)] == [Outcome.GONE]
        assert [result.outcome for result in acting.apply(earlier, INTERLEAVE, [target.pid])] == [Outcome.GONE]
        assert target.policy() == DEFAULT


def test_the_tid_of_another_process_is_not_touched(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target, Target([built("family"), "read"]) as other:
        target.expect("ready")
        other.expect("ready")
        (result,) = acting.apply(target, INTERLEAVE, [other.pid])
        assert result.outcome is Outcome.GONE
        assert other.policy() == DEFAULT


def test_threads_of_a_dead_leader(built: Built, acting: Acting) -> None:
    with Target([built("family"), "leader"]) as target:
        target.expect("ready")
        wait_until(lambda: target.state() == "Z")
        leader, thread = acting.apply(target, INTERLEAVE)
        assert (leader.outcome, leader.reason) == (Outcome.GONE, "exited")
        assert (thread.outcome, thread.after) == (Outcome.APPLIED, INTERLEAVE)
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["vfork", "clone_vm"])
def test_memory_that_two_processes_share(built: Built, acting: Acting, kind: str) -> None:
    with Target([built("family"), kind]) as target:
        target.expect("ready")
        child = procfs.identify(ROOT, int(target.line()))
        assert said(acting, target) == (Outcome.DEFERRED, "shared-memory")
        (result,) = acting.apply(child, INTERLEAVE)
        assert (result.outcome, result.reason) == (Outcome.DEFERRED, "shared-memory")
        assert target.policy() == DEFAULT
        assert target.finish() == "alive\n"


def test_worker_threads_of_the_kernel(built: Built, acting: Acting) -> None:
    with Target([built("uring")]) as target:
        target.expect("ready")
        leader, worker = acting.apply(target, INTERLEAVE)
        assert leader.outcome is Outcome.APPLIED
        assert (worker.outcome, worker.reason) == (Outcome.UNSTEERABLE, "io-worker")
        assert target.finish() == "alive\n"


def test_T5_kernel_threads_are_not_touched(acting: Acting) -> None:
    kthreadd = procfs.identify(ROOT, 2)
    (result,) = acting.apply(kthreadd, INTERLEAVE)
    assert (result.outcome, result.reason) == (Outcome.UNSTEERABLE, "kernel-thread")


def test_T5_neither_are_init_the_daemon_and_the_tracer(acting: Acting) -> None:
    (init,) = acting.apply(procfs.identify(ROOT, 1), INTERLEAVE, [1])
    assert (init.outcome, init.reason) == (Outcome.REFUSED, "init")
    assert acting.tracer.pid
    for pid in (os.getpid(), acting.tracer.pid):
        (result,) = acting.apply(procfs.identify(ROOT, pid), INTERLEAVE, [pid])
        assert (result.outcome, result.reason) == (Outcome.REFUSED, "self")


def test_a_filter_is_not_provoked_without_the_right_to_suspend_it(built: Built) -> None:
    """CAP_SYS_PTRACE is enough for the call itself; a filter stays in force without CAP_SYS_ADMIN."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.machine.remote_target import *\n"
        "import os\n"
        "with Acting() as acting:\n"
        "    for pid in sys.argv[2:]:\n"
        "        (result,) = acting.apply(procfs.identify(ROOT, int(pid)), INTERLEAVE)\n"
        "        print(result.outcome, result.reason)\n"
    )
    with Target([built("filters"), "kill"]) as filtered, Target([built("family"), "read"]) as free:
        filtered.expect("ready")
        free.expect("ready")
        wait_until(lambda: procfs.status(ROOT, filtered.pid)["Seccomp"] != "0")
        drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
        told = subprocess.run(
            [*drop, sys.executable, "-c", script, Path(__file__).parents[2], str(filtered.pid), str(free.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.splitlines() == ["refused seccomp", "applied "]
        assert filtered.finish() == "alive\n"
        assert free.finish() == "alive\n"


def padding_of(target: Target) -> tuple[range, bytes]:
    """Of its vdso: where, and what is there."""
    base, _ = vdso.address(ROOT.read_bytes(f"/proc/{target.pid}/auxv"))
    fd = os.open(f"/proc/{target.pid}/mem", os.O_RDONLY)
    try:
        padding = vdso.describe(base, os.pread(fd, vdso.PAGE, base)).padding
        return padding, os.pread(fd, len(padding), padding.start)
    finally:
        os.close(fd)


def is_clean(target: Target) -> bool:
    return padding_of(target)[1].strip(b"\0") == b""


def die_with_a_stub_in_place(acting: Acting, target: Target) -> None:
    """Kill a tracer at the first step after which its stub is in the target."""
    for step in range(dying_tracer.STEPS):
        tracer = dying_tracer.make(step)
        with contextlib.closing(tracer):
            result = acting.with_tracer(tracer).one(target, BIND)
        assert (result.outcome, result.reason) == (Outcome.DEFERRED, "tracer-died")
        if not is_clean(target):
            return
    pytest.fail("no stub was left")


def test_what_a_dead_tracer_left_is_cleared(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        die_with_a_stub_in_place(acting, target)
        assert said(acting, target) == (Outcome.APPLIED, "")
        assert is_clean(target)
        assert target.finish() == "alive\n"


def test_a_thread_that_is_in_a_dead_tracers_stub_leaves_it_first(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, os.WUNTRACED)
        # Stopped as it is, it cannot leave the stub that it is sent into.
        for step in range(dying_tracer.STEPS):
            tracer = dying_tracer.make(step)
            with contextlib.closing(tracer):
                acting.with_tracer(tracer).one(target, BIND)
            wait_until(lambda: target.state() == "T")
            if int(ROOT.read_text(f"/proc/{target.pid}/syscall").split()[-1], 16) in padding_of(target)[0]:
                break
        else:
            pytest.fail("never died in the stub")
        assert said(acting, target) == (Outcome.DEFERRED, "stub")
        os.kill(target.pid, signal.SIGCONT)
        target.wait_blocked()
        assert target.policy() == BIND, "the stub did its call"
        assert said(acting, target) == (Outcome.APPLIED, "")
        assert is_clean(target)
        assert target.finish() == "alive\n"


def test_something_else_in_the_padding_is_not_overwritten(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        base, _ = vdso.address(ROOT.read_bytes(f"/proc/{target.pid}/auxv"))
        fd = os.open(f"/proc/{target.pid}/mem", os.O_RDWR)
        os.pwrite(fd, b"mine", base + 8192 - 64)
        assert said(acting, target) == (Outcome.UNSTEERABLE, "vdso")
        os.close(fd)
        assert target.finish() == "alive\n"


def test_a_program_that_was_replaced_is_told_from_one_that_runs_on() -> None:
    with Target(["sh", "-c", "echo ready; read line; exec cat"]) as target:
        target.expect("ready")
        seen = remote_target.Target(ROOT, target.identity)
        try:
            assert seen.room.padding
            assert not seen.has_executed()
            assert target.process.stdin
            target.process.stdin.write("\n")
            target.process.stdin.flush()
            wait_until(lambda: procfs.stat(ROOT, target.pid).comm == "cat")
            wait_until(seen.has_executed)
            seen.forget_memory()
            assert seen.room.padding
            assert not seen.has_executed()
        finally:
            seen.close()
        target.finish()

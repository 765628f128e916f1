"""Which process and program is meant, and what a dead tracer leaves in one. What forbids an act: test_traps_*.py."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote import target as remote_target
from hetmemd.remote import wire
from hetmemd.remote.act import Actor
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import Declined
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, INTERLEAVE, ROOT, Acting, Target, padding_of, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]


def said(acting: Acting, target: Target, tid: int | None = None) -> tuple[Outcome, str]:
    result = acting.one(target, INTERLEAVE, tid)
    return result.outcome, result.reason


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


def test_what_is_laid_out_for_an_earlier_program_is_laid_out_anew(built: Built) -> None:
    """Several acts are laid out at a time: one may find out that the process runs another program."""
    call, data = wire.set_mempolicy(BIND)
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        with contextlib.closing(remote_target.Target(ROOT, target.identity)) as looked:
            actor = Actor(suspends_seccomp=False)
            laid = actor.lay_out(looked, target.pid, [call], data)
            looked.forget_memory()
            with Path("/dev/null").open("wb"):  # with the number that the descriptor of the memory had
                assert actor.act(laid).results == [0]
            assert actor.stops == 1
        assert target.policy() == BIND
        assert is_clean(target)


def test_the_tid_of_another_process_is_not_touched(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target, Target([built("family"), "read"]) as other:
        target.expect("ready")
        other.expect("ready")
        (result,) = acting.apply(target, INTERLEAVE, [other.pid])
        assert result.outcome is Outcome.GONE
        assert other.policy() == DEFAULT


def is_clean(target: Target) -> bool:
    return padding_of(target)[1].strip(b"\0") == b""


def blocked_in(target: Target) -> tuple[int, int]:
    """(syscall, pc)"""
    fields = ROOT.read_text(f"/proc/{target.pid}/syscall").split()
    return int(fields[0]), int(fields[-1], 16)


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_tid_that_came_to_be_another_process_is_left_at_once(built: Built, is_foreseen: bool) -> None:
    call, data = wire.set_mempolicy(BIND)
    command: list[str | Path] = [built("family"), "read"]
    with (
        Target(command) as target,
        Target(command) as other,
        contextlib.closing(remote_target.Target(ROOT, target.identity)) as looked,
    ):
        for each in (target, other):
            each.expect("ready")
            each.wait_blocked()
        actor = Actor(suspends_seccomp=False)
        # Twice: from the first one is known with which code this syscall is interrupted.
        for _ in range(2):
            assert actor.act(actor.lay_out(looked, target.pid, [call], data, blocked_in(target))).results == [0]
            target.wait_blocked()
        before = padding_of(target)
        with pytest.raises(Declined) as declined:
            actor.act(actor.lay_out(looked, other.pid, [call], data, blocked_in(other) if is_foreseen else None))
        assert (declined.value.outcome, actor.stops) == (Outcome.GONE, 1)
        assert padding_of(target) == before
        assert is_clean(other)
        other.wait_blocked()
        assert (target.policy(), other.policy()) == (BIND, DEFAULT)
        assert (target.finish(), other.finish()) == ("alive\n", "alive\n")


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

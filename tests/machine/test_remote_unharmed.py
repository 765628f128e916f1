"""What runs on, runs on exactly as it was: registers, signals, restartable sequences, filters, threads, execs."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.remote.result import Outcome
from tests.machine.remote_target import BIND, INTERLEAVE, NODE0, ROOT, Acting, Target, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]

ALTERNATING = (INTERLEAVE, BIND)


def numbers(line: str) -> dict[str, int]:
    """`rounds 5 bad 0` as a dictionary."""
    words = line.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def inject(acting: Acting, target: Target, times: int) -> int:
    """That many acts on the leader, each another policy; how many of them came to an end."""
    applied = 0
    for turn in range(times):
        result = acting.one(target, ALTERNATING[turn % 2])
        assert result.outcome in (Outcome.APPLIED, Outcome.DEFERRED), result
        applied += result.outcome is Outcome.APPLIED
    return applied


def policies(target: Target) -> set[Mempolicy]:
    """Of all threads that live."""
    found = set()
    for tid in procfs.tids(ROOT, target.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            policy = target.policy(tid)
            if policy is not None:  # it was alive when it was read
                found.add(policy)
    return found


@pytest.mark.parametrize(
    "policy",
    [
        Mempolicy(Mode.BIND, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.INTERLEAVE, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.WEIGHTED_INTERLEAVE, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.PREFERRED, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.PREFERRED_MANY, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.BIND, NODE0, Flag.RELATIVE_NODES),
        Mempolicy(Mode.BIND, NODE0),
        Mempolicy(Mode.LOCAL),
    ],
    ids=str,
)
def test_every_mode_is_set_read_back_and_given_up(built: Built, acting: Acting, policy: Mempolicy) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        given = acting.one(target, policy)
        assert (given.outcome, given.before, given.after) == (Outcome.APPLIED, DEFAULT, policy)
        assert given.pause_ns > 0
        assert target.policy() == policy
        again = acting.one(target, policy)
        assert (again.outcome, again.before, again.after, again.pause_ns) == (Outcome.APPLIED, policy, policy, 0)
        back = acting.one(target, DEFAULT)
        assert (back.outcome, back.before, back.after) == (Outcome.APPLIED, policy, DEFAULT)
        assert target.finish() == "alive\n"


def test_what_the_kernel_refuses_is_said(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        result = acting.one(target, Mempolicy(Mode.BIND, frozenset({900}), Flag.STATIC_NODES))
        assert (result.outcome, result.reason, result.errno) == (Outcome.REFUSED, "invalid argument", 22)
        assert result.after == DEFAULT
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["spin", "syscall"])
def test_registers_flags_red_zone_and_vectors(built: Built, acting: Acting, kind: str) -> None:
    with Target([built("exact"), kind]) as target:
        target.expect("ready")
        assert inject(acting, target, 300) > 250
        os.kill(target.pid, signal.SIGTERM)
        told = numbers(target.finish())
    assert told["rounds"] > 10
    assert (told["bad"], told["short"]) == (0, 0)


def test_queued_signals_arrive_complete_and_in_order(built: Built, acting: Acting) -> None:
    total = 20000
    with Target([built("signals"), str(total)]) as target:
        target.expect("ready")
        applied = 0
        for turn in itertools.count():
            result = acting.one(target, ALTERNATING[turn % 2])
            if result.outcome is Outcome.GONE:
                break
            applied += result.outcome is Outcome.APPLIED
            assert result.outcome is Outcome.APPLIED or result.reason == "signals", result
        told = numbers(target.finish())
    assert applied > 100
    assert told == {"received": total, "misordered": 0, "miscoded": 0, "leaked": 0}


def test_restartable_sequences_lose_nothing(built: Built, acting: Acting) -> None:
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
def test_a_filter_is_suspended_for_the_call_only(built: Built, acting: Acting, kind: str) -> None:
    with Target([built("filters"), kind]) as target:
        target.expect("ready")
        wait_until(lambda: target.state() == "S" and procfs.status(ROOT, target.pid)["Seccomp"] != "0")
        target.wait_blocked()
        assert inject(acting, target, 5) == 5
        assert procfs.status(ROOT, target.pid)["Seccomp"] == ("1" if kind == "strict" else "2")
        assert target.finish() == "alive\n"


def test_syscall_user_dispatch_is_left_alone(built: Built, acting: Acting) -> None:
    with Target([built("dispatch")]) as target:
        target.expect("ready")
        for _ in range(20):
            result = acting.one(target, INTERLEAVE)
            assert (result.outcome, result.reason) == (Outcome.UNSTEERABLE, "syscall-user-dispatch")
        os.kill(target.pid, signal.SIGTERM)
        assert numbers(target.finish()) == {"dispatched": 0}


def test_a_32_bit_program(built: Built, acting: Acting) -> None:
    options = ("-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector")
    with Target([built("thirtytwo", *options)]) as target:
        target.expect("ready")
        assert inject(acting, target, 200) > 150
        assert target.policy() in ALTERNATING
        assert target.finish() == "alive\n"


def test_all_of_many_threads(built: Built, acting: Acting) -> None:
    with Target([built("family"), "threads", "200"]) as target:
        target.expect("ready")
        results = acting.apply(target, INTERLEAVE)
        assert {(result.outcome, result.after) for result in results} == {(Outcome.APPLIED, INTERLEAVE)}
        assert [result.tid for result in results] == procfs.tids(ROOT, target.pid)
        assert {target.policy(tid) for tid in procfs.tids(ROOT, target.pid)} == {INTERLEAVE}
        assert target.finish() == "disturbed 0\n"


def test_threads_that_come_and_go(built: Built, acting: Acting) -> None:
    with Target([built("family"), "churn"]) as target:
        target.expect("ready")
        for turn in range(20):
            results = acting.apply(target, ALTERNATING[turn % 2])
            assert {result.outcome for result in results} <= {Outcome.APPLIED, Outcome.GONE}
            # None with the first policy may be left anywhere: not even in a thread that was made meanwhile.
            assert policies(target) <= {ALTERNATING[turn % 2]}
        told = numbers(target.finish())
    assert told["made"] > 0
    assert told["failed"] == 0


def test_new_threads_inherit(built: Built, acting: Acting) -> None:
    with Target([built("family"), "churn"]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) >= 3)
        acting.apply(target, INTERLEAVE)
        seen = [result for _ in range(20) for result in acting.apply(target, INTERLEAVE)]
        living = [result for result in seen if result.outcome is not Outcome.GONE]
        assert living
        assert {(result.outcome, result.before, result.pause_ns) for result in living} == {
            (Outcome.APPLIED, INTERLEAVE, 0)
        }
        target.finish()


def test_children_that_are_made_and_waited_for(built: Built, acting: Acting) -> None:
    with Target([built("family"), "forks"]) as target:
        target.expect("ready")
        for turn in range(60):
            results = acting.apply(target, ALTERNATING[turn % 2])
            assert {result.outcome for result in results} <= {Outcome.APPLIED, Outcome.DEFERRED}
        told = numbers(target.finish())
    assert told["made"] > 0
    assert told["failed"] == 0


@pytest.mark.parametrize("prefix", [(), ("setarch", "-R")], ids=["", "same-addresses"])
def test_exec_by_another_thread_while_one_is_held(built: Built, prefix: tuple[str, ...]) -> None:
    """With addresses that do not change, an open memory file of the last program fits the next one all too well."""
    end = time.monotonic() + 60
    with Acting(limit_seconds=1.0) as acting, Target([*prefix, built("family"), "exec", "150"]) as target:
        target.expect("ready")
        identity = target.identity
        for turn in itertools.count():
            assert time.monotonic() < end
            for result in acting.apply(identity, ALTERNATING[turn % 2]):
                assert result.outcome in (Outcome.APPLIED, Outcome.GONE, Outcome.DEFERRED), result
            if procfs.status(ROOT, target.pid)["Threads"] == "1" and _is_last(target):
                break
        target.expect("done")
        assert {result.outcome for result in acting.apply(identity, INTERLEAVE)} == {Outcome.APPLIED}
        assert target.policy() == INTERLEAVE
        target.finish()


def _is_last(target: Target) -> bool:
    # Empty amid an exec.
    return ROOT.read_bytes(f"/proc/{target.pid}/cmdline").split(b"\0")[2:3] == [b"0"]

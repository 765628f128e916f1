"""Reasons for which a thread is left alone that a kernel seldom brings about."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hetmemd.kernel import procfs, ptrace
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId, State
from hetmemd.kernel.root import Root
from hetmemd.remote import act, client, kin, precheck, process
from hetmemd.remote.act import Actor
from hetmemd.remote.course import Sending
from hetmemd.remote.held import Held
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import Declined
from hetmemd.remote.x86_64 import CS, RIP, X86_64

TID = 41
CAUGHT = BLOCKED = 1 << (signal.SIGSYS - 1)


def said(check: Callable[[], object]) -> tuple[Outcome, str, int] | None:
    try:
        check()
    except Declined as declined:
        return declined.outcome, declined.reason, declined.errno
    return None


# -- a stopped thread


def stopped(status: dict[str, str], pc: int = 0x400000) -> Held:
    """A thread of a 64-bit program whose stubs stand at 0x1000."""
    registers = [0] * 27
    registers[CS], registers[RIP] = X86_64.code_segment, pc
    room = ptrace.RegisterSet()
    room.fill(X86_64.pack(registers))
    target = SimpleNamespace(room=SimpleNamespace(abi=X86_64, padding=range(0x1000, 0x2000)), status=lambda tid: status)
    return Held(room, cast(Any, target), TID)


@pytest.mark.parametrize(
    ("dispatches", "blocked", "caught", "expected"),
    [
        (None, BLOCKED, CAUGHT, (Outcome.DEFERRED, "sigsys-blocked", 0)),
        (None, 0, CAUGHT, None),
        (None, BLOCKED, 0, None),
        (None, BLOCKED >> 1, CAUGHT >> 1, None),
        (False, BLOCKED, CAUGHT, None),
        (True, 0, 0, (Outcome.UNSTEERABLE, "syscall-user-dispatch", 0)),
    ],
)
def test_who_may_dispatch_its_syscalls_and_blocks_what_tells_of_it(
    monkeypatch: pytest.MonkeyPatch,
    dispatches: bool | None,
    blocked: int,
    caught: int,
    expected: tuple[Outcome, str, int] | None,
) -> None:
    """Where the kernel does not say who dispatches: the call could raise a SIGSYS that kills."""
    monkeypatch.setattr(ptrace, "blocked_signals", lambda tid: blocked)
    thread = stopped({"SigCgt": f"{caught:016x}"})
    assert said(lambda: thread.look(dispatches=dispatches)) == expected


def test_a_thread_that_is_in_a_dead_tracers_stub() -> None:
    assert said(lambda: stopped({}, pc=0x1100).look(dispatches=False)) == (Outcome.DEFERRED, "stub", 0)
    assert said(lambda: stopped({}, pc=0x2000).look(dispatches=False)) is None


class Sent:
    """A thread that was sent into the stub, and comes to the entry of this or another call."""

    tid = TID

    def __init__(self, *, is_as_sent: bool) -> None:
        self.done: list[str] = []
        self._is_as_sent = is_as_sent

    def asks_for(self, changes: object) -> bool:
        return self._is_as_sent

    def skip(self) -> None:
        self.done.append("skip")

    def result(self) -> int:
        self.done.append("result")
        return 7

    def release(self, deliver: int = 0) -> None:
        self.done.append("release")


@pytest.mark.parametrize("is_as_sent", [True, False])
def test_a_thread_that_comes_to_another_call_than_it_was_sent_for_makes_none(
    monkeypatch: pytest.MonkeyPatch, is_as_sent: bool
) -> None:
    thread = Sent(is_as_sent=is_as_sent)
    monkeypatch.setattr(act, "wait_or_signal", lambda tid: ptrace.Stop(tid, ptrace.SYSCALL_STOP, 0))
    monkeypatch.setattr(ptrace, "resume_to_syscall", lambda tid: thread.done.append("resume"))
    actor = Actor(suspends_seccomp=False)
    actor._until = float("inf")
    told = said(lambda: actor._finish(cast(Any, thread), Sending([], b"")))
    if is_as_sent:
        assert (told, thread.done) == (None, ["resume", "result"])
    else:
        assert told == (Outcome.UNSTEERABLE, "tampered", 0)
        assert thread.done == ["skip", "resume", "release"]


@pytest.mark.parametrize("address", [0x1100, 0x400000])
def test_a_fault_is_the_stubs_own_or_the_programs(monkeypatch: pytest.MonkeyPatch, address: int) -> None:
    monkeypatch.setattr(ptrace, "signal_info", lambda tid: (1, address))
    released: list[int] = []
    thread = stopped({})
    monkeypatch.setattr(thread, "release", lambda deliver=0: released.append(deliver))
    stop = ptrace.Stop(TID, signal.SIGSEGV, 0)
    if address == 0x1100:
        assert said(lambda: act._let_go_for(thread, stop)) == (Outcome.UNSTEERABLE, "stub-fault", 0)
        assert released == [0], "the program never learns of it"
    else:
        with pytest.raises(act._Again):
            act._let_go_for(thread, stop)
        assert released == [signal.SIGSEGV]


# -- what is not permitted


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"State": "S (sleeping)", "TracerPid": "0"}, (Outcome.REFUSED, "permission", errno.EPERM)),
        ({"State": "S (sleeping)", "TracerPid": "9"}, (Outcome.DEFERRED, "traced", errno.EPERM)),
        ({"State": "Z (zombie)", "TracerPid": "0"}, (Outcome.GONE, "exited", 0)),
    ],
)
def test_why_a_thread_cannot_be_seized(status: dict[str, str], expected: tuple[Outcome, str, int]) -> None:
    target = cast(Any, SimpleNamespace(status=lambda tid: status))
    why = act._why_not(target, TID)
    assert (why.outcome, why.reason, why.errno) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSYS, "no CONFIG_KCMP"), (Outcome.REFUSED, "kcmp", errno.ENOSYS)),
        (PermissionError(errno.EPERM, "no right"), (Outcome.REFUSED, "permission", errno.EPERM)),
        (ProcessLookupError(errno.ESRCH, "ended"), (Outcome.GONE, "exited", 0)),
    ],
)
def test_whose_memory_it_is_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, error: OSError, expected: tuple[Outcome, str, int]
) -> None:
    def shares_memory(root: Root, pid: int, tid: int) -> bool:
        raise error

    monkeypatch.setattr(kin, "shares_memory", shares_memory)
    assert said(lambda: precheck.own_memory(Root(), 40, TID)) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (errno.EACCES, (Outcome.REFUSED, "permission", errno.EACCES)),
        (errno.ESRCH, (Outcome.GONE, "exited", 0)),
        (b"41 (a) S", None),
    ],
)
def test_files_of_a_thread_that_may_not_be_read(head: bytes | int, expected: tuple[Outcome, str, int] | None) -> None:
    assert said(lambda: process._content(head)) == expected


# -- what is read back


class Shown(process._Work):
    """Of a thread whose regions show these policies after it was given another; nothing is asked of any process."""

    def __init__(self, shown: list[Mempolicy], *, has_executed: bool = False) -> None:
        state = State("S", 0)
        self._target = cast(Any, SimpleNamespace(state=lambda tid: state, has_executed=lambda: has_executed))
        self._of_regions = shown

    def _shown(self, tid: int, limit: int = 0) -> list[Mempolicy]:
        return self._of_regions

    def _is(self, shown: Mempolicy, tid: int) -> bool:
        return shown == GIVEN


GIVEN = Mempolicy(Mode.BIND, frozenset({1}))


def test_a_policy_that_is_not_there_when_it_is_read_back() -> None:
    assert Shown([DEFAULT, GIVEN])._look_further(TID) == GIVEN
    assert said(lambda: Shown([DEFAULT])._look_further(TID)) == (Outcome.REFUSED, "readback", 0)
    assert said(lambda: Shown([DEFAULT], has_executed=True)._look_further(TID)) == (Outcome.GONE, "executed", 0)


def test_who_it_is_not_permitted_to_list_the_threads_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither for a policy nor for regions is a tracer started then."""

    def identify(root: Root, pid: int) -> ProcessId:
        raise PermissionError(errno.EACCES, "no right")

    monkeypatch.setattr(procfs, "identify", identify)
    tracer = client.Tracer(Root(tmp_path))
    (result,) = asyncio.run(tracer.apply(ProcessId(40, 1), GIVEN))
    assert (result.outcome, result.reason, result.errno) == (Outcome.REFUSED, "permission", errno.EACCES)
    bound = asyncio.run(tracer.bind(ProcessId(40, 1), [cast(Any, None)]))
    assert (bound.outcome, bound.reason, bound.errno) == (Outcome.REFUSED, "permission", errno.EACCES)
    assert tracer.pid is None

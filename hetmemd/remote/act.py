"""The act: making one thread of another process call, and letting it go as if nothing had been.

At every step the tracer may be killed. Until the registers lead to the stub nothing about the thread has changed; from
then on the stub restores it by itself, and once the registers are back it needs no help either.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from hetmemd.kernel import libc, ptrace
from hetmemd.remote import slot
from hetmemd.remote.course import Course, Reached, Stopped
from hetmemd.remote.held import Held
from hetmemd.remote.result import Outcome
from hetmemd.remote.slot import Slot
from hetmemd.remote.target import Declined, Target, gone
from hetmemd.remote.wire import Call
from hetmemd.remote.x86_64 import X86_64

ATTEMPTS = 50
"""A thread in a storm of signals is let go for each of them, and tried again."""
_ATTEMPTS_AT_ONCE = 8
_BREATH = 0.001
"""Seconds for the thread to work off signals that were sent faster than it was let go for them."""

STOP_NS = 1_000_000
"""No further call is begun in a stop that has lasted for this long."""

_SYS_SECCOMP = 1  # si_code of SIGSYS, include/uapi/asm-generic/siginfo.h
_SYS_USER_DISPATCH = 2


class Done(NamedTuple):
    results: list[int]
    """Of each call made, -errno where it failed: of all calls, or as many as `STOP_NS` or a signal allowed."""
    pause_ns: int


class _Again(Exception):
    """The thread was let go to take a signal, or runs another program than the one looked at."""


class _Stale(_Again):
    """What was written went into memory that is no more."""


class _Plan(NamedTuple):
    slot: Slot | None
    """None where there is nothing to call, or no room."""
    calls: list[list[tuple[int, int]]]
    """Of each call the registers with which the thread enters the stub."""


class Actor:
    """Acts on one thread at a time; in a process of its own, with no children and no other tracee."""

    def __init__(self, *, suspends_seccomp: bool) -> None:
        self._options = ptrace.O_TRACESYSGOOD
        if suspends_seccomp:
            # For every thread: whether it has a filter may change until it stops, and without one it means nothing.
            # From the stop on, never from the seizure: until it stops, a thread would run without its filter.
            self._options |= ptrace.O_SUSPEND_SECCOMP
        self._course = Course(self._options)
        self._codes: dict[int, int] = {}
        """The code with which each syscall was interrupted last."""
        self._turn = 0

    def act(
        self,
        target: Target,
        tid: int,
        calls: Sequence[Call],
        data: bytes,
        blocked: tuple[int, int] | None = None,
        *,
        is_confined: bool = False,
    ) -> Done:
        """Have thread `tid` make the calls, in one stop: one of them at least. None at all: only sweep.

        Raises `Declined`.

        `blocked` are the syscall and pc at which it will most likely be found. `is_confined`: it has a seccomp filter,
        and what it is about to call is compared with what was asked for, before it is let through: another thread of a
        hostile process could have rewritten the stub.
        """
        results: list[int] = []
        for attempt in range(ATTEMPTS):
            begin = time.perf_counter_ns()
            try:
                return self._act_once(target, tid, calls, data, None if is_confined else blocked, is_confined, results)
            except _Again:
                if results:
                    return Done(results, time.perf_counter_ns() - begin)
                if attempt % _ATTEMPTS_AT_ONCE == _ATTEMPTS_AT_ONCE - 1:
                    time.sleep(_BREATH)
            except ChildProcessError:
                raise gone() from None
            except OSError as error:
                if libc.is_gone(error):
                    # Killed while it was held. It stays a zombie, and whoever waits for it waits, until this reaps it.
                    _reap(tid)
                    raise gone() from None
                raise
        raise Declined(Outcome.DEFERRED, "signals")

    def _act_once(
        self,
        target: Target,
        tid: int,
        calls: Sequence[Call],
        data: bytes,
        blocked: tuple[int, int] | None,
        is_confined: bool,
        results: list[int],
    ) -> Done:
        """`results` are filled in one by one."""
        plan = self._plan(target, tid, calls, data)
        self._course.prepare(tid, target.memory, plan.slot)
        is_foreseen = self._foresee(target, plan, blocked)
        self._seize(target, tid)
        # False: the tid came to be another process's before it was seized.
        is_its_own = target.has_thread(tid)
        begin = time.perf_counter_ns()
        if is_foreseen and is_its_own:
            reached = self._course.go()
            pause = time.perf_counter_ns() - begin
            if reached is Reached.ALL:
                return Done([X86_64.signed(self._course.after.word(X86_64.result))], pause)
            if reached is not None:
                assert plan.slot
                held = Held(self._course.original, target, tid)
                result = self._conclude(held, plan.slot, reached)
                return Done([result], time.perf_counter_ns() - begin)
            how = self._course.found()
        else:
            how = self._course.stop()
        held = self._hold(target, tid, how)
        if interrupted := held.interrupted:
            self._codes[interrupted[0]] = interrupted[1]
        try:
            if not is_its_own:
                raise gone()
            if not held.look(dispatches=self._course.dispatches):
                raise _Again
            was_full = held.sweep() and not plan.slot
            if plan.calls:
                if not plan.slot:
                    if was_full:
                        raise _Again
                    raise Declined(Outcome.DEFERRED if target.room.leftovers else Outcome.UNSTEERABLE, "vdso")
                held.leave_restartable_sequence()
                if (is_confined or len(plan.calls) > 1) and not held.write(plan.slot):
                    raise _Stale
        except BaseException as error:
            # In particular, an EINTR that the stop has caused is mended even where nothing is done.
            self._give_up(held, error)
        if len(plan.calls) == 1 and plan.slot and not is_confined:
            results.append(self._call_and_release(held, plan.slot, plan.calls[0]))
        else:
            ptrace.set_options(tid, self._options)
            for changes in plan.calls:
                held.enter(changes)
                results.append(_finish(held, asked=changes))
                if time.perf_counter_ns() - begin > STOP_NS:
                    break
            held.release()
        return Done(results, time.perf_counter_ns() - begin)

    def _foresee(self, target: Target, plan: _Plan, blocked: tuple[int, int] | None) -> bool:
        """Whether the whole act can be laid out before the thread is stopped."""
        if not (blocked and plan.slot and len(plan.calls) == 1):
            return False
        padding, abi, leftovers = target.room
        number, pc = blocked
        code = self._codes.get(number)
        if abi is not X86_64 or leftovers or pc in padding or code is None:
            return False
        return self._course.foresee(plan.slot, plan.calls[0], number, code, pc)

    def _hold(self, target: Target, tid: int, how: Stopped) -> Held:
        """A thread that was interrupted; when it has a signal to take, it is let go for that, and `_Again` raised."""
        if how is Stopped.AS_USUAL:
            return Held(self._course.original, target, tid)
        stop = (how is Stopped.OTHERWISE and _judged(tid, ptrace.reported())) or _wait(tid)
        self._course.original.get(tid)
        held = Held(self._course.original, target, tid)
        if stop.event != ptrace.EVENT_STOP:
            held.release(_deliverable(stop))
            raise _Again
        self._course.dispatches = ptrace.syscall_user_dispatch(tid)
        return held

    def _give_up(self, held: Held, error: BaseException) -> NoReturn:
        if isinstance(error, _Stale):
            held.target.forget_memory()
        held.release()
        raise error

    def _call_and_release(self, held: Held, room: Slot, changes: Sequence[tuple[int, int]]) -> int:
        """One call through the stub; its result, -errno where it failed."""
        return self._conclude(held, room, self._course.call(held.content(room), held.resumed, changes))

    def _conclude(self, held: Held, room: Slot, reached: Reached) -> int:
        """After the second half of the course: its result, or what is left to do."""
        course = self._course
        if reached is Reached.ALL:
            return held.result_in(course.after)
        code = course.error
        if reached is Reached.WRITE and code:
            # proc_mem.force_override=never (6.12).
            self._give_up(held, Declined(Outcome.REFUSED, "proc-mem", code))
        if reached in (Reached.WRITE, Reached.MARK) and code != errno.ESRCH:
            self._give_up(held, _Stale())
        if reached is Reached.ZERO:
            # The next act in this process does it.
            held.was_restored()
            held.release()
            return held.result_in(course.after)
        if code == errno.ECHILD:
            raise gone()
        if code:
            raise OSError(code, os.strerror(code), f"/proc/{held.tid}")
        # Something else than the stop that was waited for.
        held.has_entered(room, course.calling)
        stop = _judged(held.tid, ptrace.reported()) or _wait(held.tid)
        result = _finish(held, stop, 1 if reached is Reached.EXIT_STOP else 0)
        held.release()
        return result

    def _seize(self, target: Target, tid: int) -> None:
        for is_last in (False, True):
            try:
                ptrace.seize(tid, ptrace.O_TRACESYSGOOD)
                return
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise gone() from None
                if error.errno != errno.EPERM:
                    raise
            why = _why_not(target, tid)
            # No reason to be seen: what forbade it may be over. Of a process that another thread executes a program
            # in, the leader is dead for a moment, and then that thread has its id.
            if is_last or why.reason != "permission":
                raise why

    def _plan(self, target: Target, tid: int, calls: Sequence[Call], data: bytes) -> _Plan:
        """All that can be done without the thread's registers, so that it is held for less."""
        if not calls:
            return _Plan(None, [])
        padding, abi, leftovers = target.room
        self._turn += 1
        room = slot.reserve(abi, padding, leftovers, self._turn, tid, data)
        if not room:
            return _Plan(None, [[] for _ in calls])
        resolved = [
            abi.calling(
                room.stub,
                abi.numbers[call.name],
                [room.data + value if index in call.pointers else value for index, value in enumerate(call.arguments)],
            )
            for call in calls
        ]
        return _Plan(room, resolved)


def _finish(
    held: Held,
    stop: ptrace.Stop | None = None,
    syscall_stops: int = 0,
    asked: Sequence[tuple[int, int]] = (),
) -> int:
    """Follow a thread that is in the stub to the end of its call; the result. `stop` is one that it is in already.

    `asked` are the registers of the call: at its entry they are compared with what the thread asks for.
    """
    tampered = False
    while True:
        if stop:
            if stop.signal == ptrace.SYSCALL_STOP:
                syscall_stops += 1
                if syscall_stops == 1 and asked and not held.asks_for(asked):
                    tampered = True
                    held.skip()
            elif stop.event != ptrace.EVENT_STOP:
                _let_go_for(held, stop)
        if syscall_stops == 2:  # at its entry and at its exit
            if tampered:
                held.release()
                raise Declined(Outcome.UNSTEERABLE, "tampered")
            return held.result()
        ptrace.resume_to_syscall(held.tid)
        stop = _wait(held.tid)


def _let_go_for(held: Held, stop: ptrace.Stop) -> None:
    """A signal is to be delivered: to the thread as it was, so that it interrupts what it would have."""
    if stop.signal == signal.SIGSYS and not stop.event:
        code = ptrace.signal_code(held.tid)
        if code in (_SYS_SECCOMP, _SYS_USER_DISPATCH):
            # Ours: the program never learns of it.
            held.release()
            if code == _SYS_SECCOMP:
                raise Declined(Outcome.REFUSED, "seccomp")
            raise Declined(Outcome.UNSTEERABLE, "syscall-user-dispatch")
    held.release(0 if stop.event else stop.signal)
    raise _Again


def _wait(tid: int) -> ptrace.Stop:
    while True:
        try:
            stop = _judged(tid, ptrace.wait_any())
        except ChildProcessError:
            raise gone() from None
        if stop:
            return stop


def _judged(tid: int, stop: ptrace.Stop) -> ptrace.Stop | None:
    """A stop of this thread; None for the end of one that was held before."""
    if stop.tid == tid:
        if stop.ended:
            raise gone()
        return stop
    if not stop.ended:
        # It executed another program and answers to its process's id now. Nothing of ours is left in it.
        ptrace.detach(stop.tid, _deliverable(stop))
        raise gone("executed")
    return None


def _reap(tid: int) -> None:
    while True:
        try:
            stop = ptrace.wait_any()
        except ChildProcessError:
            return
        if not stop.ended:
            ptrace.detach(stop.tid, _deliverable(stop))
            return
        if stop.tid == tid:
            return


def _deliverable(stop: ptrace.Stop) -> int:
    """The signal that a stopped thread waits to have delivered, 0 where it stopped for another reason."""
    return 0 if stop.event or stop.signal == ptrace.SYSCALL_STOP else stop.signal


def _why_not(target: Target, tid: int) -> Declined:
    """EPERM has many reasons: tell them apart."""
    status = target.status(tid)
    if int(status.get("TracerPid", "0")):
        return Declined(Outcome.DEFERRED, "traced", errno.EPERM)
    if status.get("State", "")[:1] in ("Z", "X"):
        return gone()
    return Declined(Outcome.REFUSED, "permission", errno.EPERM)

"""The act: making one thread of another process call, and letting it go as if nothing had been.

At every step the tracer may be killed. Until the registers lead to the stub nothing about the thread has changed; from
then on the stub restores it by itself, and once the registers are back it needs no help either.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from hetmemd.kernel import libc, ptrace
from hetmemd.remote import slot
from hetmemd.remote.course import Course, Reached, Sending, Stopped, sending
from hetmemd.remote.held import Held
from hetmemd.remote.result import Outcome
from hetmemd.remote.slot import Slot
from hetmemd.remote.stops import deliverable, judged, raise_for, release_or_reap, wait_for, wait_or_signal
from hetmemd.remote.target import Declined, Room, Target, gone
from hetmemd.remote.wire import Call
from hetmemd.remote.x86_64 import X86_64

AT_ONCE = 8
"""Acts that can be laid out at a time."""

ATTEMPTS = 50
"""A thread in a storm of signals is let go for each of them, and tried again."""
_ATTEMPTS_AT_ONCE = 8
_BREATH = 0.001
"""Seconds for the thread to work off signals that were sent faster than it was let go for them."""

STOP_NS = 1_000_000
"""No further call is begun in a stop that has lasted for this long."""

REST_SECONDS = 0.1
"""What a write that the stop cut short may take to be done to its end."""
_REST_POLL = 0.0005

_SYS_SECCOMP = 1  # si_code of SIGSYS, include/uapi/asm-generic/siginfo.h
_SYS_USER_DISPATCH = 2
_FAULTS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP})
"""Signals that an instruction of the stub could raise."""


class Done(NamedTuple):
    results: list[int]
    """Of each call made, -errno where it failed: of all calls, or as many as `STOP_NS` or a signal allowed."""
    pause_ns: int
    shown: bytes | None = None
    """The beginning of the thread's numa_maps after that, where it was read."""


class _Again(Exception):
    """The thread was let go to take a signal, or runs another program than the one looked at."""


class _Stale(_Again):
    """What was written went into memory that is no more."""


class _Plan(NamedTuple):
    slot: Slot | None
    """None where there is nothing to call, or no room."""
    calls: list[Sending]
    """Of each call the registers with which the thread enters the stub: none without a slot."""


class Laid(NamedTuple):
    """An act that is ready but for the stop itself."""

    target: Target
    room: Room
    """Of the program that it is laid out for."""
    tid: int
    calls: Sequence[Call]
    data: bytes
    blocked: tuple[int, int] | None
    shows: bool
    course: Course
    plan: _Plan
    is_foreseen: bool
    """Whether all of it is laid out, or no more than the stop."""


class Actor:
    """Acts on one thread at a time; in a process of its own, with no children and no other tracee."""

    def __init__(self, *, suspends_seccomp: bool, patience: float = 1.0) -> None:
        """`patience` is how many seconds a call may take to begin. The wait for it ends by a signal that somebody has
        sent to this process by then."""
        self._patience = patience
        self._until = 0.0
        self.stops = 0
        """How often the last act has stopped the thread, or may have."""
        self.say_overdue: Callable[[bool], None] = lambda overdue: None
        """Told when a thread was sent to its call and does not come to it, and when it was let go after all."""
        self._is_overdue = False
        self._options = ptrace.O_TRACESYSGOOD
        if suspends_seccomp:
            # For every thread: whether it has a filter may change until it stops, and without one it means nothing.
            # From the stop on, never from the seizure: until it stops, a thread would run without its filter.
            self._options |= ptrace.O_SUSPEND_SECCOMP
        self._courses = [
            {blocked: Course(self._options, blocked=blocked) for blocked in (True, False)} for _ in range(AT_ONCE)
        ]
        self._laid = 0
        self._codes: dict[int, int] = {}
        """The code with which each syscall was interrupted last."""
        self._turn = 0
        self._calls: Sequence[Call] = ()
        self._resolved: dict[tuple[int, int], list[Sending]] = {}
        """What these calls come to, by the address of their data and the bits of the program."""

    def lay_out(
        self,
        target: Target,
        tid: int,
        calls: Sequence[Call],
        data: bytes,
        blocked: tuple[int, int] | None = None,
        *,
        shows: bool = False,
    ) -> Laid:
        """Get ready to have thread `tid` make the calls. None at all: only sweep.

        Raises `Declined`. `blocked` are the syscall and pc at which it will most likely be found, None where it runs.
        `shows`: numa_maps is wanted afterwards. At most `AT_ONCE` can be laid out, to be acted out in the same order.
        """
        self._laid = (self._laid + 1) % AT_ONCE
        course = self._courses[self._laid][blocked is not None]
        return self._lay(target, tid, calls, data, blocked, course, shows=shows)

    def _lay(
        self,
        target: Target,
        tid: int,
        calls: Sequence[Call],
        data: bytes,
        blocked: tuple[int, int] | None,
        course: Course,
        *,
        shows: bool,
    ) -> Laid:
        room = target.room
        plan = self._plan(target, tid, calls, data)
        course.prepare(tid, target.directory, target.memory, plan.slot, shows=shows)
        is_foreseen = self._foresee(course, target, plan, blocked)
        return Laid(target, room, tid, calls, data, blocked, shows, course, plan, is_foreseen)

    def _anew(self, laid: Laid) -> Laid:
        return self._lay(laid.target, laid.tid, laid.calls, laid.data, laid.blocked, laid.course, shows=laid.shows)

    def act(self, laid: Laid) -> Done:
        """Have the thread make the calls, in one stop: one of them at least. Raises `Declined`."""
        self.stops = 0
        self._until = time.monotonic() + self._patience
        try:
            return self._act(laid)
        finally:
            # Not as soon as it stops: until it is let go its filter is suspended.
            if self._is_overdue:
                self._is_overdue = False
                self.say_overdue(False)

    def _act(self, laid: Laid) -> Done:
        results: list[int] = []
        if not laid.is_foreseen or laid.room is not laid.target.room:
            # An act between has shown what can be foreseen now, or that the process runs another program.
            laid = self._anew(laid)
        for attempt in range(ATTEMPTS):
            begin = time.perf_counter_ns()
            try:
                return self._act_once(laid if attempt == 0 else self._anew(laid), results)
            except _Again:
                if results:
                    return Done(results, time.perf_counter_ns() - begin)
                if self._is_overdue:
                    # Nobody may wait for it any more.
                    raise Declined(Outcome.DEFERRED, "timeout") from None
                if attempt % _ATTEMPTS_AT_ONCE == _ATTEMPTS_AT_ONCE - 1:
                    time.sleep(_BREATH)
            except ChildProcessError:
                raise gone() from None
            except OSError as error:
                if libc.is_gone(error):
                    raise release_or_reap(laid.tid, laid.target.process.pid, self._patience) from None
                raise
        raise Declined(Outcome.DEFERRED, "signals")

    def _act_once(self, laid: Laid, results: list[int]) -> Done:
        """`results` are filled in one by one."""
        target, tid, course, plan = laid.target, laid.tid, laid.course, laid.plan
        whole = len(plan.calls) == 1
        held: Held | None = None
        reached = self._seize(course, target, tid, is_foreseen=laid.is_foreseen, whole=whole)
        begin = course.begin_ns
        if reached is Reached.STOP:
            held, dispatches, is_ours = self._hold(course, target, tid)
            self._look(held, plan, dispatches=dispatches, is_ours=is_ours)
            if not (plan.calls and plan.slot):
                held.release()
                return Done(results, time.perf_counter_ns() - begin)
            if held.is_64bit:
                reached = course.call(held.content(plan.slot), held.resumed, plan.calls[0], whole=whole)
            else:
                self._step_by_step(held, plan.slot, plan.calls, begin, results)
                return Done(results, time.perf_counter_ns() - begin)
        assert plan.slot
        while reached >= Reached.RETURNED:
            results.append(course.result)
            if reached is not Reached.RETURNED:
                break
            if len(results) == len(plan.calls) or time.perf_counter_ns() > begin + STOP_NS:
                reached = course.release()
                break
            reached = course.call_again(plan.calls[len(results)])
        if reached is Reached.ALL:
            return Done(results, course.pause_ns, course.shown)
        held = held or Held(course.original, target, tid)
        if reached < Reached.RETURNED:
            results.append(self._conclude(course, held, plan.slot, reached, plan.calls[len(results)]))
        else:
            self._let_go(course, held, plan.slot, reached)
        return Done(results, time.perf_counter_ns() - begin)

    def _foresee(self, course: Course, target: Target, plan: _Plan, blocked: tuple[int, int] | None) -> bool:
        """Whether the whole act can be laid out before the thread is stopped."""
        padding, abi, leftovers = target.room
        if not plan.slot or abi is not X86_64 or leftovers:
            return False
        if blocked is None:
            course.foresee_running(plan.slot, plan.calls[0], target.memory, padding)
            return True
        number, pc = blocked
        code = self._codes.get(number)
        if pc in padding or code is None:
            return False
        course.foresee_blocked(plan.slot, plan.calls[0], number, code, pc)
        return True

    def _look(self, held: Held, plan: _Plan, *, dispatches: bool | None, is_ours: bool) -> None:
        """All that has to be known of a thread that was not found as foreseen, before anything is written.

        `is_ours`: nobody else has stopped it.
        """
        if interrupted := held.interrupted:
            self._codes[interrupted[0]] = interrupted[1]
        try:
            if not held.target.has_thread(held.tid):
                raise gone()  # the tid came to be another process's before it was seized
            if not held.look(dispatches=dispatches):
                raise _Again
            came_short = is_ours and dispatches is False and held.came_short
            if not came_short:
                was_full = held.sweep() and not plan.slot
                if plan.calls:
                    if not plan.slot:
                        if was_full:
                            raise _Again
                        leftovers = held.target.room.leftovers
                        raise Declined(Outcome.DEFERRED if leftovers else Outcome.UNSTEERABLE, "vdso")
                    held.leave_restartable_sequence()
        except BaseException as error:
            # In particular, an EINTR that the stop has caused is mended even where nothing is done.
            self._give_up(held, error)
        if came_short:
            self._do_rest(held)
            raise Declined(Outcome.DEFERRED, "short-io")

    def _do_rest(self, held: Held) -> None:
        """The stop has made a large write into a pipe return early: the thread does the rest of it, as far as the
        pipe's reader is quick, and is let go. Should this tracer die meanwhile, the stub adds up what was done.

        Where a signal comes, or the time is over, it has written what it has: as after any other stop.
        """
        padding, abi, leftovers = held.target.room
        self._turn += 1
        room = slot.reserve(abi.rest_length, padding, leftovers, self._turn, held.tid, b"")
        signal_to_take = 0
        if room is not None and held.enter_rest(room):
            signal_to_take = _follow_rest(held)
        held.release(signal_to_take)

    def _hold(self, course: Course, target: Target, tid: int) -> tuple[Held, bool | None, bool]:
        """A thread that was interrupted; when it has a signal to take, it is let go for that, and `_Again` raised.

        With it, whether it dispatches its syscalls, and whether nobody else has stopped it.
        """
        how = course.found()
        if how is Stopped.AS_USUAL:
            return Held(course.original, target, tid), course.dispatches, True
        stop = (how is Stopped.OTHERWISE and judged(tid, ptrace.reported())) or wait_for(tid)
        course.original.get(tid)
        held = Held(course.original, target, tid)
        if stop.event != ptrace.EVENT_STOP:
            held.release(deliverable(stop))
            raise _Again
        return held, ptrace.syscall_user_dispatch(tid), stop.signal == signal.SIGTRAP

    def _give_up(self, held: Held, error: BaseException) -> NoReturn:
        if isinstance(error, _Stale):
            held.target.forget_memory()
        held.release()
        raise error

    def _step_by_step(self, held: Held, room: Slot, calls: Sequence[Sending], begin: int, results: list[int]) -> None:
        """The calls in a thread of a 32-bit program, whose registers the course does not know."""
        try:
            if not held.write(room):
                raise _Stale
        except BaseException as error:
            self._give_up(held, error)
        ptrace.set_options(held.tid, self._options)
        for to in calls:
            held.enter(to.changes)
            ptrace.resume_to_syscall(held.tid)
            results.append(self._finish(held, to))
            if time.perf_counter_ns() > begin + STOP_NS:
                break
        held.release()

    def _conclude(self, course: Course, held: Held, room: Slot, reached: Reached, to: Sending) -> int:
        """What is left of a call that was sent off and left its course, and the release; its result."""
        code = course.error
        if reached is Reached.WRITE and code:
            # proc_mem.force_override=never (6.12).
            self._give_up(held, Declined(Outcome.REFUSED, "proc-mem", code))
        if reached in (Reached.WRITE, Reached.MARK) and code != errno.ESRCH:
            self._give_up(held, _Stale())
        stop: ptrace.Stop | None = None
        if reached in (Reached.ENTRY_STOP, Reached.EXIT_STOP) and code == errno.EINTR:
            code = 0  # the wait was: the thread runs
        elif reached is Reached.CHECK:
            stop = ptrace.Stop(held.tid, ptrace.SYSCALL_STOP, 0)
        raise_for(code, held.tid)
        held.has_entered(room, course.calling)
        if stop is None and not course.error:
            # Something else than the stop that was waited for.
            stop = judged(held.tid, ptrace.reported())
        result = self._finish(held, to, stop, 1 if reached is Reached.EXIT_STOP else 0)
        held.release()
        return result

    def _finish(self, held: Held, to: Sending, stop: ptrace.Stop | None = None, syscall_stops: int = 0) -> int:
        """Follow a thread that is in the stub to the end of its call; the result. `stop` is one that it is in, None
        where it runs.

        At the entry of its call it is compared with what the thread was sent `to`.
        """
        tampered = False
        while True:
            if stop is None:
                stop = self._stop_of(held.tid)
            if stop.signal == ptrace.SYSCALL_STOP:
                syscall_stops += 1
                if syscall_stops == 1 and not held.asks_for(to.changes):
                    tampered = True
                    held.skip()
            elif stop.event != ptrace.EVENT_STOP:
                _let_go_for(held, stop)
            elif self._is_overdue and syscall_stops == 0:
                held.release()
                raise Declined(Outcome.DEFERRED, "timeout")
            if syscall_stops == 2:  # at its entry and at its exit
                if tampered:
                    held.release()
                    raise Declined(Outcome.UNSTEERABLE, "tampered")
                return held.result()
            ptrace.resume_to_syscall(held.tid)
            stop = None

    def _stop_of(self, tid: int) -> ptrace.Stop:
        """The next stop of a thread that is in the stub.

        One that does not come to its call, frozen for instance, is not left to make it by itself later: a seccomp
        filter that is suspended now could end it then.
        """
        while (stop := wait_or_signal(tid)) is None:
            if time.monotonic() > self._until:
                if not self._is_overdue:
                    self._is_overdue = True
                    self.say_overdue(True)
                ptrace.interrupt(tid)
        return stop

    def _let_go(self, course: Course, held: Held, room: Slot, reached: Reached) -> None:
        """A thread whose call is over, but not put back as usual."""
        if reached is not Reached.ZERO:
            raise_for(course.error, held.tid)
            held.has_entered(room, course.calling)
        else:
            # The next act in this process zeroes the slot.
            held.was_restored()
        held.release()

    def _seize(self, course: Course, target: Target, tid: int, *, is_foreseen: bool, whole: bool) -> Reached:
        """Seize the thread and bring it as far as that is foreseen."""
        is_last = False
        while True:
            if is_foreseen:
                reached = course.go(whole=whole)
            else:
                course.stop()
                reached = Reached.STOP
            if course.is_seized:
                self.stops += 1
                if course.is_anothers:
                    course.interrupt()
                return reached
            code = course.error
            if code == errno.ESRCH:
                raise gone()
            if code != errno.EPERM:
                raise OSError(code, os.strerror(code), f"/proc/{tid}")
            why = _why_not(target, tid)
            # No reason to be seen: what forbade it may be over. Of a process that another thread executes a program
            # in, the leader is dead for a moment, and then that thread has its id.
            if is_last or why.reason != "permission":
                raise why
            is_last = True

    def _plan(self, target: Target, tid: int, calls: Sequence[Call], data: bytes) -> _Plan:
        """All that can be done without the thread's registers, so that it is held for less."""
        if not calls:
            return _Plan(None, [])
        padding, abi, leftovers = target.room
        self._turn += 1
        room = slot.reserve(abi.stub_length, padding, leftovers, self._turn, tid, data)
        if not room:
            return _Plan(None, [Sending([], b"") for _ in calls])
        if calls is not self._calls:
            self._calls = calls
            self._resolved.clear()
        resolved = self._resolved.get((room.data, abi.bits))
        if resolved is None:
            resolved = self._resolved[room.data, abi.bits] = [
                sending(
                    abi,
                    abi.calling(
                        room.stub,
                        abi.numbers[call.name],
                        [
                            room.data + value if index in call.pointers else value
                            for index, value in enumerate(call.arguments)
                        ],
                    ),
                )
                for call in calls
            ]
        return _Plan(room, resolved)


def _follow_rest(held: Held) -> int:
    """Until the thread that was sent to do the rest has done it, for a while; a signal that it stopped to take."""
    end = time.monotonic() + REST_SECONDS
    is_overdue = False
    syscall_stops = 0
    ptrace.resume_to_syscall(held.tid)
    while True:
        reported = ptrace.poll_any()
        stop = judged(held.tid, reported) if reported else None
        if stop is None:
            if time.monotonic() > end and not is_overdue:
                is_overdue = True
                ptrace.interrupt(held.tid)
            time.sleep(_REST_POLL)
            continue
        if stop.signal == ptrace.SYSCALL_STOP:
            syscall_stops += 1
            if syscall_stops == 2:
                held.wrote(held.result())
                return 0
        elif stop.event != ptrace.EVENT_STOP:
            return deliverable(stop)
        elif is_overdue:
            return 0
        ptrace.resume_to_syscall(held.tid)


def _let_go_for(held: Held, stop: ptrace.Stop) -> None:
    """A signal is to be delivered: to the thread as it was, so that it interrupts what it would have."""
    if stop.signal in _FAULTS and not stop.event:
        code, address = ptrace.signal_info(held.tid)
        if code > 0 and address in held.target.room.padding:
            # Raised by the stub itself, and nobody else's business.
            held.release()
            raise Declined(Outcome.UNSTEERABLE, "stub-fault")
    if stop.signal == signal.SIGSYS and not stop.event:
        code, _ = ptrace.signal_info(held.tid)
        if code in (_SYS_SECCOMP, _SYS_USER_DISPATCH):
            # Ours: the program never learns of it.
            held.release()
            if code == _SYS_SECCOMP:
                raise Declined(Outcome.REFUSED, "seccomp")
            raise Declined(Outcome.UNSTEERABLE, "syscall-user-dispatch")
    held.release(0 if stop.event else stop.signal)
    raise _Again


def _why_not(target: Target, tid: int) -> Declined:
    """EPERM has many reasons: tell them apart."""
    status = target.status(tid)
    if int(status.get("TracerPid", "0")):
        return Declined(Outcome.DEFERRED, "traced", errno.EPERM)
    if status.get("State", "")[:1] in ("Z", "X"):
        return gone()
    return Declined(Outcome.REFUSED, "permission", errno.EPERM)

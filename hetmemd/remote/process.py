"""The tracer process: single-threaded, one tracee at a time, no other children. Started and killed by `client`.

A stopped thread waits for every step of this process, so nothing else happens here: no garbage collection while
one is held, no signals, no imports beyond a few. It never outlives the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from hetmemd.kernel import libc, procfs, ptrace
from hetmemd.kernel.heads import Heads
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote import precheck, readback, wire
from hetmemd.remote.act import AT_ONCE, Actor, Laid
from hetmemd.remote.board import Board
from hetmemd.remote.readback import POLICY
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.remote.target import Declined, Target, gone
from hetmemd.remote.wire import Request

_PRCTL = 157  # arch/x86/entry/syscalls/syscall_64.tbl
_PR_SET_PDEATHSIG = 1
_CAP_SYS_ADMIN = 21
_NICE = -10

TURN = 0.01
"""Seconds after which it is another request's turn, where one waits."""
LONGEST_TURN = 0.05
"""Seconds after which what was found out about the process is found out anew."""
_LOOK = (POLICY, 1024, 256)
"""Bytes of what is looked at before an act: numa_maps, stat, syscall."""
_MANY = 32
"""Threads of which one file is read at once."""
_QUICK = 0.0003
"""Seconds that a look at a thread may take for several to be looked at before the first is acted on: the first region
of some programs is their heap, and numa_maps walks all its pages."""
_FRESH = 0.002
"""Seconds for which what was seen of a thread may be acted on, where others were seen with it. By then it may be in a
call that a stop cuts short, or have set a policy of its own."""

_OWN_MEMORY_HOLDS = 0.05
"""Seconds for which the answer to "is this memory shared?" is used again, at least."""


class Tracer:
    def __init__(self, root: Root, daemon: int, patience: float = 1.0) -> None:
        """`patience` as of the `Actor`."""
        self._root = root
        self._spared = frozenset({daemon, os.getpid()})
        self.suspends_seccomp = _may_suspend_seccomp(root)
        self.actor = Actor(suspends_seccomp=self.suspends_seccomp, patience=patience)
        self.looks = Heads(_LOOK * AT_ONCE)
        self.policies = Heads([POLICY] * _MANY)
        self._own_memory: tuple[ProcessId, float] | None = None

    def serve(self, request: Request, board: Board) -> None:
        """Put results on the board, of all threads or of as many as a turn has time for, one at least.

        Before an act the board tells which thread is next: so the daemon knows which one is held whenever it kills
        this process.
        """
        begin = time.monotonic()
        try:
            precheck.identity(request.process.pid, self._spared)
            target = Target(self._root, request.process)
        except Declined as declined:
            for tid in request.tids:
                board.add(_declined(tid, declined))
            return
        try:
            work = _Work(self, self._root, target, request, board)
            self.actor.say_overdue = work.say_overdue
            if request.once:
                work.once(request.tids)
            else:
                work.each(request.tids, begin)
        finally:
            target.close()

    def check_process(self, target: Target, tid: int) -> None:
        """What forbids acting on the process at all, by thread `tid` of it, which is alive."""
        precheck.process(self._root, target)
        now = time.monotonic()
        if self._own_memory and self._own_memory[0] == target.process and now < self._own_memory[1]:
            return
        precheck.own_memory(self._root, target.process.pid, tid)
        after = time.monotonic()
        self._own_memory = (target.process, after + max(_OWN_MEMORY_HOLDS, 40 * (after - now)))


class _Work:
    """One request on its process."""

    def __init__(self, tracer: Tracer, root: Root, target: Target, request: Request, board: Board) -> None:
        self._tracer = tracer
        self._root = root
        self._target = target
        self._request = request
        self._board = board
        self._is_checked = False
        self._objection: Declined | None = None
        self._is_threaded = False
        self._look_seconds = 0.0
        """What the latest look took for each thread."""
        self._was_overdue = False
        """A thread was: nobody may wait for the others any more, and what they were to be given may have changed."""

    def say_overdue(self, overdue: bool) -> None:
        """As long as a thread is, nothing may end this process: a filter that is suspended would end the thread."""
        self._was_overdue = True
        # Whoever reads what a command complains of would wait for a tracer that outlives it.
        os.dup2(1, 2)
        _die_with_the_daemon(not overdue)
        self._board.say_overdue(overdue)

    def once(self, tids: Sequence[int]) -> None:
        """In the first thread that is possible, up to one that is overdue."""
        for tid in tids:
            (result,) = self._do([tid])
            self._board.add(result)
            if result.outcome is Outcome.APPLIED or self._objection or self._was_overdue:
                return

    def each(self, tids: Sequence[int], begin: float) -> None:
        """Each thread, until the turn that began then is over.

        Where one had to be acted on, most likely all have to be, and where one is right, all are: they are looked at
        together.
        """
        rest = list(tids)
        count = 1
        while rest:
            some, rest = rest[:count], rest[count:]
            for result in self._do(some):
                self._board.add(result)
                if self._was_overdue or self._is_over(begin):
                    return
            # Under a filter that cannot be suspended a thread dies of the call: nothing may come between.
            count = self._several(AT_ONCE) if result.pause_ns and self._tracer.suspends_seccomp else 1
            while not result.pause_ns and result.outcome is Outcome.APPLIED and rest and not self._is_over(begin):
                many = self._several(_MANY)
                some, rest = rest[:many], rest[many:]
                wrong = [
                    tid for tid, policy in zip(some, self._policies(some), strict=True) if not self._right(tid, policy)
                ]
                if wrong:
                    rest = wrong + rest
                    break

    def _several(self, count: int) -> int:
        return count if self._look_seconds < _QUICK else 1

    def _is_over(self, begin: float) -> bool:
        took = time.monotonic() - begin
        return took > TURN and (took > LONGEST_TURN or self._board.others_wait())

    def _policies(self, tids: Sequence[int]) -> list[Mempolicy | None]:
        """Of each thread, None where it has to be looked at more closely."""
        began = time.monotonic()
        heads = self._tracer.policies.read(self._target.directory, [b"task/%d/numa_maps" % tid for tid in tids])
        self._look_seconds = (time.monotonic() - began) / len(tids)
        return [readback.first_policy(head) if isinstance(head, bytes) else None for head in heads]

    def _right(self, tid: int, shown: Mempolicy | None) -> bool:
        """Put it on the board where the thread has its policy already."""
        try:
            if shown is None or self._request.sweep or not self._is(shown, tid):
                return False
        except Declined:
            return False  # it ended meanwhile, for instance: a closer look tells
        self._board.add(ThreadResult(tid, Outcome.APPLIED, "", before=shown, after=shown))
        return True

    def _do(self, tids: Sequence[int]) -> Iterator[ThreadResult]:
        """What comes of each of at most `AT_ONCE` threads. Who goes on with the next is done with the one before.

        All that comes before the first stop is done for all: so a thread that has gone on finds its processor awake.
        """
        began = time.monotonic()
        looks = self._tracer.looks.read(
            self._target.directory,
            [b"task/%d/%b" % (tid, name) for tid in tids for name in (b"numa_maps", b"stat", b"syscall")],
        )
        self._look_seconds = (time.monotonic() - began) / len(tids)
        count = len(_LOOK)
        ready = [self._ready(tid, *looks[count * place : count * (place + 1)]) for place, tid in enumerate(tids)]
        for tid, one in zip(tids, ready, strict=True):
            if isinstance(one, ThreadResult):
                yield one
            elif len(tids) > 1 and time.monotonic() > began + _FRESH:
                yield from self._do([tid])
            else:
                yield self._act(tid, *one)

    def _ready(
        self, tid: int, numa_maps: bytes | int, stat: bytes | int, syscall: bytes | int
    ) -> ThreadResult | tuple[Laid, Mempolicy | None]:
        """An act that is laid out, with the policy that the thread has before; or what came of it without one."""
        before = None
        policy = self._request.policy
        try:
            before = self._shown_by(tid, numa_maps)
            sees_it = before is not None and policy is not None and self._is(before, tid)
            if sees_it and not self._request.sweep:
                return ThreadResult(tid, Outcome.APPLIED, "", before=before, after=before)
            if before is not None and self._request.expected and before not in self._request.expected:
                # It was looked at some time ago, and has set its own policy since.
                raise Declined(Outcome.DEFERRED, "changed")
            blocked = self._check(tid, _content(stat), syscall)
            calls = () if sees_it else self._request.calls
            shows = policy is not None
            laid = self._tracer.actor.lay_out(self._target, tid, calls, self._request.data, blocked, shows=shows)
            return laid, before
        except Declined as declined:
            return _declined(tid, declined, before, before)

    def _act(self, tid: int, laid: Laid, before: Mempolicy | None) -> ThreadResult:
        policy = self._request.policy
        after = before
        pause_ns = stops = 0
        actor = self._tracer.actor
        self._target.living = tid
        self._board.act_on(tid)
        try:
            try:
                done = actor.act(laid)
            finally:
                stops = actor.stops
            pause_ns = done.pause_ns
            if policy is None:
                errnos = tuple(max(0, -result) for result in done.results)
                return ThreadResult(tid, Outcome.APPLIED, "", pause_ns=pause_ns, errnos=errnos, stops=stops)
            after = readback.first_policy(done.shown) if done.shown else self._policies([tid])[0]
            if failed := max(0, -min(done.results, default=0)):
                raise Declined(Outcome.REFUSED, os.strerror(failed).lower(), failed)
            if not (after and self._is(after, tid)):
                after = self._look_further(tid)
            return ThreadResult(tid, Outcome.APPLIED, "", before=before, after=after, pause_ns=pause_ns, stops=stops)
        except Declined as declined:
            return _declined(tid, declined, before, after, pause_ns, stops)

    def _shown_by(self, tid: int, head: bytes | int) -> Mempolicy | None:
        """The policy that the beginning of numa_maps shows; None without memory, or thread: its stat tells which."""
        if isinstance(head, bytes):
            return readback.first_policy(head) or next(iter(self._shown(tid)), None)
        if head in (errno.EACCES, errno.EPERM):
            raise Declined(Outcome.REFUSED, "permission", head)
        return None

    def _shown(self, tid: int, limit: int = POLICY) -> list[Mempolicy]:
        """Of several regions."""
        try:
            return readback.thread_policies(self._target.directory, tid, limit)
        except (FileNotFoundError, ProcessLookupError):
            return []
        except PermissionError as error:
            raise Declined(Outcome.REFUSED, "permission", error.errno or 0) from None

    def _is(self, shown: Mempolicy, tid: int) -> bool:
        """Whether `shown` is what the policy asked for comes to in this thread."""
        policy = self._request.policy
        assert policy is not None
        if shown.mode is not policy.mode:
            return False
        return shown == policy or readback.is_shown(
            policy, shown, readback.allowed_nodes(self._root, self._target.status(tid))
        )

    def _look_further(self, tid: int) -> Mempolicy:
        """The first region may have a policy of its own: a later one shows the thread's. Dear, and rare."""
        for shown in self._shown(tid, 4096):
            if self._is(shown, tid):
                return shown
        precheck.living(self._target.state(tid))
        if self._target.has_executed():
            # Another thread did so, and has this one's id now, with its own policy.
            raise gone("executed")
        raise Declined(Outcome.REFUSED, "readback")

    def _check(self, tid: int, stat_file: bytes, syscall: bytes | int) -> tuple[int, int] | None:
        """Every precheck; (syscall, pc) of a blocked thread."""
        # First, for kernel threads have nothing that the rest could be asked of.
        stat = precheck.living(procfs.parse_state(stat_file))
        self._target.living = tid
        if not self._is_checked:
            self._check_process(tid)
            self._is_checked = True
        if self._objection:
            raise Declined(self._objection.outcome, self._objection.reason, self._objection.errno)
        if self._is_threaded:
            precheck.frozen(self._root, self._target.read(f"task/{tid}/cgroup"))
        if not self._tracer.suspends_seccomp and self._target.status(tid).get("Seccomp", "0") != "0":
            # It might kill the thread for the call.
            raise Declined(Outcome.REFUSED, "seccomp")
        is_64bit = self._target.room.abi.bits == 64
        return precheck.thread(self._target, tid, stat, _content(syscall), is_64bit=is_64bit)

    def _check_process(self, tid: int) -> None:
        try:
            self._tracer.check_process(self._target, tid)
            _ = self._target.room
            self._is_threaded = precheck.is_threaded(self._root, self._target.read(f"task/{tid}/cgroup"))
        except Declined as declined:
            if declined.outcome is Outcome.GONE:
                raise  # this thread is: others may live
            self._objection = declined


def _content(head: bytes | int) -> bytes:
    """Of a file that every living thread has."""
    if isinstance(head, bytes):
        return head
    if libc.is_gone(OSError(head, "")):
        raise gone()
    raise Declined(Outcome.REFUSED, "permission", head)


def _die_with_the_daemon(dies: bool) -> None:
    libc.syscall(_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL if dies else 0)


def _may_suspend_seccomp(root: Root) -> bool:
    """The right, no filter on ourselves, and a kernel that can (CONFIG_CHECKPOINT_RESTORE)."""
    status = procfs.status(root, os.getpid())
    if not int(status["CapEff"], 16) >> _CAP_SYS_ADMIN & 1 or status.get("Seccomp", "0") != "0":
        return False
    try:
        # Nobody can trace himself, but options are looked at before that is found out.
        ptrace.seize(os.getpid(), ptrace.O_SUSPEND_SECCOMP)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _declined(
    tid: int,
    declined: Declined,
    before: Mempolicy | None = None,
    after: Mempolicy | None = None,
    pause_ns: int = 0,
    stops: int = 0,
) -> ThreadResult:
    return ThreadResult(tid, declined.outcome, declined.reason, declined.errno, before, after, pause_ns, stops=stops)


def main(descriptor: int, board_descriptor: int, daemon: int, prefix: str, limit_seconds: float) -> None:
    """Serve requests on the socket `descriptor` until the other end is closed.

    This process is killed when one thread takes `limit_seconds`: long before, a thread that does not come to its call
    is let go. Where it cannot be, for cgroup v1 has frozen it just then, this process is left to it until it can, even
    beyond the daemon's end.
    """
    _die_with_the_daemon(True)
    if os.getppid() != daemon:
        sys.exit(1)  # it died before it could be said that we die with it
    # A stop of the service reaches every process of it, and the daemon may still need us to undo what was done. A key
    # that ends or stops a command reaches us as well, and a thread that we hold is not to wait for that command.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):
        # Whenever this process waits for a processor, so does the thread that it holds.
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    gc.disable()
    board = Board(board_descriptor)
    connection = socket.socket(fileno=descriptor)
    tracer = Tracer(Root(prefix), daemon, limit_seconds / 4)
    # To end a wait, no more: what it means is decided there.
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    connection.send(wire.DONE)
    # Reset: the daemon went away with an answer unread.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while packet := connection.recv(wire.PACKET):
            board.clear()
            signal.setitimer(signal.ITIMER_REAL, limit_seconds / 4, limit_seconds / 8)
            tracer.serve(wire.unpack_request(packet), board)
            signal.setitimer(signal.ITIMER_REAL, 0)
            gc.collect(0)
            connection.send(wire.DONE)

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

from hetmemd.kernel import libc, procfs, ptrace
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote import precheck, readback, wire
from hetmemd.remote.act import Actor
from hetmemd.remote.board import Board
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.remote.target import Declined, Target, gone
from hetmemd.remote.wire import Request

_PRCTL = 157  # arch/x86/entry/syscalls/syscall_64.tbl
_PR_SET_PDEATHSIG = 1
_CAP_SYS_ADMIN = 21
_NICE = -10

_OWN_MEMORY_HOLDS = 0.05
"""Seconds for which the answer to "is this memory shared?" is used again, at least."""


class Tracer:
    def __init__(self, root: Root, daemon: int) -> None:
        self._root = root
        self._spared = frozenset({daemon, os.getpid()})
        self._suspends_seccomp = _may_suspend_seccomp(root)
        self.actor = Actor(suspends_seccomp=self._suspends_seccomp)
        self._own_memory: tuple[ProcessId, float] | None = None

    def serve(self, request: Request, board: Board) -> None:
        """Put the result of each thread on the board, in order, and before an act which thread is next.

        So the daemon knows which one is held whenever it kills this process.
        """
        try:
            precheck.identity(request.process.pid, self._spared)
            target = Target(self._root, request.process)
        except Declined as declined:
            for tid in request.tids:
                board.add(_declined(tid, declined))
            return
        try:
            work = _Work(self, self._root, target, request, board)
            for tid in request.tids:
                result = work.thread(tid)
                board.add(result)
                if request.once and (result.outcome is Outcome.APPLIED or work.objection):
                    break
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
        self._own_memory = (target.process, after + max(_OWN_MEMORY_HOLDS, 20 * (after - now)))

    def is_confined(self, target: Target, tid: int) -> bool:
        """Whether a thread has a seccomp filter. One that cannot be suspended might kill it: `Declined`."""
        confined = target.status(tid).get("Seccomp", "0") != "0"
        if confined and not self._suspends_seccomp:
            raise Declined(Outcome.REFUSED, "seccomp")
        return confined


class _Work:
    """One request on its process."""

    def __init__(self, tracer: Tracer, root: Root, target: Target, request: Request, board: Board) -> None:
        self._tracer = tracer
        self._root = root
        self._target = target
        self._request = request
        self._board = board
        self._is_checked = False
        self.objection: Declined | None = None
        """What forbids acting on the process at all, once that was looked at."""
        self._is_threaded = False

    def thread(self, tid: int) -> ThreadResult:
        policy = self._request.policy
        before = after = None
        pause_ns = 0
        try:
            shown = self._shown(tid)
            before = after = shown[0] if shown else None
            sees_it = before is not None and policy is not None and self._is(before, tid)
            if sees_it and not self._request.sweep:
                return ThreadResult(tid, Outcome.APPLIED, "", before=before, after=before)
            if before is not None and self._request.expected and before not in self._request.expected:
                # It was looked at some time ago, and has set its own policy since.
                raise Declined(Outcome.DEFERRED, "changed")
            blocked, is_confined = self._check(tid)
            self._board.act_on(tid)
            done = self._tracer.actor.act(
                self._target,
                tid,
                () if sees_it else self._request.calls,
                self._request.data,
                blocked,
                is_confined=is_confined,
            )
            pause_ns = done.pause_ns
            errnos = tuple(max(0, -result) for result in done.results)
            if policy is None:
                return ThreadResult(tid, Outcome.APPLIED, "", pause_ns=pause_ns, errnos=errnos)
            shown = self._shown(tid)
            after = shown[0] if shown else None
            if failed := max(errnos, default=0):
                raise Declined(Outcome.REFUSED, os.strerror(failed).lower(), failed)
            if not (after and self._is(after, tid)):
                after = self._look_further(tid)
            return ThreadResult(tid, Outcome.APPLIED, "", before=before, after=after, pause_ns=pause_ns)
        except Declined as declined:
            return _declined(tid, declined, before, after, pause_ns)

    def _shown(self, tid: int, limit: int = 80) -> list[Mempolicy]:
        try:
            return readback.thread_policies(self._target.directory, tid, limit)
        except (FileNotFoundError, ProcessLookupError):
            return []  # no memory, or no thread: its stat tells which
        except PermissionError as error:
            raise Declined(Outcome.REFUSED, "permission", error.errno or 0) from None

    def _is(self, shown: Mempolicy, tid: int) -> bool:
        """Whether `shown` is what the policy asked for comes to in this thread."""
        policy = self._request.policy
        assert policy is not None
        if shown == policy:
            return True
        if shown.mode is not policy.mode:
            return False
        return readback.is_shown(policy, shown, readback.allowed_nodes(self._root, self._target.status(tid)))

    def _look_further(self, tid: int) -> Mempolicy:
        """The first region may have a policy of its own: a later one shows the thread's. Dear, and rare."""
        for shown in self._shown(tid, 4096):
            if self._is(shown, tid):
                return shown
        precheck.living(self._target, tid)
        if self._target.has_executed():
            # Another thread did so, and has this one's id now, with its own policy.
            raise gone("executed")
        raise Declined(Outcome.REFUSED, "readback")

    def _check(self, tid: int) -> tuple[tuple[int, int] | None, bool]:
        """Every precheck; (syscall, pc) of a blocked thread, and whether it has a seccomp filter."""
        # First, for kernel threads have nothing that the rest could be asked of.
        stat = precheck.living(self._target, tid)
        self._target.living = tid
        if not self._is_checked:
            self._check_process(tid)
            self._is_checked = True
        if self.objection:
            raise Declined(self.objection.outcome, self.objection.reason, self.objection.errno)
        if self._is_threaded:
            precheck.frozen(self._root, self._target.read(f"task/{tid}/cgroup"))
        blocked = precheck.thread(self._target, tid, stat, is_64bit=self._target.room.abi.bits == 64)
        return blocked, self._tracer.is_confined(self._target, tid)

    def _check_process(self, tid: int) -> None:
        try:
            self._tracer.check_process(self._target, tid)
            _ = self._target.room
            self._is_threaded = precheck.is_threaded(self._root, self._target.read(f"task/{tid}/cgroup"))
        except Declined as declined:
            if declined.outcome is Outcome.GONE:
                raise  # this thread is: others may live
            self.objection = declined


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
) -> ThreadResult:
    return ThreadResult(tid, declined.outcome, declined.reason, declined.errno, before, after, pause_ns)


def main(descriptor: int, board_descriptor: int, daemon: int, prefix: str) -> None:
    """Serve requests on the socket `descriptor` until the other end is closed."""
    libc.syscall(_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        sys.exit(1)  # it died before it could be said that we die with it
    # A stop of the service reaches every process of it, and the daemon may still need us to undo what was done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):
        # Whenever this process waits for a processor, so does the thread that it holds.
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    gc.disable()
    board = Board(board_descriptor)
    connection = socket.socket(fileno=descriptor)
    tracer = Tracer(Root(prefix), daemon)
    connection.send(wire.DONE)
    while packet := connection.recv(wire.PACKET):
        board.clear()
        tracer.serve(wire.unpack_request(packet), board)
        gc.collect(0)
        try:
            connection.send(wire.DONE)
        except (BrokenPipeError, ConnectionResetError):
            return

"""The daemon's end of the tracer process: starts it, asks it, and kills it when it overstays.

Killing it is safe at every moment: what a stopped thread needs to go on unharmed is in the thread's own memory. But a
thread whose seccomp filter is suspended for a call that it does not come to is only safe as long as the tracer lives:
that one is left to it, and another takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from hetmemd.kernel import libc, procfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote import regions, wire
from hetmemd.remote.board import Board
from hetmemd.remote.regions import RegionCall, RegionsResult
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.remote.wire import Call, Request

SLICE = 256
"""Threads in one request. What it has no time for in one turn goes into the next one."""
CANDIDATES = 32
"""Threads of which one is to make calls."""
ROUNDS = 16
"""How often new threads are looked for in one application; a later look goes on."""

MOST_LEFT = 8
"""Tracers that are left to a thread each, about 9 MB of memory. One more is killed: so many threads that were frozen by
cgroup v1 in just the microseconds of their acts are not to be met with."""

_START_SECONDS = 30.0
_FRUITLESS_STARTS = 3

# The package may lie anywhere: a tracer that looked for it by itself could find another one, or none.
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hetmemd.remote import process; "
    "process.main(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], float(sys.argv[6]))"
)
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class _Died(Exception):
    """The tracer process ended, or was killed for overstaying."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.acting: int | None = None
        """The thread that it held, or was about to."""


class Tracer:
    """Makes threads of other processes call. One per daemon, for one event loop."""

    def __init__(self, root: Root, limit_seconds: float = 2.0) -> None:
        """`limit_seconds` is what one thread may take before the tracer is killed to free it."""
        self._root = root
        self._limit = limit_seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        """How many wait for their turn."""
        self._child: subprocess.Popen[bytes] | None = None
        self._left: list[subprocess.Popen[bytes]] = []
        """Those that were left to a thread that they cannot let go."""
        self._connection: socket.socket | None = None
        self._board: Board | None = None
        self._fruitless = 0
        self._closed = False
        self._was_started = False
        self.restarts = 0
        """How often a tracer process was started in place of one that died, was killed, or was left to a thread."""

    @property
    def pid(self) -> int | None:
        """Of the tracer process, None while there is none."""
        return self._child.pid if self._child else None

    @property
    def pids(self) -> set[int]:
        """Of all tracer processes, those among them that were left to a thread."""
        self._left = [child for child in self._left if child.poll() is None]
        return {child.pid for child in (self._child, *self._left) if child}

    async def start(self) -> None:
        """Have the tracer process ready, so that the first act need not wait for an interpreter to start."""
        async with self._turn:
            if self._connection is None and libc.SUPPORTED:
                with contextlib.suppress(_Died):
                    await self._start()

    async def apply(
        self,
        process: ProcessId,
        policy: Mempolicy,
        tids: Sequence[int] | None = None,
        expected: Iterable[Mempolicy] = (),
    ) -> list[ThreadResult]:
        """Give `policy` to these threads, or to all: then until no thread is found that needed it.

        With `expected`, a thread that by then shows none of these (and not `policy`) is left alone, DEFERRED "changed".

        One result for each thread that was seen, read back from the kernel. A thread that has the policy is not
        stopped (`pause_ns` 0). Never raises for the target's sake.
        """
        call, data = wire.set_mempolicy(policy)
        if tids is not None:
            return list((await self._call(process, tids, (call,), data, policy, tuple(expected))).values())
        results: dict[int, ThreadResult] = {}
        for _ in range(ROUNDS):
            try:
                listed = self._listed(process)
            except OSError as error:
                return [ThreadResult(process.pid, Outcome.REFUSED, "permission", error.errno or 0)]
            if not listed:
                break
            # A thread that executes another program takes the id of its process, whoever had that before.
            again = {process.pid} if any(result.outcome is Outcome.GONE for result in results.values()) else set()
            new = [tid for tid in listed if tid not in results or tid in again]
            latest = await self._call(process, new, (call,), data, policy)
            results |= {
                tid: _merged(results[tid], result) if tid in results else result for tid, result in latest.items()
            }
            # A thread has its policy from the one that made it: if all that are new were right at first sight, then
            # nobody is left who could make a wrong one.
            if all(_was_right(result) for result in latest.values()):
                break
        return list(results.values()) or [ThreadResult(process.pid, Outcome.GONE, "exited")]

    async def bind(
        self, process: ProcessId, requests: Sequence[RegionCall], tids: Sequence[int] | None = None
    ) -> RegionsResult:
        """Have any one thread, or the first possible one of these, make all these calls, one after the other.

        A call that fails does not keep the next from being made. A thread is held for about a millisecond at a time,
        and is then left alone for as long as it was held. Never raises for the target's sake.
        """
        errnos: list[int] = []
        pauses: list[int] = []
        stops = 0
        while len(errnos) < len(requests):
            try:
                candidates = self._listed(process) if tids is None else tids
            except OSError as error:
                held = ThreadResult(process.pid, Outcome.REFUSED, "permission", error.errno or 0)
            else:
                held = await self._call_once(process, candidates, *regions.calls(requests[len(errnos) :]))
            errnos += held.errnos
            stops += held.stops
            if held.outcome is not Outcome.APPLIED:
                return RegionsResult(held.outcome, held.reason, held.errno, tuple(errnos), tuple(pauses), stops)
            pauses.append(held.pause_ns)
            await asyncio.sleep(held.pause_ns / 1e9)
        return RegionsResult(Outcome.APPLIED, "", 0, tuple(errnos), tuple(pauses), stops)

    def _listed(self, process: ProcessId) -> list[int]:
        """Its threads, none where it is gone. `OSError` EACCES or EPERM."""
        try:
            if procfs.identify(self._root, process.pid) == process:
                return procfs.tids(self._root, process.pid)
        except OSError as error:
            if not libc.is_gone(error):
                raise
        return []

    async def _call_once(
        self, process: ProcessId, tids: Sequence[int], calls: tuple[Call, ...], data: bytes
    ) -> ThreadResult:
        """The calls in the first of the threads in which they can be made, as many as one stop has time for.

        APPLIED with `errnos`, or why none of the threads made any.
        """
        if not libc.SUPPORTED:
            return ThreadResult(process.pid, Outcome.UNSTEERABLE, "architecture")
        results: dict[int, ThreadResult] = {}
        async with self._its_turn():
            try:
                request = Request(process, tuple(tids[:CANDIDATES]), calls, data, policy=None, once=True)
                await self._ask(request, results)
            except _Died as died:
                if died.reason == "timeout":
                    self._fruitless = 0
                return ThreadResult(died.acting or process.pid, Outcome.DEFERRED, died.reason, stops=1)
        said = sorted(results.values(), key=lambda result: result.outcome is Outcome.GONE)
        made = [result for result in said if result.outcome is Outcome.APPLIED]
        first = [*made, *said, ThreadResult(process.pid, Outcome.GONE, "exited")][0]
        return first._replace(stops=sum(result.stops for result in said))

    async def _call(
        self,
        process: ProcessId,
        tids: Sequence[int],
        calls: tuple[Call, ...],
        data: bytes,
        policy: Mempolicy | None,
        expected: tuple[Mempolicy, ...] = (),
    ) -> dict[int, ThreadResult]:
        """All calls in each of the threads, a slice at a time, taking turns with other callers."""
        if not libc.SUPPORTED:
            return {tid: ThreadResult(tid, Outcome.UNSTEERABLE, "architecture") for tid in tids}
        results: dict[int, ThreadResult] = {}
        waiting = list(dict.fromkeys(tids))
        sweep = False
        alone = 0
        while waiting:
            some = waiting[: 1 if alone else SLICE]
            alone = max(0, alone - 1)
            async with self._its_turn():
                try:
                    await self._ask(Request(process, tuple(some), calls, data, policy, expected, sweep), results)
                except _Died as died:
                    sweep = True
                    rest = [tid for tid in waiting if tid not in results]
                    if self._fruitless >= _FRUITLESS_STARTS:
                        # It cannot live here at all: said for every thread, tried again at the next application.
                        self._fruitless = 0
                        held = rest
                    elif died.acting is not None:
                        held = [died.acting]
                        if died.reason == "timeout":
                            self._fruitless = 0  # the thread's fault, not the tracer's
                    elif len(some) == 1:
                        held = some
                    else:
                        # It hung or failed where it only looks: which thread that was is found out one by one.
                        held = []
                        alone = len(some)
                    results |= {tid: ThreadResult(tid, Outcome.DEFERRED, died.reason, stops=1) for tid in held}
            waiting = [tid for tid in waiting if tid not in results]
        return results

    @contextlib.asynccontextmanager
    async def _its_turn(self) -> AsyncIterator[None]:
        """Alone with the tracer, which is told as soon as somebody else waits."""
        self._waiting += 1
        try:
            if self._board:
                self._board.say_others_wait(True)
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _ask(self, request: Request, results: dict[int, ThreadResult]) -> None:
        if self._child and self._child.poll() is not None:
            self._kill()  # it died while nothing was asked of it
        connection = self._connection or await self._start()
        board = self._board
        assert board
        finished = False
        board.clear()
        board.say_others_wait(self._waiting > 0)
        try:
            connection.send(wire.pack_request(request))
            await self._done(connection, board)
            finished = True
        except asyncio.CancelledError:
            # Nor is it killed for a caller that is gone while it may have sent a thread to its call: it is soon done.
            board.say_others_wait(True)
            with contextlib.suppress(_Died):
                await self._done(connection, board)
                finished = True
            raise
        except OSError:
            raise _Died("tracer-died") from None
        except _Died as died:
            self._leave_or_kill(board)
            died.acting = board.read()[1]
            raise
        finally:
            if not finished:
                # Also where the caller was cancelled: an answer to nobody would be taken for the next one's.
                self._leave_or_kill(board)
            latest = board.read()[0]
            results |= {result.tid: result for result in latest}
            if latest:
                self._fruitless = 0

    async def _done(self, connection: socket.socket, board: Board) -> None:
        """Until the tracer says so, as long as it gets on."""
        steps = -1
        while True:
            packet = await _receive(connection, self._limit)
            if packet == b"":
                raise _Died("tracer-died")
            if packet is not None:
                return
            if board.steps() == steps:
                raise _Died("timeout")
            steps = board.steps()

    def _command(self) -> list[str]:
        # -I and -S: nothing of the environment, no site-packages: only the standard library and this package.
        return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP]

    async def _start(self) -> socket.socket:
        if self._closed:
            raise _Died("closed")
        self.restarts += self._was_started
        self._was_started = True
        self._fruitless += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        memory = Board.create()
        self._connection, self._board = ours, Board(memory)
        arguments = [_PACKAGE_PARENT, str(theirs.fileno()), str(memory), str(os.getpid()), self._root.name("")]
        arguments.append(str(self._limit))
        started = False
        try:
            self._child = subprocess.Popen(
                [*self._command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), memory],
                cwd="/",
            )
            theirs.close()
            started = await _receive(ours, _START_SECONDS) == wire.DONE
        except OSError:
            pass  # no memory, or no more processes
        finally:
            theirs.close()
            os.close(memory)
            if not started:
                self._kill()
        if not started:
            raise _Died("tracer-died")
        return ours

    def _leave_or_kill(self, board: Board) -> None:
        """It ends by itself when it is done with its thread: nobody is there any more to ask it for another."""
        left = self.pids - {self.pid}
        if self._child and self._child.poll() is None and board.is_overdue() and len(left) < MOST_LEFT:
            self._left.append(self._child)
            self._child = None
        self._kill()

    def _kill(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None
        if self._child:
            self._child.kill()
            # It holds nothing that could keep it: this is a matter of microseconds.
            self._child.wait()

    def close(self) -> None:
        """End the tracer process. A thread that it holds goes on unharmed. One that is to be left to a thread stays."""
        self._closed = True
        if self._board:
            self._leave_or_kill(self._board)
        self._child = None


async def _receive(connection: socket.socket, seconds: float) -> bytes | None:
    """The next packet, empty where there will be none, None where there is none in time."""
    packet = _take(connection)
    if packet is None:
        loop = asyncio.get_running_loop()
        readable = loop.create_future()

        def note() -> None:
            if not readable.done():
                readable.set_result(None)

        loop.add_reader(connection, note)
        try:
            await asyncio.wait([readable], timeout=seconds)
        finally:
            loop.remove_reader(connection)
        # Looked at in any case: when this loop was held up itself, the answer may have come in time all the same.
        packet = _take(connection)
    return packet


def _take(connection: socket.socket) -> bytes | None:
    """A packet that is there, empty where the other end is closed, None where there is none yet."""
    try:
        return connection.recv(wire.PACKET)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _was_right(result: ThreadResult) -> bool:
    """No act was needed: nothing that this thread made before can have been wrong."""
    return result.outcome is Outcome.APPLIED and not result.pause_ns


def _merged(earlier: ThreadResult, later: ThreadResult) -> ThreadResult:
    """Two looks at the same thread: a second one that found it right adds nothing to what was done in the first."""
    told = earlier if earlier.outcome is later.outcome and not later.pause_ns else later
    return told._replace(stops=earlier.stops + later.stops)

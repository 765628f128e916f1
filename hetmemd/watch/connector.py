"""The proc connector: forks, execs and exits of every process, through pyroute2's socket and a receive loop of our own.

pyroute2 opens, binds and subscribes; its own loop costs 40 us an event, ends for good at the first overflow, and raises
on a comm that is not UTF-8. So the socket is kept by a duplicate of its descriptor, and received from here: many events
with a call, unpacked by struct, woken at most every 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from hetmemd.kernel import connector as cn
from hetmemd.kernel.root import Root
from hetmemd.watch.hint import CrashHint, DumpHint, Hint, TaskHint
from hetmemd.watch.source import Deliver, Source

PACE = 0.02
"""Seconds between the first event and the reading of all that came by then: 1.2 us an event instead of 5 to 12."""
SETTLE_NS = 1_000_000
"""A FORK is sent before the child is in its cgroup: until then /proc/PID/cgroup may say the root."""
BUFFER = 32 << 20
"""Bytes of receive buffer; an event is charged 832."""
ACK_SECONDS = 1.0
"""For the first acknowledgement. The kernel sends it before the request returns, so the wait is for our own turn."""
REPAIR_SECONDS = 0.2
"""For each further one."""
CHECK_SECONDS = 5.0
CHECK_SECONDS_MOST = 60.0
_SLICE = 16
"""Calls to receive before others on the loop have their turn: some 4000 events, 5 ms."""


class ConnectorSource(Source):
    name: ClassVar[str] = "proc-connector"

    def __init__(
        self,
        root: Root,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        *,
        opener: Callable[[], socket.socket] | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        super().__init__(deliver)
        self._root = root
        self._loop = loop
        self._opener = opener or open_socket
        self._socket: socket.socket | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._receiver = cn.Receiver()
        # Others ask too, and every answer goes to everybody.
        self._request = int.from_bytes(os.urandom(3), "little")
        self._answers: dict[int, int] = {}
        self._answered = asyncio.Event()
        self._overflowed = False
        self._filtered = True
        self._silences = 0
        self._repair: asyncio.Task[None] | None = None
        self._young: list[tuple[int, Hint]] = []
        self.forks = 0
        """Forks seen, of processes and threads: what `processes` in /proc/stat grows by."""
        self._unseen = 0
        """The least that `processes` was ever ahead of `forks`; more than that was lost."""
        self._check_least = self._check_seconds = check_seconds

    # Opening

    async def start(self) -> None:
        """Subscribe, and wait until the kernel says so. Returns with the source up, or down with a note."""
        try:
            # pyroute2 0.9 runs an event loop of its own to open a socket, which a thread allows only where none runs.
            self._socket = await asyncio.to_thread(self._opener)
        except Exception as error:
            # Of the kernel, or of any version of pyroute2.
            self.fail(_why_not(error))
            return
        self._loop.add_reader(self._socket.fileno(), self._readable)
        code = await self._subscribe(ACK_SECONDS)
        if code is None and _initial_namespaces(self._root):
            code = await self._raise_listeners()
        if code != 0:
            self.close()
            self.fail(_refusal(self._root, code))
            return
        self.up, self.note = True, ""
        self._unseen = self._processes() - self.forks
        self._later("check", self._check_seconds, self._check)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            with contextlib.suppress(OSError):
                # Since 6.6 closing does not take the listener off the kernel's count.
                self._send(cn.request(cn.IGNORE, 0))
            self._socket.close()
            self._socket = None
        self.fail("closed")

    async def _subscribe(self, seconds: float = REPAIR_SECONDS) -> int | None:
        """Ask for events: 0 when acknowledged, an errno where refused, None where nobody answers.

        The answer comes only while the kernel counts at least one listener, so this also tells whether somebody's
        IGNORE has silenced all of them.
        """
        self._request = (self._request + 1) & 0x7FFFFFFF
        wanted = self._request + 1
        self._answered.clear()
        try:
            self._send(cn.request(cn.LISTEN, self._request))
            deadline = self._loop.time() + seconds
            while wanted not in self._answers:
                async with asyncio.timeout_at(deadline):
                    await self._answered.wait()
                self._answered.clear()
            if self._filtered:
                # The short request asked for everything. This one says what is wanted, and is dropped before 6.6.
                self._send(cn.request(cn.LISTEN, self._request, cn.FORK | cn.EXEC | cn.COREDUMP | cn.EXIT))
        except TimeoutError:
            return None
        except OSError as error:
            return error.errno or errno.EIO
        return self._answers.pop(wanted)

    async def _raise_listeners(self) -> int | None:
        """Undo IGNOREs: anybody may send them, each takes one off the kernel's count, and below 1 nothing is sent.

        Since 6.6 only the first LISTEN of a socket counts, and closing does not take it back: new sockets are opened,
        twice as many each time, until an answer comes.
        """
        try:
            return await self._add_listeners()
        except OSError as error:
            return error.errno or errno.EIO

    async def _add_listeners(self) -> int | None:
        self._silences += 1
        if self._silences == 2 and self._filtered and self._socket is not None:
            # Twice in a row: perhaps a kernel that takes an event which every listener filters out for a sign that
            # there are none (6.6.13 to 6.6.17, 6.7.1 to 6.7.5). So nothing is filtered any more.
            self._filtered = False
            self._socket.setsockopt(socket.SOL_SOCKET, cn.SO_DETACH_FILTER, 0)
        for power in range(12):
            if self._socket is None:
                return None
            for _ in range(1 << power):
                with socket.socket(
                    socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, cn.NETLINK_CONNECTOR
                ) as one:
                    one.bind((0, cn.CN_IDX_PROC))
                    one.send(cn.request(cn.LISTEN, 0))
            code = await self._subscribe()
            if code is not None:
                return code
        return None

    def _send(self, message: bytes) -> None:
        if self._socket is not None:
            self._socket.send(message)

    # Receiving

    def _readable(self) -> None:
        """Something came: wait a little, then take everything. While starting, answers are wanted at once."""
        if self._socket is None:
            return
        if not self.up:
            self._drain()
            return
        self._loop.remove_reader(self._socket.fileno())
        self._later("drain", PACE, self._drain)

    def _drain(self) -> None:
        if self._socket is None:
            return
        try:
            empty, hints = self._receive()
        except OSError as error:
            self.close()
            self.fail(f"receiving from the proc connector: {error}")
            self.lost()
            return
        if empty:
            self._loop.add_reader(self._socket.fileno(), self._readable)
            if self._overflowed:
                # Until the queue was empty the kernel kept dropping: only a scan from now on is complete.
                self._overflowed = False
                self._unseen = self._processes() - self.forks
                self.lost()
        else:
            self._later("drain", 0, self._drain)
        if self.up:
            # Before that somebody else's subscription brings events, and a scan is still to come.
            self._settle(hints)

    def _receive(self) -> tuple[bool, list[tuple[int, Hint]]]:
        """Take up to a slice: whether the queue is empty, and what is left of it to look at, each with its time.

        A process that was forked and ended within the batch is not mentioned, nor is an exec before the end. Dumps,
        crashes and ends come first, then forks, then execs: for each pid that is the order in which they happened.
        """
        assert self._socket is not None
        descriptor = self._socket.fileno()
        fork, execute, leave, dump, fatal = cn.FORK, cn.EXEC, cn.EXIT, cn.COREDUMP, cn.FATAL
        count = forks = 0
        # Plain numbers until the batch is over: most of what comes is gone by then.
        forked: dict[int, tuple[int, int]] = {}
        executed: dict[int, int] = {}
        ended: dict[int, int] = {}
        dumped: dict[int, None] = {}
        crashed: dict[int, int] = {}
        empty = False
        for _ in range(_SLICE):
            try:
                events = self._receiver.receive(descriptor)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overflowed = True
                continue
            if not events:
                empty = True
                break
            count += len(events)
            for number, kind, when, a, b, c, d, e in events:
                if kind == fork:
                    forks += 1
                    if c == d:
                        forked[c] = when, b
                elif kind == leave:
                    if c and c & 0x7F in fatal:
                        crashed[b] = c
                    if a == b:
                        if executed:
                            executed.pop(a, None)
                        if forked.pop(a, None) is None:
                            ended[a] = e
                elif kind == execute:
                    executed[b] = when
                elif kind == dump:
                    dumped[b] = None
                elif kind == cn.NONE:
                    self._answer(number, a)
        self.events += count
        self.forks += forks
        hints: list[tuple[int, Hint]] = [(0, DumpHint(pid)) for pid in dumped]
        hints += [(0, CrashHint(pid, c & 0x7F, bool(c & 0x80))) for pid, c in crashed.items()]
        hints += [(0, TaskHint(pid, pid, "exit", parent)) for pid, parent in ended.items()]
        hints += [(when, TaskHint(pid, pid, "fork", parent)) for pid, (when, parent) in forked.items()]
        hints += [(when, TaskHint(pid, pid, "exec", 0)) for pid, when in executed.items()]
        return empty, hints

    def _answer(self, number: int, code: int) -> None:
        # Answers to others are multicast as well.
        if number == self._request + 1:
            self._answers[number] = code
            self._answered.set()

    def _settle(self, fresh: Sequence[tuple[int, Hint]]) -> None:
        """Deliver what is old enough, and the rest a little later, in order."""
        waiting = [*self._young, *fresh]
        self._young = []
        limit = time.monotonic_ns() - SETTLE_NS
        hints: list[Hint] = []
        for index, (when, hint) in enumerate(waiting):
            if when > limit and isinstance(hint, TaskHint) and hint.why == "fork":
                self._young = waiting[index:]
                self._later("settle", SETTLE_NS / 1e9, self._settle_rest)
                break
            hints.append(hint)
        self.tell(hints)

    def _settle_rest(self) -> None:
        self._settle(())

    # Watching the watcher

    def _processes(self) -> int:
        """Forks since boot, of processes and threads (proc_stat(5)); 0 where it cannot be read."""
        try:
            data = self._root.read_bytes("/proc/stat")
            start = data.index(b"\nprocesses ") + 11
            return int(data[start : data.index(b"\n", start)])
        except (OSError, ValueError):
            return 0

    def _check(self) -> None:
        """Compare with the kernel's own count. It counts before it sends: what it had now must be seen a bit later."""
        processes = self._processes()
        if processes - self.forks <= self._unseen:
            self._unseen = processes - self.forks
            self._check_seconds = self._check_least
            self._silences = 0
            self._later("check", self._check_seconds, self._check)
            return
        self._later("check", PACE * 5, lambda: self._recheck(processes))

    def _recheck(self, processes: int) -> None:
        if "drain" in self._timers:
            # Not everything that was sent is received yet.
            self._later("check", PACE * 5, lambda: self._recheck(processes))
            return
        missing = processes - self.forks - self._unseen
        if missing > 0:
            # Where the two never agree (a /proc/stat that somebody else provides), scans must not follow every check.
            self._check_seconds = min(self._check_seconds * 2, CHECK_SECONDS_MOST)
            self._repair = self._loop.create_task(self._resubscribe())
            return
        self._later("check", self._check_seconds, self._check)

    async def _resubscribe(self) -> None:
        """An IGNORE of anybody silences every listener: ask again, and only then have what was missed looked for."""
        code = await self._subscribe()
        if code is None:
            code = await self._raise_listeners()
        self._repair = None
        if self._socket is None:
            return
        self.note = "" if code == 0 else "silenced by another program's IGNORE; asked again without an answer"
        self._unseen = self._processes() - self.forks
        self.lost()
        self._later("check", self._check_seconds, self._check)

    def _later(self, name: str, seconds: float, call: Any) -> None:
        previous = self._timers.pop(name, None)
        if previous is not None:
            previous.cancel()

        def run() -> None:
            self._timers.pop(name, None)
            call()

        self._timers[name] = self._loop.call_later(seconds, run)


def open_socket(buffer: int = BUFFER) -> socket.socket:
    """The connector's socket, opened and bound by pyroute2, kept by a duplicate of its descriptor. Blocks shortly."""
    try:
        # Since 0.7.9.
        from pyroute2.netlink.connector.cn_proc import ProcEventSocket  # noqa: PLC0415

        opened = ProcEventSocket()
        bind: dict[str, int] = {}
    except ImportError:
        from pyroute2.netlink.nlsocket import NetlinkSocket  # noqa: PLC0415

        opened = NetlinkSocket(cn.NETLINK_CONNECTOR)
        bind = {"groups": cn.CN_IDX_PROC}
    try:
        try:
            opened.setsockopt(socket.SOL_SOCKET, cn.SO_RCVBUFFORCE, buffer)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, cn.SO_RCVBUF, buffer)
        program = cn.Filter()
        opened.setsockopt(socket.SOL_SOCKET, cn.SO_ATTACH_FILTER, program.option)
        opened.bind(**bind)
        number = opened.fileno() if callable(opened.fileno) else opened.fileno
        kept = socket.socket(fileno=os.dup(number))
    finally:
        opened.close()
    kept.setblocking(False)
    return kept


def _initial_namespaces(root: Root) -> bool:
    wanted = (("pid", cn.PROC_PID_INIT_INO), ("user", cn.PROC_USER_INIT_INO))
    try:
        return all(os.stat(root.name(f"/proc/self/ns/{name}")).st_ino == inode for name, inode in wanted)  # noqa: PTH116
    except OSError:
        return True


def _why_not(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"pyroute2 cannot be imported: {error}"
    if isinstance(error, KeyError):
        # pyroute2 tries many addresses, and says only that none was free.
        error = _bind_error() or error
    return f"opening the proc connector: {error or type(error).__name__}"


def _bind_error() -> OSError | None:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, cn.NETLINK_CONNECTOR) as plain:
            plain.bind((0, cn.CN_IDX_PROC))
    except OSError as error:
        return error
    return None


def _refusal(root: Root, code: int | None) -> str:
    if code == errno.ECONNREFUSED:
        return "not in a private network namespace (PrivateNetwork=): the connector lives in the initial one"
    if code is not None:
        return f"the kernel refused: {os.strerror(code)}"
    if not _initial_namespaces(root):
        return "silent in a child pid or user namespace: the kernel tells only the initial ones"
    return "no acknowledgement: the kernel lacks CONFIG_PROC_EVENTS, or others keep sending IGNORE"

"""The control socket: Varlink over /run/hetmemd/control, in the daemon's own loop.

Most of its methods only read, and what they tell is no secret on a machine where /proc is not one either, so that
everybody may connect (0666). What changes something asks for uid 0, by SO_PEERCRED.

Nobody who connects can hold up the loop: reads are small, a connection has one call at a time, whose reply must be
taken before the next is looked at, users other than root have a number of connections and calls each and wait for the
time that their calls take of the loop, and what is slow to read from /proc is read in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import struct
from collections import Counter

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkTransport,
)
from asyncvarlink.serviceinterface import VarlinkServiceInterface

import hetmemd
from hetmemd.kernel.root import Root
from hetmemd.report import SOCKET
from hetmemd.report.inquiry import CALLER, Inquiry, Orders, Resolve
from hetmemd.report.publish import Publisher

log = logging.getLogger(__name__)
# It writes an error for every client that goes away before its reply: anybody could fill the journal with that.
# What fails in a method is said by `_Connection.handle_call_exception`.
logging.getLogger("asyncvarlink").setLevel(logging.CRITICAL)

LARGEST_CALL = 64 << 10
"""Bytes. A cgroup's path is 4 KiB at most, and nothing else in a call is long."""
CONNECTIONS_PER_USER = 16
CONNECTIONS = 128
"""Of all users but root, who is never turned away."""
CALL_INTERVAL = 0.02
"""Seconds from call to call of one user, root excepted: a reply costs the loop time."""
CHARGE = 10
"""So no user but root takes more than a tenth of the loop's time, however large the replies."""
IDLE_SECONDS = 120.0
REPLY_SECONDS = 30.0
"""A client that has not taken its reply in this time is cut off."""
_BACKLOG = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Connection(VarlinkInterfaceServerProtocol):
    """One client."""

    def __init__(self, control: Control, uid: int) -> None:
        super().__init__(control.registry)
        self._control = control
        self.uid = uid
        self._unfinished = 0
        self._reply: asyncio.Future[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._idle = self._loop.call_later(IDLE_SECONDS, self.close)

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        self._idle.cancel()
        self._idle = self._loop.call_later(IDLE_SECONDS, self.close)
        end = data.rfind(b"\0")
        self._unfinished = self._unfinished + len(data) if end < 0 else len(data) - end - 1
        if self._unfinished > LARGEST_CALL:
            self.close()
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError):  # what is no UTF-8, or nested without end
            self.close()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Not JSON: there is no telling where the next call begins."""
        self.close()

    def call_received(self, call: VarlinkMethodCall, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        """Always a future, done when the reply was taken: until then nothing more is read from this client."""
        if self._is_over:
            return None
        answered: asyncio.Future[None] = self._loop.create_future()
        self._answering = asyncio.ensure_future(self._answer(call))
        self._answering.add_done_callback(functools.partial(_settle, answered))
        return answered

    async def _answer(self, call: VarlinkMethodCall) -> None:
        await self._control.turn(self.uid)
        CALLER.set(self.uid)  # for this task, and for those that it makes
        self._reply = None
        work = super().call_received(call, None)
        if work is not None:
            await work
        if self._reply is not None:
            try:
                async with asyncio.timeout(REPLY_SECONDS):
                    await asyncio.shield(self._reply)
            except OSError:  # TimeoutError among them
                self._control.drop(self)

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:
        """A fault of ours; the client is told that there was one, and no more."""
        log.error("control: a call failed", exc_info=exc)
        super().handle_call_exception(exc, oneway)

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        begin = self._loop.time()
        self._reply = super().send_reply(reply, fds, autoclose)
        self._control.charge(self.uid, self._loop.time() - begin)
        return self._reply

    def give_up(self) -> None:
        """Neither the call at hand nor those that wait behind it are answered any more."""
        self._is_over = True
        self._idle.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up()
        self._control.forget(self)
        super().connection_lost(exc)


def _settle(answered: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """A call that was given up, as its client is gone or the daemon stops, is over; the library knows no such end."""
    if answered.cancelled():
        return
    if not task.cancelled() and (error := task.exception()):
        answered.set_exception(error)
    else:
        answered.set_result(None)


class Control:
    """The socket. `await start()`, then `close()`; both in the loop."""

    def __init__(
        self,
        publisher: Publisher,
        root: Root | None = None,
        resolve: Resolve | None = None,
        orders: Orders | None = None,
        path: str = SOCKET,
    ) -> None:
        """`path` hangs on `root`; `resolve` answers for cgroups that no policy reaches; `orders` does what changes
        something."""
        root = root or Root()
        self._path = root.name(path)
        self._inquiry = Inquiry(publisher, root, resolve, orders, self.charge)
        self.registry = VarlinkInterfaceRegistry()
        self.registry.register_interface(self._inquiry)
        self.registry.register_interface(
            VarlinkServiceInterface("hetmemd", "hetmemd", hetmemd.__version__, "", self.registry)
        )
        self._socket: socket.socket | None = None
        self._connections: dict[_Connection, VarlinkTransport] = {}
        self._next_call: dict[int, float] = {}

    async def start(self) -> None:
        """`OSError` with the path where the socket cannot be made. One left by an earlier run is replaced."""
        self._loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108 - one name for bind(2), chmod(2) and this
            listener.bind(self._path)
            os.chmod(self._path, 0o666)  # noqa: PTH101
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror, self._path) from None
        self._socket = listener
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108
        for connection, transport in list(self._connections.items()):
            connection.give_up()
            transport.abort()
        self._inquiry.close()

    async def turn(self, uid: int) -> None:
        """Waits until a user may call again."""
        await asyncio.sleep(self.wait(uid, self._loop.time()))

    def wait(self, uid: int, now: float) -> float:
        """Seconds until a further call of this user is due: all of its connections stand in one line."""
        if uid == 0:
            return 0.0
        at = max(self._next_call.get(uid, now), now)
        self._next_call[uid] = at + CALL_INTERVAL
        return at - now

    def charge(self, uid: int, seconds: float) -> None:
        """A call kept the loop for that long, with its answer or with JSON: its user may ask again that much later."""
        if uid in self._next_call:
            self._next_call[uid] += CHARGE * seconds

    def drop(self, connection: _Connection) -> None:
        if transport := self._connections.get(connection):
            transport.abort()

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        # Who hangs up and comes again stands in the same line.
        here, now = {other.uid for other in self._connections}, self._loop.time()
        self._next_call = {uid: at for uid, at in self._next_call.items() if uid in here or at > now}

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # It stays in the queue, and the loop would come here at once, for ever.
            self._loop.remove_reader(self._socket)
            self._loop.call_later(0.5, self._listen_again)
            return
        uid = _user(client)
        if uid != 0 and self._is_full(uid):
            client.close()
            return
        connection = _Connection(self, uid)
        # Without the prediction of boundaries, which peeks in a loop for as long as a client goes on writing.
        self._connections[connection] = VarlinkTransport(
            self._loop, client, client, connection, boundary_predictor=None
        )

    def _is_full(self, uid: int) -> bool:
        users = Counter(connection.uid for connection in self._connections if connection.uid != 0)
        return users[uid] >= CONNECTIONS_PER_USER or users.total() >= CONNECTIONS

    def _listen_again(self) -> None:
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._accept)


def _user(client: socket.socket) -> int:
    """The uid of the other end, as the kernel noted it at connect(2): SO_PEERCRED, unix(7)."""
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)

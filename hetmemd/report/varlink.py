"""The control socket: Varlink over /run/hetmemd/control, in the daemon's own loop.

Its methods only read, and what they tell is no secret on a machine where /proc is not one either, so that everybody
may connect (0666). What changes something will ask for uid 0, by SO_PEERCRED.

Nobody who connects can hold up the loop: reads are small, a connection has one call at a time, whose reply must be
taken before the next is looked at, users other than root have a number of connections and calls each, and what is
slow to read from /proc is read in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkTransport,
    varlinkmethod,
)
from asyncvarlink.serviceinterface import InvalidParameter, VarlinkServiceInterface

import hetmemd
from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from hetmemd.policy.effective import Effective
from hetmemd.report import answers
from hetmemd.report.interface import SOCKET, Interface, NoSuchCgroup, NoSuchProcess, NotReady
from hetmemd.report.publish import Publisher
from hetmemd.report.snapshot import Snapshot

log = logging.getLogger(__name__)

Resolve = Callable[[str], Effective | None]
"""The effective policy of a cgroup that the snapshot does not hold; None where there is no such cgroup."""

LARGEST_CALL = 64 << 10
"""Bytes. A cgroup's path is 4 KiB at most, and nothing else in a call is long."""
CONNECTIONS_PER_USER = 16
CONNECTIONS = 128
"""Of all users but root, who is never turned away."""
CALL_INTERVAL = 0.02
"""Seconds from call to call of one user, root excepted: a reply costs the loop time."""
IDLE_SECONDS = 120.0
REPLY_SECONDS = 30.0
"""A client that has not taken its reply in this time is cut off."""
KERNEL_SECONDS = 2.0
"""numa_maps takes the process's mmap lock, which can be held for long: then its answer is left out."""
_THREADS_SHOWN = 64
_BACKLOG = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Service(Interface):
    """Answers from the newest snapshot."""

    def __init__(self, publisher: Publisher, root: Root, resolve: Resolve | None = None) -> None:
        self._publisher = publisher
        self._root = root
        self._resolve = resolve
        # Threads of its own: a read that hangs on a lock must not take those that move pages.
        self._readers = ThreadPoolExecutor(2, "control")
        self._reading = 0

    @varlinkmethod(return_parameter="status", allow_foreign=True)
    async def Status(self) -> Any:
        return answers.status(self._snapshot())

    @varlinkmethod(return_parameter="answer", allow_foreign=True)
    async def Explain(self, *, cgroup: str | None = None, pid: int | None = None) -> Any:
        if (cgroup is None) == (pid is None):
            raise InvalidParameter(parameter="cgroup")
        snapshot = self._snapshot()
        kernel = None
        if pid is not None:
            kernel = await self._kernel(pid)
            cgroup = kernel.pop("cgroup")
        assert cgroup is not None
        cgroup = "/" + cgroup.strip("/")
        view = next((view for view in snapshot.cgroups if view.effective.cgroup == cgroup), None)
        effective = view.effective if view else self._resolve(cgroup) if self._resolve else None
        if effective is None:
            raise NoSuchCgroup(cgroup=cgroup)
        told = answers.explain(effective, view, pid)
        return told if kernel is None else {**told, "pid": pid, "kernel": kernel}

    @varlinkmethod(return_parameter="files", allow_foreign=True)
    async def Check(self) -> Any:
        return answers.status(self._snapshot())["files"]

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _snapshot(self) -> Snapshot:
        snapshot = self._publisher.latest
        if snapshot is None:
            raise NotReady()
        return snapshot

    async def _kernel(self, pid: int) -> dict[str, Any]:
        """What the kernel says of a process now, its cgroup among it; without policies where that takes too long."""
        try:
            cgroup = procfs.cgroup_path(self._root, pid)
        except OSError:
            cgroup = None
        if cgroup is None:
            raise NoSuchProcess(pid=pid)
        told: dict[str, Any] = {"cgroup": cgroup, "policies": {}, "mems_allowed": [], "note": ""}
        if self._reading >= 8:
            return {**told, "note": "busy: ask again"}
        self._reading += 1
        work = asyncio.get_running_loop().run_in_executor(self._readers, _policies, self._root, pid)
        work.add_done_callback(self._done_reading)
        try:
            async with asyncio.timeout(KERNEL_SECONDS):
                return {**told, **await asyncio.shield(work)}
        except TimeoutError:
            return {**told, "note": f"the kernel did not say within {KERNEL_SECONDS:g} s"}
        except (OSError, ValueError) as error:
            return {**told, "note": str(error)}

    def _done_reading(self, work: asyncio.Future[Any]) -> None:
        self._reading -= 1
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not complain of one that came too late


def _policies(root: Root, pid: int) -> dict[str, Any]:
    """Threads by the policy that numa_maps shows, and the nodes that the cpuset allows."""
    tids = procfs.tids(root, pid)
    counts: Counter[str] = Counter()
    for tid in tids[:_THREADS_SHOWN]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            policy = procfs.thread_policy(root, pid, tid)
            counts["none (no memory)" if policy is None else str(policy)] += 1
    more = len(tids) - _THREADS_SHOWN
    return {
        "policies": dict(counts),
        "mems_allowed": sorted(procfs.mems_allowed(procfs.status(root, pid))),
        "note": f"{more} more threads were not read" if more > 0 else "",
    }


class _Connection(VarlinkInterfaceServerProtocol):
    """One client."""

    def __init__(self, control: Control, uid: int) -> None:
        super().__init__(control.registry)
        self._control = control
        self.uid = uid
        self._unfinished = 0
        self._reply: asyncio.Future[None] | None = None
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
        return asyncio.ensure_future(self._answer(call))

    async def _answer(self, call: VarlinkMethodCall) -> None:
        await self._control.turn(self.uid)
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

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        self._reply = super().send_reply(reply, fds, autoclose)
        return self._reply

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.cancel()
        self._control.forget(self)
        super().connection_lost(exc)


class Control:
    """The socket. `await start()`, then `close()`; both in the loop."""

    def __init__(
        self, publisher: Publisher, root: Root | None = None, resolve: Resolve | None = None, path: str = SOCKET
    ) -> None:
        """`path` hangs on `root`; `resolve` answers for cgroups that no policy reaches."""
        root = root or Root()
        self._path = root.name(path)
        self._service = Service(publisher, root, resolve)
        self.registry = VarlinkInterfaceRegistry()
        self.registry.register_interface(self._service)
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
        for transport in list(self._connections.values()):
            transport.abort()
        self._service.close()

    async def turn(self, uid: int) -> None:
        """Waits until a user may call again; what all of its connections ask for stands in one line."""
        if uid == 0:
            return
        now = self._loop.time()
        at = max(self._next_call.get(uid, now), now)
        self._next_call[uid] = at + CALL_INTERVAL
        await asyncio.sleep(at - now)

    def drop(self, connection: _Connection) -> None:
        if transport := self._connections.get(connection):
            transport.abort()

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        if not any(other.uid == connection.uid for other in self._connections):
            self._next_call.pop(connection.uid, None)

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
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))  # unix(7)
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

"""The connector's messages, and what becomes of them, without a kernel that sends them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hetmemd.kernel import connector as cn
from hetmemd.kernel.root import Root
from hetmemd.watch.connector import ConnectorSource
from hetmemd.watch.hint import CrashHint, DumpHint, Hint, LostHint, TaskHint

COMM = 0x200
DEADLINE = 30.0
CRASHES = (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGSEGV, signal.SIGSYS)
"""And no others: SIGKILL, SIGABRT and SIGFPE are the program's affair, or another's."""


def event(kind: int, *numbers: int, ack: int = 0, when: int | None = None) -> bytes:
    """As the kernel writes it (struct proc_event in include/uapi/linux/cn_proc.h)."""
    moment = time.monotonic_ns() if when is None else when
    body = struct.pack("=IIQ", kind, 0, moment) + struct.pack(f"={len(numbers)}I", *numbers).ljust(24, b"\0")
    return struct.pack("=IHHII", 76, 3, 0, 0, 0) + struct.pack("=IIIIHH", 1, 1, 0, ack, 40, 0) + body


def fork(pid: int, tid: int | None = None, parent: int = 1) -> bytes:
    return event(cn.FORK, parent, parent, pid if tid is None else tid, pid, when=0)


def execute(pid: int) -> bytes:
    return event(cn.EXEC, pid, pid, when=0)


def dump(pid: int, tid: int) -> bytes:
    return event(cn.COREDUMP, tid, pid, 1, 1, when=0)


def leave(pid: int, tid: int | None = None, parent: int = 1, status: int = 0) -> bytes:
    return event(cn.EXIT, pid if tid is None else tid, pid, status, 17, parent, parent, when=0)


def test_the_size_of_an_event() -> None:
    assert len(fork(2)) == cn.SIZE


def test_the_filter_keeps_what_is_asked_for() -> None:
    """The kernel's own interpreter decides, on a socket that anybody may have."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    program = cn.Filter()
    receiver.setsockopt(socket.SOL_SOCKET, cn.SO_ATTACH_FILTER, program.option)
    receiver.setblocking(False)
    kept = [fork(2), fork(2, 3), execute(2), dump(2, 3), leave(2), leave(2, status=9), event(cn.NONE, 0, ack=5)]
    kept += [leave(2, 3, status=number | dumped) for number in CRASHES for dumped in (0, 0x80)]
    dropped = [leave(2, 3, status=number) for number in range(0x7F) if number not in CRASHES]
    dropped += [leave(2, 3, status=number << 8) for number in CRASHES]
    dropped += [event(COMM, 2, 2), event(0x4, 2, 2), event(0x80, 2, 2)]
    for message in [*kept, *dropped]:
        sender.send(message)
    received = []
    while True:
        try:
            received.append(receiver.recv(1024))
        except BlockingIOError:
            break
    assert received == kept
    sender.close()
    receiver.close()


class Kernel:
    """The other end of the source's socket: answers requests as told, and sends events."""

    def __init__(self, top: Path, code: int | None = 0, processes: int = 100) -> None:
        self.end, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.end.setblocking(False)
        other.setblocking(False)
        self.number = other.fileno()
        self.code = code
        self.requests: list[tuple[int, ...]] = []
        self.hints: list[Hint] = []
        self.more = asyncio.Event()
        self.stat = top / "proc/stat"
        self.stat.parent.mkdir(exist_ok=True)
        self.count(processes)
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.end, self._asked)
        self.source = ConnectorSource(Root(top), self.loop, self._deliver, opener=lambda: other, check_seconds=0.05)

    def count(self, processes: int) -> None:
        self.stat.write_text(f"cpu 1\nintr 7\nctxt 9\nbtime 1\nprocesses {processes}\nprocs_running 1\n")

    def _deliver(self, hints: Sequence[Hint]) -> None:
        self.hints.extend(hints)
        self.more.set()

    def _asked(self) -> None:
        message = self.end.recv(256)
        body = struct.unpack_from(f"={(len(message) - 36) // 4}I", message, 36)
        number = struct.unpack_from("=I", message, 28)[0]
        self.requests.append(body)
        if body == (cn.LISTEN,) and self.code is not None:
            # Somebody else's answer comes first: it must not be taken for ours.
            self.end.send(event(cn.NONE, 13, ack=number + 7))
            self.end.send(event(cn.NONE, self.code, ack=number + 1))

    async def until(self, hint: Hint) -> None:
        async with asyncio.timeout(DEADLINE):
            while hint not in self.hints:
                self.more.clear()
                await self.more.wait()

    def close(self) -> None:
        self.source.close()
        self.loop.remove_reader(self.end)
        self.end.close()


async def started(top: Path) -> Kernel:
    kernel = Kernel(top)
    await kernel.source.start()
    assert kernel.source.up
    assert kernel.source.note == ""
    return kernel


def test_subscribing_waits_for_the_answer_and_then_narrows(tmp_path: Path) -> None:
    async def main() -> None:
        kernel = await started(tmp_path)
        kernel.end.send(fork(2))
        await kernel.until(TaskHint(2, 2, "fork", 1))
        assert kernel.requests == [(cn.LISTEN,), (cn.LISTEN, cn.FORK | cn.EXEC | cn.COREDUMP | cn.EXIT)]
        kernel.close()

    asyncio.run(main())


def test_a_refusal_is_noted(tmp_path: Path) -> None:
    async def main() -> None:
        kernel = Kernel(tmp_path, code=1)
        await kernel.source.start()
        assert not kernel.source.up
        assert kernel.source.note == "the kernel refused: Operation not permitted"
        kernel.close()

    asyncio.run(main())


def test_no_answer_is_noted(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("pid", "user"):
            (tmp_path / "proc/self/ns").mkdir(parents=True, exist_ok=True)
            (tmp_path / "proc/self/ns" / name).touch()
        kernel = Kernel(tmp_path, code=None)
        await kernel.source.start()
        assert not kernel.source.up
        assert "child pid or user namespace" in kernel.source.note
        kernel.close()

    asyncio.run(main())


def test_an_opener_that_fails_is_noted(tmp_path: Path) -> None:
    def opener() -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    async def main() -> None:
        source = ConnectorSource(Root(tmp_path), asyncio.get_running_loop(), print, opener=opener)
        await source.start()
        assert not source.up
        assert "Operation not permitted" in source.note
        source.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("messages", "hints"),
    [
        ([fork(2), execute(2)], [TaskHint(2, 2, "fork", 1), TaskHint(2, 2, "exec", 0)]),
        ([fork(2), execute(2), leave(2)], []),
        ([execute(2), leave(2)], [TaskHint(2, 2, "exit", 1)]),
        ([leave(2, status=0x8B)], [CrashHint(2, 11, True), TaskHint(2, 2, "exit", 1)]),
        ([dump(2, 3)], [DumpHint(2)]),
        ([dump(2, 3), leave(2, 3, status=0x8B)], [DumpHint(2), CrashHint(2, 11, True)]),
        ([leave(2, 3, status=7), leave(2, 4, status=7)], [CrashHint(2, 7, False)]),
        ([leave(2, status=9)], [TaskHint(2, 2, "exit", 1)]),
        ([leave(2), fork(2)], [TaskHint(2, 2, "exit", 1), TaskHint(2, 2, "fork", 1)]),
        ([leave(2), fork(2), leave(2)], [TaskHint(2, 2, "exit", 1)]),
        ([fork(2), leave(2), fork(2)], [TaskHint(2, 2, "fork", 1)]),
        ([fork(2, 3), leave(2, 3), event(COMM, 2, 2)], []),
        ([b"", b"\xff" * 20, fork(4)], [TaskHint(4, 4, "fork", 1)]),
    ],
)
def test_a_batch_says_what_is_left_to_look_at(messages: list[bytes], hints: list[Hint], tmp_path: Path) -> None:
    async def main() -> None:
        kernel = await started(tmp_path)
        for message in [*messages, execute(99)]:
            kernel.end.send(message)
        # What the kernel counts stays as it is: events that it does not know of are no loss.
        await kernel.until(TaskHint(99, 99, "exec", 0))
        assert kernel.hints == [*hints, TaskHint(99, 99, "exec", 0)]
        kernel.close()

    asyncio.run(main())


@pytest.mark.parametrize("number", range(1, 65))
def test_which_signals_are_crashes(number: int, tmp_path: Path) -> None:
    async def main() -> None:
        kernel = await started(tmp_path)
        for dumped in (0, 0x80):
            kernel.end.send(leave(2 + dumped, status=number | dumped))
        kernel.end.send(execute(99))
        await kernel.until(TaskHint(99, 99, "exec", 0))
        crashes = [hint for hint in kernel.hints if isinstance(hint, CrashHint)]
        told = [CrashHint(2, number, False), CrashHint(2 + 0x80, number, True)]
        assert crashes == (told if number in CRASHES else [])
        kernel.close()

    asyncio.run(main())


def test_a_young_fork_waits_and_keeps_its_place(tmp_path: Path) -> None:
    """It is delivered only when it is a millisecond old, and nothing overtakes it."""

    async def main() -> None:
        kernel = await started(tmp_path)
        soon = time.monotonic_ns() + 100_000_000
        kernel.end.send(leave(5))
        kernel.end.send(event(cn.FORK, 1, 1, 6, 6, when=soon))
        kernel.end.send(execute(6))
        await kernel.until(TaskHint(6, 6, "exec", 0))
        assert time.monotonic_ns() >= soon + 1_000_000
        assert [hint.why for hint in kernel.hints if isinstance(hint, TaskHint)] == ["exit", "fork", "exec"]
        kernel.close()

    asyncio.run(main())


def test_forks_that_were_not_seen_are_a_loss(tmp_path: Path) -> None:
    async def main() -> None:
        kernel = await started(tmp_path)
        kernel.count(101)
        await kernel.until(LostHint("proc-connector"))
        # Asked again before what was lost is looked for.
        assert kernel.requests.count((cn.LISTEN,)) == 2
        assert kernel.source.losses == 1
        # And from there on the two agree again, events that were seen included.
        kernel.hints.clear()
        kernel.end.send(fork(2))
        kernel.end.send(fork(2, 3))
        kernel.count(103)
        await kernel.until(TaskHint(2, 2, "fork", 1))
        kernel.count(104)
        await kernel.until(LostHint("proc-connector"))
        assert kernel.source.losses == 2
        kernel.close()

    asyncio.run(main())


def test_a_descriptor_that_is_lost_is_noted(tmp_path: Path) -> None:
    async def main() -> None:
        kernel = await started(tmp_path)
        # Anything but a socket: the next receive fails with ENOTSOCK.
        number = kernel.number
        null = os.open("/dev/null", os.O_RDONLY)
        kernel.end.send(fork(2))
        kernel.loop.call_later(0.005, os.dup2, null, number)
        await kernel.until(LostHint("proc-connector"))
        assert not kernel.source.up
        assert "receiving" in kernel.source.note
        os.close(null)
        kernel.close()

    asyncio.run(main())

"""The proc connector of this machine's kernel: forks, execs, exits, and what silences it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hetmemd.kernel import connector as cn
from hetmemd.kernel import procfs
from hetmemd.watch.connector import ConnectorSource, open_socket
from hetmemd.watch.hint import CrashHint, DumpHint, Hint, LostHint, TaskHint
from tests.machine.eyes.harness import DEADLINE, IDLE, ROOT, OwnCgroup, Seen, build, move, number, running

pytestmark = pytest.mark.root


@asynccontextmanager
async def listening(seen: Seen, buffer: int = 1 << 22, check_seconds: float = 1000) -> AsyncIterator[ConnectorSource]:
    source = ConnectorSource(
        ROOT,
        asyncio.get_running_loop(),
        seen.deliver,
        opener=lambda: open_socket(buffer),
        check_seconds=check_seconds,
    )
    await source.start()
    assert source.up, source.note
    yield source
    source.close()


def hints_of(pid: int, hints: list[Hint]) -> list[str]:
    return [hint.why for hint in hints if isinstance(hint, TaskHint) and hint.pid == pid]


def test_the_life_of_a_child() -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen):
            with running(*IDLE) as process:
                number(process)
                await seen.until(lambda hints: hints_of(process.pid, hints) == ["fork", "exec"])
                assert TaskHint(process.pid, process.pid, "fork", os.getpid()) in seen.hints
            await seen.hint(TaskHint(process.pid, process.pid, "exit", os.getpid()))

    asyncio.run(main())


def test_who_crashes_is_told_before_its_core_is_dumped_and_after_it() -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen):
            with running(sys.executable, "-c", "import ctypes; print(1, flush=True); ctypes.string_at(0)") as process:
                number(process)
                process.wait()
            await seen.until(
                lambda hints: any(isinstance(hint, CrashHint) and hint.pid == process.pid for hint in hints)
            )
            mine = [hint for hint in seen.hints if isinstance(hint, (DumpHint, CrashHint)) and hint.pid == process.pid]
            assert mine[0] == DumpHint(process.pid)
            assert [(type(hint), getattr(hint, "signal", 0)) for hint in mine[1:]] == [(CrashHint, 11)]

    asyncio.run(main())


def test_a_child_made_in_another_populated_cgroup_is_found(own: OwnCgroup, tmp_path: Path) -> None:
    """Neither a write nor a change of `populated` tells of it: the fork does, and its cgroup is right by then."""

    async def main() -> None:
        seen = Seen()
        with running(*IDLE) as first:
            number(first)
            move(first.pid, own.path)
            async with listening(seen):
                with running(build("into", tmp_path), own.directory) as process:
                    pid = number(process)
                    await seen.hint(TaskHint(pid, pid, "fork", process.pid))
                    assert procfs.cgroup_path(ROOT, pid) == own.path

    asyncio.run(main())


def test_a_forked_child_is_in_its_cgroup_when_hinted(own: OwnCgroup, tmp_path: Path) -> None:
    """The kernel sends the fork before the child is in its cgroup, which may be the root's for a moment."""

    async def main() -> None:
        seen = Seen()
        places: set[str | None] = set()
        forked: set[int] = set()

        def look(hints: object) -> None:
            seen.deliver(hints)  # type: ignore[arg-type]
            for hint in seen.hints:
                if isinstance(hint, TaskHint) and hint.why == "fork" and hint.parent == process.pid:
                    forked.add(hint.pid)
                    places.add(procfs.cgroup_path(ROOT, hint.pid))
            seen.hints.clear()

        enter = f'echo $$ > {own.directory}/cgroup.procs; exec "$@"'
        source = ConnectorSource(ROOT, asyncio.get_running_loop(), look)
        (own.directory / "below").mkdir()
        with running("sh", "-c", enter, "sh", build("crowd", tmp_path), "1000") as process:
            await source.start()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            await seen.until(lambda _: len(forked) == 1000)
            assert places == {own.path}
        source.close()

    asyncio.run(main())


def test_threads_are_not_told(tmp_path: Path) -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen) as source:
            forks = source.forks
            with running(build("kin", tmp_path), "threads") as process:
                tid = number(process)
                with running(*IDLE) as after:
                    await seen.hint(TaskHint(after.pid, after.pid, "fork", os.getpid()))
            # Counted nevertheless: the kernel's own number, with which it is compared, has them too.
            assert source.forks >= forks + 3
            assert not [hint for hint in seen.hints if isinstance(hint, TaskHint) and tid in (hint.pid, hint.tid)]

    asyncio.run(main())


def test_an_overflow_is_told_and_does_not_end_it(tmp_path: Path) -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen, buffer=8192) as source:
            # The loop does not run meanwhile.
            subprocess.run([build("storm", tmp_path), "500"], check=True)
            await seen.hint(LostHint(source.name))
            assert source.losses
            assert source.up
            with running(*IDLE) as process:
                await seen.hint(TaskHint(process.pid, process.pid, "fork", os.getpid()))

    asyncio.run(main())


def test_a_storm_of_forks_is_received_without_loss(tmp_path: Path) -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen, buffer=32 << 20, check_seconds=0.2) as source:
            forks = source.forks
            process = await asyncio.create_subprocess_exec(build("storm", tmp_path), "5000")
            assert await process.wait() == 0
            await seen.hint(TaskHint(process.pid, process.pid, "exit", os.getpid()))
            assert source.forks >= forks + 5000
            assert not source.losses
            # What came and went between two looks is nobody's business.
            children = [hint for hint in seen.hints if isinstance(hint, TaskHint) and hint.parent == process.pid]
            assert len(children) < 5000

    asyncio.run(main())


def answers() -> bool:
    """Whether the kernel counts a listener besides this one: it acknowledges only then. Undone before it returns."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, cn.NETLINK_CONNECTOR) as one:
        one.setsockopt(socket.SOL_SOCKET, cn.SO_RCVBUFFORCE, 1 << 20)
        one.bind((0, cn.CN_IDX_PROC))
        one.setblocking(False)
        one.send(cn.request(cn.LISTEN, 2))
        one.send(cn.request(cn.IGNORE, 2))
        try:
            return bool(one.recv(128))
        except BlockingIOError:
            return False


def silence() -> None:
    """Send IGNOREs, as anybody may, until nobody is told anything.

    Since 6.6 a socket's IGNORE counts once after something else, which may be a request that makes no sense.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, cn.NETLINK_CONNECTOR) as one:
        one.bind((0, cn.CN_IDX_PROC))
        # As many as there ever were listeners that ended without an IGNORE: the kernel still counts them.
        for _ in range(100_000):
            one.send(cn.request(3, 1))
            one.send(cn.request(cn.IGNORE, 1))
            if not answers():
                return
    raise AssertionError("the connector cannot be silenced")


def test_a_silenced_listener_notices_and_is_heard_again() -> None:
    async def main() -> None:
        seen = Seen()
        async with listening(seen, check_seconds=0.2) as source:
            silence()
            with running(*IDLE) as process:
                number(process)
                await seen.hint(LostHint(source.name))
                assert not hints_of(process.pid, seen.hints)
            with running(*IDLE) as process:
                await seen.hint(TaskHint(process.pid, process.pid, "fork", os.getpid()))
            assert source.note == ""

    asyncio.run(main())


NOTE = """
import asyncio
from hetmemd.kernel.root import Root
from hetmemd.watch.connector import ConnectorSource
async def main():
    source = ConnectorSource(Root(), asyncio.get_running_loop(), print)
    await source.start()
    print(source.up, source.note)
    source.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        (["unshare", "--pid", "--fork", "--mount-proc"], "child pid or user namespace"),
        (["unshare", "--user", "--map-root-user"], "child pid or user namespace"),
        (["unshare", "--net"], "private network namespace"),
    ],
)
def test_where_it_cannot_work_it_says_so(wrapper: list[str], words: str) -> None:
    command = [*wrapper, sys.executable, "-c", NOTE]
    checkout = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE, cwd=checkout)
    assert result.stdout.startswith("False ")
    assert words in result.stdout


def test_closing_leaves_no_descriptor() -> None:
    async def main() -> None:
        async with listening(Seen()) as source:
            pass
        assert not source.up
        before = set(Path("/proc/self/fd").iterdir())
        async with listening(Seen()):
            assert len(set(Path("/proc/self/fd").iterdir())) == len(before) + 1
        assert set(Path("/proc/self/fd").iterdir()) == before

    asyncio.run(main())

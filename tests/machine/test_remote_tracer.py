"""The tracer process: what it is made of, how it is started, stopped, killed and replaced, and whom it serves when."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hetmemd.kernel import libc, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy
from hetmemd.remote import client, process, wire
from hetmemd.remote.act import AT_ONCE, Done, Laid
from hetmemd.remote.board import Board
from hetmemd.remote.client import Tracer
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import gone
from hetmemd.remote.wire import Request
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, HANG, INTERLEAVE, ROOT, Acting, Target, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def reading(built: Built) -> Iterator[Target]:
    """A process that blocks in a read."""
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        yield target


def test_it_is_small_and_alone(acting: Acting, reading: Target) -> None:
    acting.one(reading, INTERLEAVE)
    assert acting.tracer.pid
    status = procfs.status(ROOT, acting.tracer.pid)
    assert status["Threads"] == "1"
    mapped = ROOT.read_text(f"/proc/{acting.tracer.pid}/maps")
    assert "numpy" not in mapped
    assert "site-packages" not in mapped
    children = ROOT.read_bytes(f"/proc/{acting.tracer.pid}/task/{acting.tracer.pid}/children")
    assert children == b""


def test_what_it_imports() -> None:
    """Every import is a part of the tracer's start, and of what may go wrong while a thread is held."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import hetmemd.remote.process; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, CHECKOUT], capture_output=True, text=True, check=True
    )
    imported = {name.split(".")[0] for name in told.stdout.split()}
    assert not imported & {
        "numpy",
        "asyncio",
        "pickle",
        "threading",
        "multiprocessing",
        "subprocess",
        "pyroute2",
        "site",
    }
    ours = {name for name in told.stdout.split() if name.startswith("hetmemd.")}
    assert {name.split(".")[1] for name in ours} == {"kernel", "remote"}


def test_it_works_from_a_private_directory(tmp_path: Path, reading: Target) -> None:
    """The package need not be installed where the interpreter looks, nor may another one of its name be taken."""
    private, decoy = tmp_path / "private", tmp_path / "decoy"
    shutil.copytree(CHECKOUT / "hetmemd", private / "hetmemd", ignore=shutil.ignore_patterns("__pycache__"))
    (decoy / "hetmemd").mkdir(parents=True)
    (decoy / "hetmemd" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import asyncio\n"
        "from hetmemd.kernel import procfs\n"
        "from hetmemd.kernel.mempolicy import *\n"
        "from hetmemd.kernel.root import Root\n"
        "from hetmemd.remote.client import Tracer\n"
        "async def main():\n"
        "    tracer = Tracer(Root())\n"
        "    policy = Mempolicy(Mode.INTERLEAVE, frozenset({0}), Flag.STATIC_NODES)\n"
        "    for result in await tracer.apply(procfs.identify(Root(), int(sys.argv[2])), policy):\n"
        "        print(result.outcome, result.after)\n"
        "    tracer.close()\n"
        "asyncio.run(main())\n"
    )
    told = subprocess.run(
        [sys.executable, "-S", "-c", script, private, str(reading.pid)],
        env={"PYTHONPATH": str(decoy)},
        cwd=decoy,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "applied interleave=static:0\n", told.stderr


def test_one_that_overstays_is_killed_and_replaced(built: Built) -> None:
    with Acting(limit_seconds=0.5) as acting, Target([built("family"), "threads", "40"]) as target:
        target.expect("ready")
        acting.one(target, INTERLEAVE)
        first = acting.tracer.pid
        assert first
        # As if it hung in the kernel, where it only looks: nobody was held, and all are served in the end.
        os.kill(first, signal.SIGSTOP)
        results = acting.apply(target, BIND)
        assert {result.outcome for result in results} == {Outcome.APPLIED}
        assert len(results) == 40
        assert acting.tracer.restarts == 1
        assert acting.tracer.pid != first
        assert not ROOT.path(f"/proc/{first}").exists()
        assert target.finish() == "disturbed 0\n"


@pytest.mark.parametrize("step", [7, 17, 28])
def test_a_thread_that_is_held_too_long_is_freed_and_the_rest_goes_on(built: Built, step: int) -> None:
    with Acting() as acting, Target([built("family"), "threads", "5"]) as target:
        target.expect("ready")
        tracer = dying_tracer.make(step, signal.SIGSTOP, limit_seconds=0.3)
        with contextlib.closing(tracer):
            results = acting.with_tracer(tracer).apply(target, BIND)
            # Each is held by a tracer of its own that hangs.
            assert {(result.outcome, result.reason) for result in results} == {(Outcome.DEFERRED, "timeout")}
            assert len(results) == 5
            assert tracer.restarts >= 4
        assert {result.outcome for result in acting.apply(target, INTERLEAVE)} == {Outcome.APPLIED}
        assert target.finish() == "disturbed 0\n"


def test_one_that_died_is_replaced(acting: Acting, reading: Target) -> None:
    acting.one(reading, INTERLEAVE)
    assert acting.tracer.pid
    os.kill(acting.tracer.pid, signal.SIGKILL)
    wait_until(lambda: procfs.stat(ROOT, acting.tracer.pid or 0).state == "Z")
    assert acting.one(reading, BIND).outcome is Outcome.APPLIED
    assert acting.tracer.restarts == 1


def test_one_that_cannot_live_is_not_started_for_every_thread(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BOOTSTRAP", "raise SystemExit(1)")
    with Acting() as acting, Target([built("family"), "threads", "40"]) as target:
        target.expect("ready")
        results = acting.apply(target, INTERLEAVE)
        assert {(result.outcome, result.reason) for result in results} == {(Outcome.DEFERRED, "tracer-died")}
        assert len(results) == 40
        assert acting.tracer.restarts < 5
        assert target.policy() == DEFAULT


def test_it_does_not_outlive_the_daemon() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.machine.remote_target import *\n"
        "acting = Acting()\n"
        "acting.apply(procfs.identify(ROOT, 2), INTERLEAVE)\n"
        "print(acting.tracer.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with Target([sys.executable, "-c", script, CHECKOUT]) as daemon:
        tracer = procfs.identify(ROOT, int(daemon.line()))
        handle = os.pidfd_open(tracer.pid)
        try:
            os.kill(daemon.pid, signal.SIGKILL)
            import select

            assert select.select([handle], [], [], HANG)[0], "still there"
        finally:
            os.close(handle)


def test_it_ignores_what_stops_the_daemon(acting: Acting, reading: Target) -> None:
    """systemd sends SIGTERM to every process of a service; policies may have to be given back after that. A terminal
    sends its signals to all that a command has started."""
    acting.one(reading, INTERLEAVE)
    assert acting.tracer.pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        os.kill(acting.tracer.pid, number)
    assert acting.one(reading, BIND).outcome is Outcome.APPLIED
    assert acting.tracer.restarts == 0


def test_a_cancelled_caller_leaves_no_answers_behind(built: Built) -> None:
    async def scenario(large: Target, small: Target) -> None:
        tracer = Tracer(ROOT, limit_seconds=20.0)
        with contextlib.closing(tracer):
            await tracer.apply(small.identity, INTERLEAVE)
            task = asyncio.create_task(tracer.apply(large.identity, INTERLEAVE))
            while large.policy() == DEFAULT:
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            (result,) = await tracer.apply(small.identity, BIND)
            assert (result.tid, result.outcome, result.after) == (small.pid, Outcome.APPLIED, BIND)

    with Target([built("family"), "threads", "300"]) as large, Target([built("family"), "read"]) as small:
        large.expect("ready")
        small.expect("ready")
        asyncio.run(scenario(large, small))
        assert large.finish() == "disturbed 0\n"
        assert small.finish() == "alive\n"


def test_a_small_process_does_not_wait_for_a_large_one(built: Built) -> None:
    async def scenario(large: Target, small: Target) -> None:
        tracer = Tracer(ROOT, limit_seconds=20.0)
        with contextlib.closing(tracer):
            first = asyncio.create_task(tracer.apply(large.identity, INTERLEAVE))
            second = asyncio.create_task(tracer.apply(small.identity, INTERLEAVE))
            done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            assert done == {second}
            assert {result.outcome for result in await first} == {Outcome.APPLIED}

    with Target([built("family"), "threads", "400"]) as large, Target([built("family"), "read"]) as small:
        large.expect("ready")
        small.expect("ready")
        asyncio.run(scenario(large, small))


class Serving:
    """The tracer's work, in this process: on a program of many threads."""

    def __init__(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "LONGEST_TURN", HANG)
        memory = Board.create()
        self.board = Board(memory)
        os.close(memory)
        self.tracer = process.Tracer(ROOT, 0)
        self._target = target
        self.tids = procfs.tids(ROOT, target.pid)
        self.looks: list[list[int]] = []
        """Which threads were looked at together, before an act."""
        read, act = self.tracer.looks.read, self.tracer.actor.act

        def look(directory: int, names: Sequence[bytes]) -> list[bytes | int]:
            self.looks.append([int(name.split(b"/")[1]) for name in names[::3]])
            return read(directory, names)

        def acted(laid: Laid) -> Done:
            assert laid.target.living == laid.tid, "what is opened anew is opened by a thread that lives"
            return act(laid)

        monkeypatch.setattr(self.tracer.looks, "read", look)
        monkeypatch.setattr(self.tracer.actor, "act", acted)

    def serve(self, policy: Mempolicy) -> list[int]:
        """Which threads had their turn."""
        call, data = wire.set_mempolicy(policy)
        self.board.clear()
        self.looks.clear()
        self.tracer.serve(Request(self._target.identity, tuple(self.tids), (call,), data, policy), self.board)
        results = self.board.read()[0]
        assert {result.outcome for result in results} == {Outcome.APPLIED}
        return [result.tid for result in results]


@pytest.fixture
def serving(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(process, "_FRESH", HANG)
    with Target([built("family"), "threads", "20"]) as target:
        target.expect("ready")
        serving = Serving(target, monkeypatch)
        with contextlib.closing(serving.board):
            yield serving


def test_a_turn_is_short_where_others_wait(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody else there, the tracer goes on with the same process."""
    monkeypatch.setattr(process, "TURN", 0.0)
    for others, served in ((True, 1), (False, len(serving.tids))):
        serving.board.say_others_wait(others)
        assert serving.serve(BIND) == serving.tids[:served]


def test_threads_are_looked_at_together_before_they_are_acted_on(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_QUICK", 60.0)  # however busy the machine is
    assert serving.serve(BIND) == serving.tids
    first, *rest = serving.tids
    assert serving.looks == [[first], *(rest[at : at + AT_ONCE] for at in range(0, len(rest), AT_ONCE))]


@pytest.mark.parametrize("why", ["slow to look at", "a filter would kill"])
def test_threads_are_looked_at_one_by_one(serving: Serving, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "slow to look at":
        monkeypatch.setattr(process, "_QUICK", 0.0)
    else:
        serving.tracer.suspends_seccomp = False
    assert serving.serve(BIND) == serving.tids
    assert serving.looks == [[tid] for tid in serving.tids]
    assert serving.serve(BIND) == serving.tids, "and where nothing is to be done"


def test_what_was_seen_some_time_ago_is_looked_at_again(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_FRESH", 0.0)
    assert serving.serve(BIND) == serving.tids
    assert {tid for look in serving.looks if len(look) == 1 for tid in look} == set(serving.tids)


def test_a_thread_that_ends_while_it_is_compared_ends_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.serve(BIND)
    compared = {serving.tids[0]}
    really = process._Work._is

    def is_(work: process._Work, shown: Mempolicy, tid: int) -> bool:
        if tid not in compared:
            compared.add(tid)
            raise gone()
        return really(work, shown, tid)

    monkeypatch.setattr(process._Work, "_is", is_)
    assert sorted(serving.serve(BIND)) == serving.tids
    assert serving.looks == [[tid] for tid in serving.tids[:2]], "a closer look"


def test_the_tracer_is_told_that_others_wait(built: Built) -> None:
    async def scenario(large: Target, small: Target) -> None:
        tracer = Tracer(ROOT, limit_seconds=20.0)
        with contextlib.closing(tracer):
            first = asyncio.create_task(tracer.apply(large.identity, INTERLEAVE))
            while large.policy() == DEFAULT:
                await asyncio.sleep(0)
            board = tracer._board
            assert board
            assert not board.others_wait()
            second = asyncio.create_task(tracer.apply(small.identity, INTERLEAVE))
            await asyncio.sleep(0)
            assert board.others_wait()
            await asyncio.gather(first, second)
            await tracer.apply(small.identity, BIND)
            assert not board.others_wait()

    with Target([built("family"), "threads", "400"]) as large, Target([built("family"), "read"]) as small:
        large.expect("ready")
        small.expect("ready")
        asyncio.run(scenario(large, small))


def test_another_architecture_is_said_and_nothing_is_done(
    acting: Acting, reading: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libc, "SUPPORTED", False)
    result = acting.one(reading, INTERLEAVE)
    assert (result.outcome, result.reason) == (Outcome.UNSTEERABLE, "architecture")
    assert acting.tracer.pid is None
    assert reading.policy() == DEFAULT


def test_two_tracers_take_turns(reading: Target) -> None:
    """Of two daemons, or of a command beside one: both would write into the same padding."""

    async def often(tracer: Tracer) -> set[tuple[Outcome, str]]:
        with contextlib.closing(tracer):
            said = set()
            for number in range(300):
                for result in await tracer.apply(reading.identity, (BIND, INTERLEAVE)[number % 2]):
                    said.add((result.outcome, result.reason))
            return said

    async def both() -> list[set[tuple[Outcome, str]]]:
        return await asyncio.gather(*(often(Tracer(ROOT, limit_seconds=20.0)) for _ in range(2)))

    assert asyncio.run(both()) == [{(Outcome.APPLIED, "")}] * 2
    assert reading.finish() == "alive\n"


def test_a_process_that_another_tracer_acts_on(acting: Acting, reading: Target) -> None:
    other = os.open(f"/proc/{reading.pid}/syscall", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    result = acting.one(reading, INTERLEAVE)
    assert (result.outcome, result.reason) == (Outcome.DEFERRED, "traced")
    os.close(other)
    assert acting.one(reading, INTERLEAVE).outcome is Outcome.APPLIED

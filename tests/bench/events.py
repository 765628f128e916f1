"""What watching costs: the proc connector against a plain C reader of the same socket, and how soon a hint comes.

    .venv/bin/python -m tests.bench.events [FORKS] [--check]

Needs root. Takes a few seconds; on a busy machine the figures are those of a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from hetmemd.kernel.root import Root
from hetmemd.watch.connector import ConnectorSource
from hetmemd.watch.hint import CgroupHint, Hint, TaskHint
from hetmemd.watch.watcher import Watcher
from tests.bench.figures import Figures
from tests.machine.eyes.harness import IDLE, OwnCgroup, Seen, build, move, number, running

FORKS = 20_000
MOVES = 200


def compile_reader(folder: Path) -> Path:
    program = folder / "reader"
    subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("reader.c")], check=True)
    return program


async def measure_connector(program: Path, forks: int, figures: Figures) -> float:
    """Microseconds of processor time for an event."""
    hints = 0
    left: set[int] = set()
    over = asyncio.Event()

    def deliver(batch: Sequence[Hint]) -> None:
        nonlocal hints
        hints += len(batch)
        left.difference_update(hint.pid for hint in batch if isinstance(hint, TaskHint) and hint.why == "exit")
        if not left:
            over.set()

    source = ConnectorSource(Root(), asyncio.get_running_loop(), deliver)
    await source.start()
    if not source.up:
        raise SystemExit(f"the proc connector is down: {source.note}")
    events, losses = source.events, source.losses
    begin = time.perf_counter()
    storms = [subprocess.Popen([program, str(forks // 2)]) for _ in range(2)]
    left.update(each.pid for each in storms)
    used = time.process_time()
    await over.wait()
    used = time.process_time() - used
    seconds = time.perf_counter() - begin
    assert [each.wait() for each in storms] == [0, 0]
    events, losses = source.events - events, source.losses - losses
    source.close()
    each = used / events * 1e6
    print(f"connector: {events} events in {seconds:.2f} s = {events / seconds:.0f}/s, {losses} losses")
    print(f"connector: {each:.2f} us an event, {used / seconds:.1%} of a processor at {forks / seconds:.0f} forks/s")
    print(f"connector: {hints} hints, {hints / events:.1%} of the events")
    figures.held("processor at 1000 forks/s / 1.2 %", used / forks * 1000 / 0.012)
    return each


def measure_reader(reader: Path, program: Path, forks: int) -> float:
    with subprocess.Popen([reader], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begin = time.perf_counter()
        storms = [subprocess.Popen([program, str(forks // 2)]) for _ in range(2)]
        assert [each.wait() for each in storms] == [0, 0]
        seconds = time.perf_counter() - begin
        out, _ = process.communicate()
    events, losses, used = map(int, out.split())
    print(f"C reader:  {events} events in {seconds:.2f} s = {events / seconds:.0f}/s, {losses} losses")
    print(f"C reader:  {used / events:.2f} us an event")
    return used / events


async def measure_hints(own: OwnCgroup, figures: Figures) -> None:
    """From the moment at which a move or a fork is done to its hint."""
    paths = [own.make("a"), own.make("b")]
    seen = Seen()
    came: dict[Hint, float] = {}

    def deliver(hints: Sequence[Hint]) -> None:
        now = time.perf_counter()
        for hint in hints:
            came.setdefault(hint, now)
        seen.deliver(hints)

    watcher = Watcher(Root(), asyncio.get_running_loop(), deliver)
    await watcher.start()
    moves, forks = [], []
    with running(*IDLE) as process:
        number(process)
        for index in range(MOVES):
            wanted = CgroupHint(paths[index % 2])
            came.clear()
            seen.hints.clear()
            move(process.pid, wanted.path)
            done = time.perf_counter()
            await seen.hint(wanted)
            moves.append(came[wanted] - done)
    for _ in range(MOVES // 4):
        with running("cat") as process:
            done = time.perf_counter()
            wanted_fork = TaskHint(process.pid, process.pid, "fork", os.getpid())
            await seen.hint(wanted_fork)
            forks.append(came[wanted_fork] - done)
    watcher.close()
    figures.held("cgroup move to hint, p99 / 100 ms", say("cgroup move to hint", moves) / 0.1)
    say("fork to hint", forks)


def say(what: str, seconds: list[float]) -> float:
    """The p99."""
    ordered = sorted(seconds)
    tail = ordered[int(len(ordered) * 0.99)]
    print(f"{what}: median {statistics.median(ordered) * 1e3:.2f} ms, p99 {tail * 1e3:.2f} ms, {len(ordered)} times")
    return tail


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("forks", type=int, nargs="?", default=FORKS)
    figures = Figures(parser)
    forks = figures.options().forks
    with tempfile.TemporaryDirectory() as folder:
        program, reader = build("storm", Path(folder)), compile_reader(Path(folder))
        plain = measure_reader(reader, program, forks)
        ours = asyncio.run(measure_connector(program, forks, figures))
    figures.held("processor time / C reader", ours / plain)
    own = OwnCgroup(f"hetmemd-bench-{uuid.uuid4().hex}")
    try:
        asyncio.run(measure_hints(own, figures))
    finally:
        own.remove()
    figures.end()


if __name__ == "__main__":
    main()

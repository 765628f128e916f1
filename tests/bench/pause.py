"""How long a thread is held, and how long a process with many threads takes: hetmemd against the same steps in C.

    .venv/bin/python -m tests.bench.pause [--threads N] [--repeat N] [--spins N] [--check]

Both act on the same targets in turn, so that what the machine does beside is the same for both. Prints ratios, to C as
fast as it goes, and to C at our own pace: how fast a thread wakes depends on how long its processor has slept.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.remote.client import Tracer
from hetmemd.remote.result import Outcome
from tests.bench.figures import Figures
from tests.machine.remote_target import INTERLEAVE, ROOT, Target, build

HELD = {
    ("blocked", "median"): "blocked thread, pause, median / C",
    ("blocked", "p99"): "blocked thread, pause, p99 / C",
    ("spinning", "median"): "spinning thread, pause, median / C",
    ("spinning", "p99"): "spinning thread, pause, p99 / C",
}


def in_c(program: Path, pid: int, mode: int, pace: int = 0) -> tuple[list[int], int]:
    """(pause of each thread, all of it), in nanoseconds; `pace` passes from act to act at least."""
    # As the tracer runs: whoever waits for a processor holds the thread for longer.
    command = ["nice", "-n", "-10", str(program), str(pid), str(mode), str(pace)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [int(word) for word in told[:-2]], int(told[-1])


async def by_hetmemd(tracer: Tracer, target: Target, policy: Mempolicy) -> tuple[list[int], int]:
    """The same, with everything that the daemon's end does, the second look for new threads among it."""
    begin = time.perf_counter_ns()
    results = await tracer.apply(target.identity, policy)
    total = time.perf_counter_ns() - begin
    for result in results:
        if result.outcome is not Outcome.APPLIED:
            raise SystemExit(f"not applied: {result}")
    return [result.pause_ns for result in results], total


async def verify(tracer: Tracer, target: Target) -> int:
    """Nanoseconds per thread of a process in which nothing has to be done."""
    begin = time.perf_counter_ns()
    results = await tracer.apply(target.identity, DEFAULT)
    took = time.perf_counter_ns() - begin
    assert not any(result.pause_ns for result in results)
    return took // len(results)


def percentile(values: Sequence[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def pauses(runs: Sequence[tuple[list[int], int]]) -> list[int]:
    return [pause for pauses, _ in runs for pause in pauses]


def report(what: str, ours: int, theirs: int) -> float:
    print(f"{what:32} {ours / 1000:10.1f} us   C {theirs / 1000:10.1f} us   {ours / theirs:.2f}")
    return ours / theirs


async def measure(folder: Path, threads: int, repeat: int, spins: int, figures: Figures) -> None:
    program = folder / "pause"
    subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("pause.c")], check=True)
    tracer = Tracer(ROOT)
    try:
        many: list[str | Path] = [build(folder, "family"), "threads", str(threads)]
        one: list[str | Path] = [build(folder, "exact"), "spin"]
        for kind, name, command, rounds in (
            ("blocked", f"{threads} blocked threads", many, repeat),
            ("spinning", "a spinning thread", one, spins),
        ):
            with Target(command) as target:
                target.expect("ready")
                ours: list[tuple[list[int], int]] = []
                theirs: list[tuple[list[int], int]] = []
                paced: list[tuple[list[int], int]] = []
                for _ in range(rounds):
                    theirs.append(in_c(program, target.pid, Mode.INTERLEAVE))
                    ours.append(await by_hetmemd(tracer, target, DEFAULT))
                    ours.append(await by_hetmemd(tracer, target, INTERLEAVE))
                    theirs.append(in_c(program, target.pid, Mode.DEFAULT))
                    pace = (ours[-1][1] - sum(ours[-1][0])) // len(ours[-1][0])
                    paced.append(in_c(program, target.pid, Mode.INTERLEAVE, pace))
                    paced.append(in_c(program, target.pid, Mode.DEFAULT, pace))
                print(name)
                for share, word in ((0.5, "median"), (0.99, "p99")):
                    ratio = report(f"  pause, {word}", *(percentile(pauses(side), share) for side in (ours, theirs)))
                    report(
                        f"  pause, {word}, at our pace", *(percentile(pauses(side), share) for side in (ours, paced))
                    )
                    figures.held(HELD[kind, word], ratio)
                whole = report(
                    "  all threads, median", *(percentile([all_ for _, all_ in side], 0.5) for side in (ours, theirs))
                )
                took = min([await verify(tracer, target) for _ in range(5)])
                print(f"  verification of an unchanged thread {took / 1000:.1f} us")
                if kind == "blocked":
                    figures.held("all threads / C", whole)
                    figures.held("verification of an unchanged thread / 20 us", took / 20_000)
    finally:
        tracer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--spins", type=int, default=100)
    figures = Figures(parser)
    options = figures.options()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options.threads, options.repeat, options.spins, figures))
    figures.end()


if __name__ == "__main__":
    main()

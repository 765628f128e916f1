"""What moving costs: hetmemd's queries and moves against plain C loops with the same batches.

Run as root: `python -m tests.bench.pages [--program PATH] [MEBIBYTES]`. Queries everywhere; moves where there are two
memory nodes, such as in the lab, which has no compiler:

    gcc -static -O2 -o tests/bench/pages-program tests/bench/pages.c
    tests/lab/run -- python3 -m tests.bench.pages --program tests/bench/pages-program

Prints a figure a line; ratios are C's time to ours, the median of several rounds that alternate.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hetmemd.kernel import pages, procfs
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory import plan, targets
from hetmemd.memory.moving import CALL_SECONDS, Pace
from hetmemd.memory.rebalance import ProcessPass, StepResult

ROOT = Root()
CHILD = Path(__file__).parents[1] / "guest" / "memory_child.py"
BATCH = 4096
ROUNDS = 5


class Child:
    """Memory of 4 KiB pages, all on the node of the CPU that it runs on."""

    def __init__(self, mebibytes: int) -> None:
        command = [sys.executable, str(CHILD), str(mebibytes), "small"]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout
        self.base, size = (int(word) for word in self.popen.stdout.readline().split())
        self.addresses = np.arange(self.base, self.base + size, 4096, dtype=np.int64)

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


def in_c(program: Path, child: Child, *words: str) -> float:
    command = [str(program), words[0], str(child.popen.pid), str(child.base), str(len(child.addresses)), *words[1:]]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def back(child: Child, node: int) -> None:
    for piece in np.split(child.addresses, range(16384, len(child.addresses), 16384)):
        there = piece[pages.query(child.popen.pid, piece) != node]
        pages.move(child.popen.pid, there, node)


def query(child: Child) -> None:
    for piece in np.split(child.addresses, range(16384, len(child.addresses), 16384)):
        pages.query(child.popen.pid, piece)


def move(child: Child, node: int) -> None:
    chosen = child.addresses[::4]
    for piece in np.split(chosen, range(BATCH, len(chosen), BATCH)):
        pages.move(child.popen.pid, piece, node)


class SameBatches(Pace):
    """As many pages in a call as the C loop has."""

    def pages(self, huge: bool, seconds: float) -> int:
        return BATCH


def whole_pass(child: Child, home: int, node: int, pace: Pace, seconds: float) -> list[StepResult]:
    """All that a pass does, numa_maps and planning included."""
    process = procfs.identify(ROOT, child.popen.pid)
    mover = ProcessPass(ROOT, process, targets.all_of(plan.ratio({home: 3, node: 1})), pace=pace)
    results = [mover.step(1 << 40, seconds)]
    while not results[-1].done:
        results.append(mover.step(1 << 40, seconds))
    return results


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program", type=Path)
    arguments.add_argument("mebibytes", type=int, nargs="?", default=256)
    chosen = arguments.parse_args()
    nodes = sorted(topology.read(ROOT).memory_nodes)
    child = Child(chosen.mebibytes)
    with tempfile.TemporaryDirectory() as folder:
        program = chosen.program
        if program is None:
            program = Path(folder, "pages")
            subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("pages.c")], check=True)
        try:
            queries(program.absolute(), child)
            if len(nodes) > 1:
                moves(program.absolute(), child, nodes[0], nodes[1])
        finally:
            child.end()


def queries(program: Path, child: Child) -> None:
    ratios, ours = [], []
    for _ in range(ROUNDS):
        theirs = in_c(program, child, "query", "16384")
        ours.append(timed(lambda: query(child)))
        ratios.append(theirs / ours[-1])
    rate = len(child.addresses) / statistics.median(ours)
    print(f"queries: {rate:.0f} pages/s, ratio to C {statistics.median(ratios):.2f}")


def moves(program: Path, child: Child, home: int, node: int) -> None:
    loop, passes, bound, batches, calls = [], [], [], [], []
    pace = Pace()
    whole_pass(child, home, node, pace, CALL_SECONDS)  # learns the pace, and settles what is not in the area
    for _ in range(ROUNDS):
        back(child, home)
        theirs = in_c(program, child, "move", str(BATCH), str(node))
        back(child, home)
        loop.append(theirs / timed(lambda: move(child, node)))
        back(child, home)
        theirs = in_c(program, child, "pass", str(BATCH), str(node))
        back(child, home)
        passes.append(theirs / timed(lambda: whole_pass(child, home, node, SameBatches(), 1e9)))
        back(child, home)
        begin = time.perf_counter()
        steps = [step for step in whole_pass(child, home, node, pace, CALL_SECONDS) if step.bytes_moved]
        took = time.perf_counter() - begin
        batches.append(int(statistics.median(step.bytes_moved for step in steps)) // 4096)
        calls.append(statistics.median(step.call_seconds for step in steps))
        back(child, home)
        bound.append(in_c(program, child, "pass", str(batches[-1]), str(node)) / took)
    print(f"moves, the calls alone: ratio to C {statistics.median(loop):.2f}")
    print(f"moves, whole passes, {BATCH} pages a call: ratio to C {statistics.median(passes):.2f}")
    print(
        f"moves, calls bound to {CALL_SECONDS * 1000:.0f} ms: {statistics.median(batches):.0f} pages and"
        f" {statistics.median(calls) * 1000:.1f} ms a call, ratio to C {statistics.median(bound):.2f}"
    )


main()

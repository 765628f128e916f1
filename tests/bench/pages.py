"""What moving costs: hetmemd's queries and moves against plain C loops with the same batches.

    .venv/bin/python -m tests.bench.pages [--program PATH] [--rounds N] [--check] [MEBIBYTES]

Needs root. Queries everywhere; moves where there are two memory nodes, such as in the lab, which has no compiler:

    gcc -static -O2 -o tests/bench/pages-program tests/bench/pages.c
    tests/lab/run -- python3 -m tests.bench.pages --program tests/bench/pages-program

Prints a figure a line; ratios are C's time to ours, the median of several rounds that alternate. `migratepages` of the
package numactl is held against a pass that takes everything to one node: in two lanes, as `hetmemctl move` has them,
without the pauses that it makes, and in one, as the daemon has.

The last lines say how many moves are planned for memory that the kernel itself has interleaved, which is in the ratio
as a whole: by windows of the pages that are there, as the planner has them, and by windows of address space, in which a
node may have no more than its weight however many pages are there (the kernel's own layout, at whatever phase).
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

from hetmemd.engine.by_hand import LANES
from hetmemd.kernel import pages, procfs
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory import plan, targets
from hetmemd.memory.moving import CALL_SECONDS, ONE_LANE, Lanes, Pace, beside_one_another
from hetmemd.memory.rebalance import ProcessPass, StepResult
from tests.bench.figures import Figures

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


def spread(child: Child, node: int) -> None:
    """Every page on a node by chance: the worst that can be planned for."""
    generator = np.random.default_rng(1)
    chosen = child.addresses[generator.random(len(child.addresses)) < 0.5]
    for piece in np.split(chosen, range(16384, len(chosen), 16384)):
        pages.move(child.popen.pid, piece, node)


class SameBatches(Pace):
    """As many pages in a call as the C loop has."""

    def pages(self, huge: bool, seconds: float) -> int:
        return BATCH


def whole_pass(
    child: Child, home: int, node: int, pace: Pace, seconds: float, lanes: Lanes = ONE_LANE
) -> list[StepResult]:
    """All that a pass does, over the area that C knows too: the daemon has measured just before it begins one."""
    process = procfs.identify(ROOT, child.popen.pid)
    target = plan.ratio({home: 3, node: 1})
    area = targets.Span(child.base, child.base + 4096 * len(child.addresses), target)
    mover = ProcessPass(ROOT, process, targets.all_of(target), pace=pace, known=[area], lanes=lanes)
    results = [mover.step(1 << 40, seconds)]
    while not results[-1].done:
        results.append(mover.step(1 << 40, seconds))
    return results


def price(child: Child, home: int, node: int) -> float:
    """Pages that a pass moved, to the least that could make every window right; counted page by page, in plain Python.

    The process's few other pages are outside of the area, and in neither number.
    """
    before = pages.query(child.popen.pid, child.addresses)
    steps = whole_pass(child, home, node, Pace(), CALL_SECONDS)
    after = pages.query(child.popen.pid, child.addresses)
    changed = int((before != after).sum())
    least = 0
    for begin in range(0, len(before), 4):
        window = before[begin : begin + 4].tolist()
        least += max(3 - window.count(home), 0) + max(1 - window.count(node), 0)
    twice = sum(step.bytes_moved for step in steps) // 4096 - changed
    print(f"  {changed} pages changed their node, {least} had to; moved besides, in other areas or twice: {twice}")
    return changed / least


# Memory that is interleaved by the kernel 3:1 as it is touched; then a part of it is given back.
LAID = """
import ctypes, mmap, random, sys
PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
mask = ctypes.c_ulong(int(sys.argv[1]))
assert not libc.syscall(238, 6, ctypes.byref(mask), 65), ctypes.get_errno()
size = 64 << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
places = list(range(0, size, PAGE))
random.seed(1)
if sys.argv[2] == "shuffled":
    random.shuffle(places)
for place in places:
    area[place] = 1
for place in places:
    if random.random() >= float(sys.argv[3]):
        area.madvise(mmap.MADV_DONTNEED, place, PAGE)
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
sys.stdin.read()
"""


def layout(home: int, node: int) -> None:
    table = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
    for number, weight in ((home, "3"), (node, "1")):
        (table / f"node{number}").write_text(weight)
    for order, kept in (("ascending", 1.0), ("shuffled", 1.0), ("ascending", 0.9), ("ascending", 0.5)):
        command = [sys.executable, "-c", LAID, str(1 << home | 1 << node), order, str(kept)]
        popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert popen.stdout
        base = int(popen.stdout.readline())
        addresses = np.arange(base, base + (64 << 20), 4096, dtype=np.int64)
        nodes = pages.query(popen.pid, addresses).astype(np.int16)
        popen.kill()
        popen.communicate()
        present = nodes[nodes >= 0]
        by_presence = len(plan.plan(present, None, plan.ratio({home: 3, node: 1}))) / len(present)
        windows = nodes.reshape(-1, 4)
        surplus = ((windows == home).sum(axis=1) - 3).clip(0) + ((windows == node).sum(axis=1) - 1).clip(0)
        print(
            f"laid by the kernel, touched {order}, {kept:.0%} kept: share of node {node}"
            f" {(present == node).mean():.4f},"
            f" moves per page by pages {by_presence:.4f}, by addresses {surplus.sum() / len(present):.4f}"
        )
    for number in (home, node):
        (table / f"node{number}").write_text("1")


class LargestBatches(Pace):
    """As fast as it can be, without a bound on the time of a call: as migrate_pages(2) is."""

    def pages(self, huge: bool, seconds: float) -> int:
        return self.MOST


def against_migratepages(
    child: Child, home: int, node: int, what: str, pace: Pace, seconds: float, rounds: int, lanes: Lanes = ONE_LANE
) -> float:
    """All memory from one node to the other: theirs to ours."""
    ratios = []
    process = procfs.identify(ROOT, child.popen.pid)
    for _ in range(rounds):
        back(child, home)
        theirs = timed(lambda: subprocess.run(["migratepages", str(child.popen.pid), str(home), str(node)], check=True))
        back(child, home)

        def ours() -> None:
            mover = ProcessPass(ROOT, process, targets.all_of(plan.within([node])), pace=pace, lanes=lanes)
            while not mover.step(1 << 40, seconds).done:
                pass

        ratios.append(theirs / timed(ours))
    told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"all to one node, {what}: migratepages / ours {told}")
    return statistics.median(ratios)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--program", type=Path)
    arguments.add_argument("mebibytes", type=int, nargs="?", default=256)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    figures = Figures(arguments)
    chosen = figures.options()
    rounds = chosen.rounds
    nodes = sorted(topology.read(ROOT).memory_nodes)
    child = Child(chosen.mebibytes)
    with tempfile.TemporaryDirectory() as folder:
        program = chosen.program
        if program is None:
            program = Path(folder, "pages")
            subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("pages.c")], check=True)
        try:
            queries(program.absolute(), child, rounds, figures)
            if len(nodes) > 1:
                back(child, nodes[0])
                figures.held("moves / minimum, all on one node", price(child, nodes[0], nodes[1]))
                spread(child, nodes[1])
                figures.held("moves / minimum, by chance", price(child, nodes[0], nodes[1]))
                moves(program.absolute(), child, nodes[0], nodes[1], rounds, figures)
                to_one_node(child, nodes[0], nodes[1], rounds, figures)
                layout(nodes[0], nodes[1])
        finally:
            child.end()
    figures.end()


def to_one_node(child: Child, home: int, node: int, rounds: int, figures: Figures) -> None:
    with beside_one_another(LANES) as several:
        for what, lanes in (("one lane", ONE_LANE), (f"{LANES} lanes", several)):
            # Where a page takes what an emulated processor needs, 20 ms are not the time of a call but its fixed cost.
            against_migratepages(child, home, node, f"{what}, 20 ms a call", Pace(), CALL_SECONDS, rounds, lanes)
            most = f"{what}, {LargestBatches.MOST} pages a call"
            ratio = against_migratepages(child, home, node, most, LargestBatches(), 1e9, rounds, lanes)
    figures.held("migratepages / all to one node", ratio)


def queries(program: Path, child: Child, rounds: int, figures: Figures) -> None:
    ratios, ours = [], []
    for _ in range(rounds):
        theirs = in_c(program, child, "query", "16384")
        ours.append(timed(lambda: query(child)))
        ratios.append(theirs / ours[-1])
    rate = len(child.addresses) / statistics.median(ours)
    print(f"queries: {rate:.0f} pages/s")
    figures.held("C / queries", statistics.median(ratios))


def moves(program: Path, child: Child, home: int, node: int, rounds: int, figures: Figures) -> None:
    loop, bound, batches, calls = [], [], [], []
    passes: dict[int, list[float]] = {1: [], LANES: []}
    pace = Pace()
    whole_pass(child, home, node, pace, CALL_SECONDS)  # learns the pace, and settles what is not in the area
    for _ in range(rounds):
        back(child, home)
        theirs = in_c(program, child, "move", str(BATCH), str(node))
        back(child, home)
        loop.append(theirs / timed(lambda: move(child, node)))
        back(child, home)
        theirs = in_c(program, child, "pass", str(BATCH), str(node))
        with beside_one_another(LANES) as several:
            for lanes in (ONE_LANE, several):
                back(child, home)
                ours = timed(lambda lanes=lanes: whole_pass(child, home, node, SameBatches(), 1e9, lanes))  # type: ignore[misc]
                passes[lanes.count].append(theirs / ours)
        back(child, home)
        begin = time.perf_counter()
        steps = [step for step in whole_pass(child, home, node, pace, CALL_SECONDS) if step.bytes_moved]
        took = time.perf_counter() - begin
        batches.append(int(statistics.median(step.bytes_moved for step in steps)) // 4096)
        calls.append(statistics.median(step.call_seconds for step in steps))
        back(child, home)
        bound.append(in_c(program, child, "pass", str(batches[-1]), str(node)) / took)
    figures.held("C / moves, the calls alone", statistics.median(loop))
    more = f", {BATCH} pages a call"
    figures.held("C / moves, whole passes, one lane", statistics.median(passes[1]), more)
    figures.held("C / moves, whole passes, two lanes", statistics.median(passes[LANES]), more)
    print(
        f"moves, calls bound to {CALL_SECONDS * 1000:.0f} ms: {statistics.median(batches):.0f} pages and"
        f" {statistics.median(calls) * 1000:.1f} ms a call, C / ours {statistics.median(bound):.2f}"
    )
    figures.held("call that moves, median / 20 ms", statistics.median(calls) / CALL_SECONDS)


if __name__ == "__main__":
    main()

"""What moving costs those whose pages are moved, at the default rate: a program bound by memory, and Redis.

    tests/lab/run -- python3 -m tests.bench.harm [SECONDS] [--rounds N] [--check]

Needs root, two memory nodes and a Redis. All memory of the program goes to and fro between the nodes without an end,
which no policy makes it do: the worst that moving can do. Prints the work done per second while moving to the work done
while not, the median of rounds that alternate, and what was moved. Under emulation the processors are shared with the
emulator: figures are relative.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory import plan, targets
from hetmemd.memory.budget import Budgets
from hetmemd.memory.moving import Pace
from hetmemd.memory.rebalance import ProcessPass
from hetmemd.policy.effective import Handling
from hetmemd.settings import Settings
from tests.bench.figures import Figures

ROOT = Root()
ROUNDS = 5
MOST = 64 << 20

# Adds two arrays of 32 MiB into a third, and says how often it did when it is asked.
STREAM = """
import sys, threading
import numpy as np
a, b, c = (np.ones(4 << 20) for _ in range(3))
count = 0
def work():
    global count
    while True:
        np.add(a, b, out=c)
        count += 1
threading.Thread(target=work, daemon=True).start()
for line in sys.stdin:
    print(count, flush=True)
"""


class Moving(threading.Thread):
    """Takes everything to one node, then to the other, at the default rate."""

    def __init__(self, pid: int, nodes: list[int]) -> None:
        super().__init__(daemon=True)
        self._process = procfs.identify(ROOT, pid)
        self._nodes = nodes
        self._over = threading.Event()
        self.moved = 0

    def run(self) -> None:
        budgets = Budgets()
        rate = Handling().rate
        budgets.configure("rate", rate, rate)
        pace = Pace()
        while not self._over.is_set():
            self._nodes.reverse()
            mover = ProcessPass(ROOT, self._process, targets.all_of(plan.within(self._nodes[:1])), pace=pace)
            while not self._over.is_set():
                result = mover.step(budgets.allowance(["rate"], MOST))
                budgets.pay(["rate"], result.bytes_moved)
                self.moved += result.bytes_moved
                if result.done:
                    break
                self._over.wait(max(budgets.wait(["rate"], 2 << 20), result.rest(Settings().moving_share)))

    def end(self) -> None:
        self._over.set()
        self.join()


def held_against(name: str, pid: int, nodes: list[int], work: Callable[[], float], rounds: int) -> float:
    """`work` gives the work done per second."""
    work()
    ratios, rates = [], []
    for _ in range(rounds):
        still = work()
        moving = Moving(pid, nodes)
        begin = time.monotonic()
        moving.start()
        ratios.append(work() / still)
        moving.end()
        rates.append(moving.moved / (time.monotonic() - begin) / (1 << 20))
    print(
        f"{name}: {statistics.median(ratios):.3f} of the work ({min(ratios):.3f}-{max(ratios):.3f})"
        f" while {statistics.median(rates):.0f} MiB/s are moved"
    )
    return statistics.median(ratios)


def stream(nodes: list[int], seconds: float, rounds: int) -> float:
    with subprocess.Popen(
        [sys.executable, "-c", STREAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdin
        assert popen.stdout

        def count() -> int:
            print(file=popen.stdin, flush=True)
            assert popen.stdout
            return int(popen.stdout.readline())

        def work() -> float:
            before, begin = count(), time.monotonic()
            time.sleep(seconds)
            return (count() - before) / (time.monotonic() - begin)

        try:
            return held_against("bound by memory", popen.pid, nodes, work, rounds)
        finally:
            popen.kill()


def redis(nodes: list[int], seconds: float, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder, "redis.sock"))
        command = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""]
        with subprocess.Popen(
            [*command, "--enable-debug-command", "local"], stdout=subprocess.DEVNULL, cwd=folder
        ) as popen:
            while subprocess.run(["redis-cli", "-s", socket, "ping"], capture_output=True, check=False).returncode:
                time.sleep(0.1)
            subprocess.run(
                ["redis-cli", "-s", socket, "debug", "populate", "100000", "key", "512"],
                check=True,
                capture_output=True,
            )
            bench = ["redis-benchmark", "-s", socket, "-c", "4", "-t", "get", "-r", "100000", "--csv"]
            count = 1000

            def work() -> float:
                nonlocal count
                words = subprocess.run([*bench, "-n", str(count)], check=True, capture_output=True, text=True).stdout
                rate = float(words.strip().splitlines()[-1].replace('"', "").split(",")[1])
                count = max(int(rate * seconds), 100)
                return rate

            try:
                return held_against("Redis, GET", popen.pid, nodes, work, rounds)
            finally:
                popen.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seconds", type=float, nargs="?", default=4.0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    figures = Figures(parser)
    chosen = figures.options()
    nodes = sorted(topology.read(ROOT).memory_nodes)[:2]
    if len(nodes) < 2:
        sys.exit("this machine has one memory node")
    figures.held("work while moving, bound by memory", stream(nodes, chosen.seconds, chosen.rounds))
    figures.held("work while moving, Redis", redis(nodes, chosen.seconds, chosen.rounds))
    figures.end()


if __name__ == "__main__":
    main()

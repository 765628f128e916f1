"""How much more memory hetmemd takes for a large process than for a small one: to measure, to plan and to move it.

    .venv/bin/python -m tests.bench.footprint [--small 1024] [--large 4096] [--check]

Needs root, and as much free memory as the large process has (in MiB). All of that is of small pages, each an entry of
its own in whatever lists pages. With two memory nodes a quarter of it is moved, from one to the other; with one all
that would go to a node that is not there is planned, asked for once more, and refused. In the lab:

    tests/lab/run -- python3 -m tests.bench.footprint --small 192 --large 768
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import NamedTuple

from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from tests.bench.figures import Figures

MIB = 1 << 20
ELSEWHERE = 900
"""A node that is not there."""

# Fills as far as each line says, on one node. MPOL_BIND is 2, set_mempolicy 238 on x86-64; MADV_POPULATE_WRITE, 5.14.
TARGET = """
import ctypes, mmap, sys
mask = (ctypes.c_ulong * 16)()
mask[int(sys.argv[2]) // 64] = 1 << int(sys.argv[2]) % 64
assert not ctypes.CDLL(None).syscall(238, 2, mask, 1024)
area = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
filled = 0
print(flush=True)
for line in sys.stdin:
    area.madvise(23, filled, int(line) - filled)
    filled = int(line)
    print(flush=True)
"""

LOOK = """
import json, resource, sys
from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from hetmemd.memory import measure, plan, targets
from hetmemd.memory.rebalance import ProcessPass
root, pid = Root(), int(sys.argv[1])
def peak():
    return int(procfs.status(root, "self")["VmHWM"].split()[0]) * 1024
before = peak()
examined = moved = refused = 0
share = targets.all_of(plan.ratio({int(sys.argv[2]): 3, int(sys.argv[3]): 1}))
measured = measure.measure(root, pid, share)
mover = ProcessPass(root, procfs.identify(root, pid), share)
step = None
while not (step and step.done):
    step = mover.step(1 << 40)
    examined += step.examined
    moved += step.bytes_moved
    refused += sum(step.failed.values()) * 4096
print(json.dumps([peak() - before, sum(measured.bytes_by_node.values()), examined * 4096, moved, refused]))
"""


class Look(NamedTuple):
    """Bytes, at one look at the target by a program of its own."""

    peak: int
    """How much more memory it had at its peak than before it began."""
    measured: int
    examined: int
    """Of pages that were asked about one by one."""
    moved: int
    refused: int


def look_at(target: subprocess.Popen[str], size: int, home: int, other: int) -> Look:
    assert target.stdin
    assert target.stdout
    target.stdin.write(f"{size}\n")
    target.stdin.flush()
    assert target.stdout.readline() == "\n"
    command = [sys.executable, "-c", LOOK, str(target.pid), str(home), str(other)]
    return Look(*json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def looks(small: int, large: int, home: int, other: int) -> tuple[Look, Look]:
    """At a process of `small` bytes, and at one of `large`."""
    found = []
    for size in (small, large):
        command = [sys.executable, "-c", TARGET, str(size), str(home)]
        target = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert target.stdout
            assert target.stdout.readline() == "\n"
            found.append(look_at(target, size, home, other))
        finally:
            target.kill()
            target.communicate()
    return found[0], found[1]


def nodes() -> tuple[int, int]:
    """Where the memory is, and where a quarter of it goes."""
    home, *others = sorted(topology.read(Root()).memory_nodes)
    return home, others[0] if others else ELSEWHERE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--small", type=int, default=1024)
    parser.add_argument("--large", type=int, default=4096)
    figures = Figures(parser)
    chosen = figures.options()
    small, large = looks(chosen.small * MIB, chosen.large * MIB, *nodes())
    for size, look in ((chosen.small, small), (chosen.large, large)):
        print(
            f"{size} MiB: {look.measured / MIB:.0f} MiB measured, {look.examined / MIB:.0f} MiB looked at page by page,"
            f" {look.moved / MIB:.0f} MiB moved, {look.refused / MIB:.0f} MiB refused; {look.peak / MIB:.2f} MiB taken"
        )
    figures.held("growth / 2 MiB", (large.peak - small.peak) / (2 * MIB))
    figures.end()


if __name__ == "__main__":
    main()

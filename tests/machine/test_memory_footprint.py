"""What measuring and planning take does not grow with the process that is looked at."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root
MIB = 1 << 20

# Small pages throughout: each has an entry of its own in whatever lists pages. Fills as far as each line says.
TARGET = """
import mmap, sys
area = mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
filled = 0
for line in sys.stdin:
    area.madvise(23, filled, int(line) - filled)  # MADV_POPULATE_WRITE, 5.14
    filled = int(line)
    print(flush=True)
"""

# A node that is not there: all that would go to it is planned, asked for once more, and refused.
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
examined = 0
share = targets.all_of(plan.ratio({0: 3, 900: 1}))
measured = measure.measure(root, pid, share)
mover = ProcessPass(root, procfs.identify(root, pid), share)
while not (step := mover.step(1 << 40)).done:
    examined += step.examined
print(json.dumps([peak() - before, examined * 4096, sum(measured.bytes_by_node.values())]))
"""


def look_at(target: subprocess.Popen[str], size: int) -> tuple[int, int, int]:
    """(bytes more at the peak, bytes of which each page was looked at, bytes measured) in a program of its own."""
    assert target.stdin
    assert target.stdout
    target.stdin.write(f"{size}\n")
    target.stdin.flush()
    assert target.stdout.readline() == "\n"
    command = [sys.executable, "-c", LOOK, str(target.pid)]
    more, examined, measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return more, examined, measured


def test_memory_does_not_grow_with_the_target() -> None:
    command = [sys.executable, "-c", TARGET]
    target = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        small, large = look_at(target, 1024 * MIB), look_at(target, 4096 * MIB)
    finally:
        target.kill()
        target.communicate()
    assert large[1] - small[1] >= 3072 * MIB - 256 * MIB
    assert large[2] - small[2] == pytest.approx(3072 * MIB, rel=0.01)
    assert large[0] - small[0] <= 2 * MIB, (small, large)

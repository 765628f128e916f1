"""How much is moved, and how often: rates (I7), `existing = "once"`, and what holding a ratio costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.policy.effective import Bucket
from tests.guest.balanced import Held

pytestmark = pytest.mark.lab
CHILD = Path(__file__).with_name("memory_child.py")
MIB = 1 << 20
PATIENCE = 90.0
WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)

# Takes eight more MiB at each line: all on node 0, as the kernel's table is not the policy's.
GROWING = """
import mmap, sys
kept = []
def grow():
    area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, len(area), 4096):
        area[place] = 1
    kept.append(area)
    print(flush=True)
grow()
for line in sys.stdin:
    grow()
"""


@pytest.fixture
def started() -> Generator[list[subprocess.Popen[str]], None, None]:
    popens: list[subprocess.Popen[str]] = []
    yield popens
    for popen in popens:
        popen.kill()
        popen.communicate()


def start(started: list[subprocess.Popen[str]], *words: str) -> subprocess.Popen[str]:
    command = ["numactl", "--membind=0", sys.executable, *words]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started.append(popen)
    assert popen.stdout
    popen.stdout.readline()
    return popen


def grow(popen: subprocess.Popen[str]) -> None:
    assert popen.stdin
    assert popen.stdout
    print(file=popen.stdin, flush=True)
    popen.stdout.readline()


def test_I7_a_child_does_not_outspend_its_parent(started: list[subprocess.Popen[str]]) -> None:
    rate, burst = 4 * MIB, 2 * MIB
    buckets = (
        Bucket("cgroup:/x", 1 << 30, 1 << 30),
        Bucket("table:f#0", 1 << 30, 1 << 30),
        Bucket("cgroup:/", rate, burst),
    )
    held = Held(start(started, str(CHILD), "64", "small").pid, WEIGHTED, {0: 1, 1: 1}, buckets)
    begin = time.monotonic()
    # However slow the machine is: more than the burst alone, and no more than the time allows for.
    assert held.run(lambda: held.moved >= 8 * MIB, PATIENCE), str(held)
    held.close()
    # A step's overdraft is one folio at most.
    assert held.moved <= burst + rate * (time.monotonic() - begin) + 2 * MIB


def test_existing_once_is_once_for_a_start_an_exec_and_a_placement(started: list[subprocess.Popen[str]]) -> None:
    popen = start(started, "-c", GROWING)
    held = Held(popen.pid, WEIGHTED, {0: 1, 1: 1}, existing="once")
    record = held.record
    try:
        assert held.run(
            lambda: held.moved > 0 and (record.distance if record.distance is not None else 1.0) < 0.1, 60.0
        ), str(held)
        once = held.moved
        grow(popen)
        assert held.run(lambda: (record.distance or 0.0) > 0.1, 30.0), str(held)
        held.run(lambda: False, 3.0)
        assert held.moved == once
        # What an exec and another placement do to the record.
        record.renew()
        assert held.run(
            lambda: held.moved > once and (record.distance if record.distance is not None else 1.0) < 0.1, 60.0
        ), str(held)
    finally:
        held.close()


def test_a_sample_sees_what_somebody_else_moved(started: list[subprocess.Popen[str]]) -> None:
    """A process whose exact figures take long is sampled in between; in doubt the exact figures are had."""
    child = start(started, str(CHILD), "32", "small")
    held = Held(child.pid, WEIGHTED, {0: 1, 1: 1})
    held.balancer.sampled_from = 0.0
    record = held.record
    try:
        assert held.run(lambda: record.settled is not None and record.settled.times >= 2, 90.0), str(held)
        moved = held.moved
        subprocess.run(["migratepages", str(child.pid), "1", "0"], check=True)
        assert held.run(lambda: held.moved >= moved + 14 * MIB, 60.0), str(held)
        assert held.run(lambda: (record.distance if record.distance is not None else 1.0) < 0.1, 30.0), str(held)
    finally:
        held.close()


def test_what_holding_the_ratio_costs_is_counted_for_itself_and_capped(started: list[subprocess.Popen[str]]) -> None:
    """New pages come on node 0 alone, and are moved to the policy's ratio as they come: at most at its rate."""
    popen = start(started, "-c", GROWING)
    rate, burst = 2 * MIB, 2 * MIB
    held = Held(popen.pid, WEIGHTED, {0: 1, 1: 1}, (Bucket("cgroup:/x", rate, burst),))
    record = held.record
    try:
        assert held.run(lambda: record.has_settled, 60.0), str(held)
        counted = held.tally.totals().moved_by_cgroup_work
        assert counted["/x", "converging"] == held.moved
        assert ("/x", "holding") not in counted
        for _ in range(3):
            grow(popen)
        begin = time.monotonic()

        def spent() -> int:
            return held.tally.totals().moved_by_cgroup_work.get(("/x", "holding"), 0)

        # More than the burst alone: the next measurement is due after a hundred times what the last one took.
        assert held.run(lambda: spent() >= burst + MIB, PATIENCE), str(held)
        assert spent() <= burst + rate * (time.monotonic() - begin) + 2 * MIB
        assert held.run(lambda: (record.distance if record.distance is not None else 1.0) < 0.1, 60.0), str(held)
        assert held.tally.totals().moved_by_cgroup_work["/x", "holding"] >= 11 * MIB
    finally:
        held.close()

"""Others move pages too (L6): beside NUMA balancing and demotion, pages do not go back and forth."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from hetmemd.engine.balancing import GLOBAL, Balancer
from hetmemd.engine.record import Record
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory.budget import Budgets
from hetmemd.policy.effective import Bucket, Effective, Handling, Placement
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

pytestmark = pytest.mark.lab
ROOT = Root()
HERE = Path(__file__).parent
MIB = 1 << 20
BOTH = frozenset({0, 1})
BALANCING = Path("/proc/sys/kernel/numa_balancing")
KNOBS = Path("/sys/kernel/debug/sched/numa_balancing")
DEMOTION = Path("/sys/kernel/mm/numa/demotion_enabled")

# Touches all of its memory again and again, as a busy program does.
BUSY = """
import mmap, sys
size = int(sys.argv[1]) << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
print(flush=True)
while True:
    for place in range(0, size, 4096):
        area[place] = 1
    if len(sys.argv) < 3:
        continue
    print(flush=True)
    sys.stdin.readline()
"""


def vmstat(name: str) -> int:
    lines = ROOT.read_text("/proc/vmstat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)


@pytest.fixture
def settings() -> Generator[Callable[[Path, str], None], None, None]:
    before: list[tuple[Path, str]] = []

    def put(path: Path, value: str) -> None:
        before.append((path, path.read_text().strip()))
        path.write_text(value)

    yield put
    for path, value in reversed(before):
        path.write_text(value)


class Held:
    """The daemon's balancer over one process whose policy nobody can set: its pages are moved only (L5)."""

    def __init__(self, pid: int, policy: Mempolicy, weights: dict[int, int]) -> None:
        placement = Placement(policy, weights)
        bucket = Bucket("cgroup:/x", 1 << 30, 1 << 30)
        handling = Handling(rate=1 << 30)
        effective = Effective("/x", "active", placement, handling, None, None, (), (bucket,))
        process = procfs.identify(ROOT, pid)
        self.record = Record(process, "busy", "/x", placement, Outcome.REFUSED, "yama", allowed=BOTH)
        self.record.outcomes, self.record.reasons = frozenset({Outcome.REFUSED}), frozenset({"yama"})
        self.tally = Tally()
        budgets = Budgets()
        budgets.configure(GLOBAL, 1 << 30, 1 << 30)
        machine = topology.read(ROOT)
        self.balancer = Balancer(
            ROOT,
            {pid: self.record},
            lambda path: effective,
            lambda: machine,
            budgets,
            self.tally,
            lambda: False,
            asyncio.Event(),
        )
        self.balancer.interval = 0.5

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Whether it came about in this time."""

        async def go() -> bool:
            task = asyncio.create_task(self.balancer.run())
            deadline = time.monotonic() + seconds
            while not until() and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            task.cancel()
            return until()

        return asyncio.run(go())

    @property
    def moved(self) -> int:
        """Bytes."""
        return sum(self.tally.totals().bytes_by_source_target.values())


def start(*words: str) -> subprocess.Popen[str]:
    command = ["numactl", "--cpunodebind=0", sys.executable, "-c", BUSY, *words]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert popen.stdout
    popen.stdout.readline()
    return popen


def test_L6_numa_balancing_and_rebalance_do_not_play_ping_pong(settings: Callable[[Path, str], None]) -> None:
    settings(KNOBS / "scan_delay_ms", "50")
    settings(KNOBS / "scan_period_min_ms", "100")
    settings(KNOBS / "scan_period_max_ms", "400")
    settings(BALANCING, "1")
    popen = start("16")
    held = None
    try:
        policy = Mempolicy(Mode.WEIGHTED_INTERLEAVE, BOTH, Flag.STATIC_NODES)
        held = Held(popen.pid, policy, {0: 1, 1: 1})
        record = held.record
        back = vmstat("numa_pages_migrated")
        assert held.run(lambda: "L6" in record.acted, 120.0), (record, vmstat("numa_pages_migrated") - back)
        # It was NUMA balancing that undid the work, and was given up after a few rounds.
        assert vmstat("numa_pages_migrated") - back > 512
        until_held = held.moved
        assert until_held <= 8 * 16 * MIB
        held.run(lambda: False, 10.0)
        assert held.moved - until_held <= 2 * 8 * MIB
        # As soon as nobody moves them back, the ratio is made, and holds.
        BALANCING.write_text("0")
        record.measure_at = 0.0
        assert held.run(lambda: (record.distance or 1.0) <= 0.02, 60.0), record
        reached = held.moved
        held.run(lambda: False, 3.0)
        assert held.moved == reached
    finally:
        popen.kill()
        popen.communicate()
        if held:
            held.balancer.close()


def test_L6_what_is_demoted_under_pressure_is_not_fetched_back_into_it(settings: Callable[[Path, str], None]) -> None:
    """bind to a node that is short of memory: the kernel demotes, and nothing is moved back until there is room."""
    settings(DEMOTION, "true")
    idle = start("64", "once")
    ballast = None
    held = None
    kills, demoted = vmstat("oom_kill"), vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct")
    try:
        held = Held(idle.pid, Mempolicy(Mode.BIND, frozenset({0}), Flag.STATIC_NODES), {})
        record = held.record
        free = int(ROOT.read_text("/sys/devices/system/node/node0/meminfo").split("MemFree:")[1].split()[0]) >> 10
        ballast = subprocess.Popen(
            ["numactl", "--membind=0", sys.executable, str(HERE / "memory_child.py"), str(free + 8), "ballast"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert ballast.stdout
        assert ballast.stdout.readline()
        assert vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct") > demoted, "nothing was demoted"
        assert held.run(lambda: record.bytes_by_node.get(1, 0) > MIB, 60.0), record
        held.run(lambda: False, 5.0)
        under_pressure = held.moved
        assert under_pressure <= 4 * MIB
        assert held.tally.totals().failed_pages_by_reason.get("node-full", 0) > 0
        ballast.kill()
        ballast.communicate()
        record.measure_at = 0.0
        assert held.run(lambda: record.distance == 0.0, 60.0), record
        assert vmstat("oom_kill") == kills
    finally:
        for popen in (idle, ballast):
            if popen:
                popen.kill()
                popen.communicate()
        if held:
            held.balancer.close()

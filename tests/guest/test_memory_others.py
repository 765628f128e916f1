"""Others move pages too (L6): beside NUMA balancing and demotion, pages do not go back and forth."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root
from tests.guest.balanced import Held
from tests.guest.daemon import (
    MEASURED_SOON,
    Child,
    Group,
    drop,
    eventually,
    huge_pool,
    measured_anew,
    metrics,
    policy,
    systemctl,
    told,
)

pytestmark = pytest.mark.lab
ROOT = Root()
MIB = 1 << 20
BOTH = frozenset({0, 1})
BALANCING = Path("/proc/sys/kernel/numa_balancing")
KNOBS = Path("/sys/kernel/debug/sched/numa_balancing")
SETTINGS = Path("/etc/hetmemd.toml")
DEMOTION = Path("/sys/kernel/mm/numa/demotion_enabled")

KDAMONDS = Path("/sys/kernel/mm/damon/admin/kdamonds")

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


def start(*words: str) -> subprocess.Popen[str]:
    command = ["numactl", "--cpunodebind=0", sys.executable, "-c", BUSY, *words]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert popen.stdout
    popen.stdout.readline()
    return popen


def balance_fast(settings: Callable[[Path, str], None]) -> None:
    if not KNOBS.exists():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    settings(KNOBS / "scan_delay_ms", "50")
    settings(KNOBS / "scan_period_min_ms", "100")
    settings(KNOBS / "scan_period_max_ms", "400")


@contextlib.contextmanager
def pressure_on_node_0() -> Iterator[None]:
    """More is taken than is free there, so that something has to go."""
    # What earlier tests read would count as room.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    # Most of it without being touched: that takes long where processors are emulated.
    huge_pool(0).write_text(str((free_on_node_0() - 128) // 2))
    try:
        ballast = Child(free_on_node_0() + 8, "ballast", None, "--membind=0")
        try:
            yield
        finally:
            ballast.close()
    finally:
        huge_pool(0).write_text("0")


def free_on_node_0() -> int:
    """MiB."""
    return int(ROOT.read_text("/sys/devices/system/node/node0/meminfo").split("MemFree:")[1].split()[0]) >> 10


def test_L6_numa_balancing_and_rebalance_do_not_play_ping_pong(settings: Callable[[Path, str], None]) -> None:
    balance_fast(settings)
    settings(BALANCING, "1")
    popen = start("16")
    held = None
    try:
        policy = Mempolicy(Mode.WEIGHTED_INTERLEAVE, BOTH, Flag.STATIC_NODES)
        held = Held(popen.pid, policy, {0: 1, 1: 1})
        record = held.record
        # The kernel may need some seconds here to undo a pass: what rests for that long is not to count as at rest.
        held.balancer.interval = 2.0
        back = vmstat("numa_pages_migrated")
        assert held.run(lambda: "L6" in record.acted, 150.0), (str(held), vmstat("numa_pages_migrated") - back)
        # It was NUMA balancing that undid the work, and was given up after a few rounds.
        assert vmstat("numa_pages_migrated") - back > 512
        until_held = held.moved
        held.balancer.interval = 0.5
        assert until_held <= 8 * 16 * MIB
        held.run(lambda: False, 10.0)
        assert held.moved - until_held <= 3 * 8 * MIB
        # As soon as nobody moves them back, the ratio is made, and holds.
        BALANCING.write_text("0")
        # Not the figure of before, which was had right after a pass maybe.
        record.distance, record.measure_at = None, 0.0
        assert held.run(lambda: (record.distance if record.distance is not None else 1.0) <= 0.02, 60.0), str(held)
        reached = held.moved
        held.run(lambda: False, 3.0)
        assert held.moved - reached <= MIB
    finally:
        popen.kill()
        popen.communicate()
        if held:
            held.close()


def test_L6_what_is_demoted_under_pressure_is_not_fetched_back_into_it(settings: Callable[[Path, str], None]) -> None:
    """bind to a node that is short of memory: the kernel demotes, and nothing is moved back until there is room."""
    settings(DEMOTION, "true")
    idle = start("64", "once")
    held = None
    kills, demoted = vmstat("oom_kill"), vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct")
    try:
        held = Held(idle.pid, Mempolicy(Mode.BIND, frozenset({0}), Flag.STATIC_NODES), {})
        record = held.record

        def refused() -> int:
            return held.tally.totals().failed_pages_by_reason.get("node-full", 0)

        with pressure_on_node_0():
            assert vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct") > demoted, "nothing was demoted"
            assert held.run(lambda: record.bytes_by_node.get(1, 0) > MIB, 60.0), str(held)
            assert held.run(lambda: refused() > 0, 90.0), str(held)
            held.run(lambda: False, 5.0)
            # What room the kernel makes above the reserve may be used: it boosts its watermarks for huge pages, and
            # demotes 16 MiB more than it need or so. Nothing goes to and fro: that would be as much each second.
            assert held.moved <= 48 * MIB
        record.measure_at = 0.0
        assert held.run(lambda: (record.distance or 0.0) <= 0.02, 60.0), str(held)
        assert vmstat("oom_kill") == kills
    finally:
        idle.kill()
        idle.communicate()
        if held:
            held.close()


@pytest.fixture
def soon() -> Generator[None, None, None]:
    """The service looks and measures many times as often as by default: what goes to and fro shows sooner."""
    before = SETTINGS.read_text()
    soon = 'measure_interval = "0.5s"\nscan_interval = "1s"'
    assert MEASURED_SOON in before
    SETTINGS.write_text(before.replace(MEASURED_SOON, soon))
    systemctl("start", "hetmemd")
    systemctl("reload", "hetmemd")
    yield
    SETTINGS.write_text(before)
    systemctl("reload", "hetmemd")


@pytest.mark.usefixtures("service", "soon")
def test_L6_beside_numa_balancing_and_demotion_at_once_the_service_comes_to_rest(
    settings: Callable[[Path, str], None], group: Group
) -> None:
    """A busy program in the ratio 3:1, both of them on, with room and without."""
    balance_fast(settings)
    # NUMA_BALANCING_NORMAL | NUMA_BALANCING_MEMORY_TIERING
    settings(BALANCING, "3")
    settings(DEMOTION, "true")
    size = 48 * MIB
    popen = start("48")
    kills, demoted = vmstat("oom_kill"), vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct")
    before = moved()
    try:
        drop("50-others.toml", policy(group.path))
        group.take(popen.pid)
        eventually("the ratio holds", lambda: distance(group) <= 0.02)
        reached = moved()
        assert reached - before >= size // 5
        for _ in range(4):
            measured_anew(group.path)
        assert moved() - reached <= MIB, "with room it comes to rest"
        with pressure_on_node_0():
            assert vmstat("pgdemote_kswapd") + vmstat("pgdemote_direct") > demoted, "nothing was demoted"
            for _ in range(4):
                measured_anew(group.path)
            # What was demoted may be fetched back where the kernel makes room above the reserve; not again and again.
            pressed = moved()
            assert pressed - reached <= size
        eventually("the ratio holds again", lambda: distance(group) <= 0.02)
        assert moved() - pressed <= size
        assert vmstat("oom_kill") == kills
    finally:
        popen.kill()
        popen.communicate()


@pytest.mark.usefixtures("service", "soon")
def test_L6_the_service_shows_who_else_moves_pages(settings: Callable[[Path, str], None]) -> None:
    settings(BALANCING, "3")
    settings(DEMOTION, "true")
    with damon("pageout") as is_there:
        expected = {"numa-balancing", "demotion", *(["damon"] if is_there else [])}
        systemctl("reload", "hetmemd")
        eventually("those that are on are shown", lambda: movers("on") == expected)
        assert movers("unknown") == set(), "the service may read all of the switches"
        shown = metrics()
        assert {name for name in expected if shown[f'hetmemd_other_mover{{mover="{name}"}}'] == 1} == expected
    BALANCING.write_text("0")
    systemctl("reload", "hetmemd")
    eventually("and what is turned off is not", lambda: movers("on") == {"demotion"})


def movers(state: str) -> set[str]:
    return {mover["name"] for mover in told("status")["movers"] if mover["state"] == state}


@contextlib.contextmanager
def damon(action: str) -> Iterator[bool]:
    """A thread of DAMON whose scheme fits no region of memory; False where this kernel has none."""
    if not (KDAMONDS / "nr_kdamonds").exists():
        yield False
        return
    try:
        for path, value in (
            ("nr_kdamonds", "1"),
            ("0/contexts/nr_contexts", "1"),
            ("0/contexts/0/operations", "paddr"),
            ("0/contexts/0/targets/nr_targets", "1"),
            ("0/contexts/0/targets/0/regions/nr_regions", "1"),
            ("0/contexts/0/targets/0/regions/0/start", "16777216"),
            ("0/contexts/0/targets/0/regions/0/end", "33554432"),
            ("0/contexts/0/schemes/nr_schemes", "1"),
            ("0/contexts/0/schemes/0/action", action),
            ("0/state", "on"),
        ):
            (KDAMONDS / path).write_text(value)
        yield True
    finally:
        if (KDAMONDS / "0/state").exists():
            if (KDAMONDS / "0/state").read_text().strip() == "on":
                (KDAMONDS / "0/state").write_text("off")
            (KDAMONDS / "nr_kdamonds").write_text("0")


def distance(group: Group) -> float:
    found = told("explain", group.path)["distance"]
    return 1.0 if found is None else float(found)


def moved() -> float:
    """Bytes, by the service."""
    return sum(value for name, value in metrics().items() if name.startswith("hetmemd_moved_bytes_total"))

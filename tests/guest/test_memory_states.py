"""Memory in every state: what moves, what stays, as what it is counted, and that no contents suffer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hetmemd.kernel import pages, procfs, zoneinfo
from hetmemd.kernel.root import Root
from hetmemd.memory import headroom, measure, plan, targets
from hetmemd.memory.rebalance import ProcessPass, StepResult
from hetmemd.memory.sharers import Sharers
from tests.guest.daemon import huge_pool

pytestmark = pytest.mark.lab
ROOT = Root()
PATIENCE = 240.0
HERE = Path(__file__).parent
AWAY = plan.within([1])
KSM = Path("/sys/kernel/mm/ksm")
POOL = huge_pool(0)


def run(mover: ProcessPass) -> tuple[list[StepResult], Counter[str]]:
    """All steps of a pass, and the pages that were given up."""
    deadline = time.monotonic() + PATIENCE
    results = [mover.step(64 << 20)]
    while not results[-1].done:
        assert time.monotonic() < deadline
        time.sleep(results[-1].wait)
        results.append(mover.step(64 << 20))
    failed: Counter[str] = Counter()
    for result in results:
        failed.update(result.failed)
    return results, failed


def eventually(what: str, true: object) -> None:
    assert callable(true)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class States:
    def __init__(self, folder: Path) -> None:
        (folder / "file").write_bytes(b"x" * 64 * 4096)
        command = ["numactl", "--membind=0", sys.executable, str(HERE / "memory_states.py"), str(folder / "file")]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout
        self.areas = json.loads(self.popen.stdout.readline())
        self.process = procfs.identify(ROOT, self.popen.pid)

    def nodes(self, name: str) -> NDArray[np.int32]:
        start, count = self.areas[name]
        return pages.query(self.popen.pid, np.arange(start, start + count * 4096, 4096, dtype=np.int64))

    def are_on(self, name: str) -> set[int]:
        return {*self.nodes(name).tolist()}


@pytest.fixture(scope="module")
def swap(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    file = Path("/var/tmp/hetmemd-swap")
    file.write_bytes(bytes(16 << 20))
    file.chmod(0o600)
    subprocess.run(["/usr/sbin/mkswap", "-q", file], check=True)
    subprocess.run(["/usr/sbin/swapon", file], check=True)
    yield
    subprocess.run(["/usr/sbin/swapoff", file], check=True)
    file.unlink()


@pytest.fixture
def pool() -> Generator[None, None, None]:
    """Two huge pages on node 0: the kernel makes as many as it finds room for, and says how many it has."""
    before = POOL.read_text()
    POOL.write_text("2")
    try:
        assert int(POOL.read_text()) >= 2, "no room for huge pages"
        yield
    finally:
        POOL.write_text(before)
    assert POOL.read_text() == before


@pytest.fixture
def ksm() -> Generator[None, None, None]:
    """Merges what may be merged, soon; afterwards nothing is merged, and its settings are as they were."""
    settings = {"pages_to_scan": "5000", "sleep_millisecs": "20", "run": "1"}
    before = {name: (KSM / name).read_text() for name in settings}
    for name, value in settings.items():
        (KSM / name).write_text(value)
    yield
    (KSM / "run").write_text("2")
    for name, value in before.items():
        (KSM / name).write_text(value)


@pytest.fixture
def states(swap: None, pool: None, ksm: None) -> Generator[States, None, None]:
    # Not on a tmpfs: the file's pages are to be those of a disk's cache.
    started = States(Path("/var/tmp"))
    yield started
    started.popen.kill()
    started.popen.communicate()


def test_each_state_is_handled_and_counted(states: States) -> None:
    eventually("pages are merged", lambda: int((KSM / "pages_sharing").read_text()) >= 60)
    eventually("pages are swapped out", lambda: (states.nodes("swapped") < 0).sum() > 32)
    share = targets.all_of(AWAY)
    before = measure.measure(ROOT, states.popen.pid, share)
    assert before.swapped >= 32 * 4096
    assert sum(before.left_out["hugetlb"].values()) == 2 << 20
    gone = int((states.nodes("swapped") < 0).sum())

    results, failed = run(ProcessPass(ROOT, states.process, share))
    for name in ("plain", "locked", "code", "guarded", "file"):
        assert states.are_on(name) == {1}, (name, Counter(states.nodes(name).tolist()), failed, results)
    # Pinned for good: tried again, then counted as busy. Merged ones are mapped in many places.
    assert states.are_on("pinned") == {0}
    assert failed["busy"] >= 64
    assert states.are_on("merged") == {0}
    assert failed["shared"] >= 60
    # Nothing was brought in to be moved.
    assert int((states.nodes("swapped") < 0).sum()) == gone
    assert all(node < 0 for node in states.are_on("zero") | states.are_on("untouched"))
    assert states.are_on("hugetlb") == {0}
    assert sum(result.bytes_moved for result in results) > 0

    again, failed_again = run(ProcessPass(ROOT, states.process, share))
    assert sum(result.bytes_moved for result in again) == 0
    assert {"busy", "shared"} <= set(failed_again)
    assert states.popen.communicate("\n", timeout=PATIENCE)[0].strip() == "intact"


def test_what_a_family_shares_moves_with_its_consent() -> None:
    """`shared = "move"`: anonymous memory since a fork, and shared objects."""
    script = HERE.parent / "machine" / "memory_family.py"
    command = ["numactl", "--membind=0", sys.executable, str(script)]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert popen.stdout
        told = json.loads(popen.stdout.readline())
        process, children = procfs.identify(ROOT, popen.pid), told.pop("children")

        def on(name: str) -> set[int]:
            start, count = told[name]
            return {*pages.query(popen.pid, np.arange(start, start + count * 4096, 4096, dtype=np.int64)).tolist()}

        share = targets.all_of(AWAY, 4)
        _, failed = run(ProcessPass(ROOT, process, share, sharers=Sharers(ROOT, children[:1])))
        # The second child was not asked: what it maps stays.
        assert {name: on(name) for name in ("own", "half", "forked", "object", "other")} == {
            "own": {1},
            "half": {1},
            "forked": {0},
            "object": {0},
            "other": {0},
        }
        assert failed["shared"] >= 3 * 64
        run(ProcessPass(ROOT, process, share, sharers=Sharers(ROOT, children)))
        assert all(on(name) == {1} for name in ("own", "half", "forked", "written", "object", "other"))
    finally:
        popen.kill()
        popen.communicate()


def test_huge_pages_are_not_split_where_the_other_node_is_in_pieces() -> None:
    """Free memory enough, but no block of 2 MiB: moved there, the kernel would cut the huge pages up."""

    def vmstat(name: str) -> int:
        lines = ROOT.read_text("/proc/vmstat").splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)

    # What the kernel would give up of its caches would be whole blocks.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    holes = subprocess.Popen(
        ["numactl", "--membind=1", sys.executable, str(HERE / "memory_holes.py"), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = None
    try:
        assert holes.stdout
        assert holes.stdout.readline()
        command = ["numactl", "--membind=0", sys.executable, str(HERE / "memory_child.py"), "256", "huge"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout
        start, size = map(int, child.stdout.readline().split())
        heads = np.arange(start, start + size, 2 << 20, dtype=np.int64)
        marks = zoneinfo.watermarks(ROOT)[1]
        assert zoneinfo.node_vmstat(ROOT, 1)["nr_free_pages"] - headroom.reserve(marks) > 256 << 8
        blocks = sum(count << order - 9 for order, count in enumerate(zoneinfo.free_blocks(ROOT, 1)) if order >= 9)
        # Some more come free meanwhile, by what others give back: there are huge pages for all of them, and more.
        assert blocks < 64
        splits = vmstat("thp_split_page"), vmstat("thp_migration_split")
        _, failed = run(ProcessPass(ROOT, procfs.identify(ROOT, child.pid), targets.all_of(AWAY)))
        assert (vmstat("thp_split_page"), vmstat("thp_migration_split")) == splits
        assert failed["node-full"] >= 512
        assert (pages.query(child.pid, heads) == 0).any()
        assert set(failed) == {"node-full"}
        assert child.communicate(timeout=PATIENCE)[0].strip() == "intact"
    finally:
        for popen in (holes, child):
            if popen:
                popen.kill()
                popen.communicate()

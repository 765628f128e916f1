"""Moving real pages between two nodes: the ratio, the price, what stops it, and that nobody's contents suffer."""

from __future__ import annotations

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
from hetmemd.kernel.pagemap import HUGE
from hetmemd.kernel.root import Root
from hetmemd.memory import headroom, measure, plan, targets
from hetmemd.memory.rebalance import ProcessPass, StepResult

pytestmark = pytest.mark.lab
ROOT = Root()
CHILD = Path(__file__).with_name("memory_child.py")
PATIENCE = 240.0
THREE_TO_ONE = targets.all_of(plan.ratio({0: 3, 1: 1}))


class Child:
    """memory_child.py, started on one node."""

    def __init__(self, mebibytes: int, kind: str, *more: str, node: int = 0) -> None:
        command = ["numactl", f"--membind={node}", sys.executable, str(CHILD), str(mebibytes), kind, *more]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout
        base, size = self.popen.stdout.readline().split()
        self.size = int(size)
        self.addresses = np.arange(int(base), int(base) + self.size, 4096, dtype=np.int64)
        self.process = procfs.identify(ROOT, self.popen.pid)

    @property
    def span(self) -> tuple[int, int]:
        return int(self.addresses[0]), int(self.addresses[0]) + self.size

    def nodes(self) -> NDArray[np.int32]:
        return pages.query(self.popen.pid, self.addresses)

    def verdict(self) -> str:
        """Its own word on its contents. It ends with it."""
        out, _ = self.popen.communicate(timeout=PATIENCE)
        return out.strip()

    def huge_kib(self) -> int:
        """Of the regions that its area lies in."""
        total, (low, high), is_within = 0, self.span, False
        for line in ROOT.read_text(f"/proc/{self.popen.pid}/smaps").splitlines():
            word, value = line.split()[:2]
            if not word.endswith(":"):
                start, end = (int(each, 16) for each in word.split("-"))
                is_within = start < high and low < end
            elif is_within and word == "AnonHugePages:":
                total += int(value)
        return total


@pytest.fixture
def children() -> Generator[list[Child], None, None]:
    started: list[Child] = []
    yield started
    for child in started:
        child.popen.kill()
        child.popen.wait()


def run(mover: ProcessPass, allow: int = 64 << 20) -> list[StepResult]:
    """All steps of a pass."""
    deadline = time.monotonic() + PATIENCE
    results = [mover.step(allow)]
    while not results[-1].done:
        assert time.monotonic() < deadline
        time.sleep(results[-1].wait)
        results.append(mover.step(allow))
    return results


def failed(results: list[StepResult]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.failed)
    return dict(total)


def moved(results: list[StepResult]) -> int:
    """Pages."""
    return sum(result.bytes_moved for result in results) // 4096


def test_small_pages_reach_the_ratio(children: list[Child]) -> None:
    child = Child(256, "small")
    children.append(child)
    assert (child.nodes() == 0).all()
    before = measure.measure(ROOT, child.popen.pid, THREE_TO_ONE).bytes_by_node
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    after = child.nodes()
    assert abs((after == 1).mean() - 0.25) < 0.005
    # In every window of the sum of the weights, at any offset, not only in the whole.
    ones = np.concatenate([[0], np.cumsum(after == 1)])
    for length in (4, 5, 7, 16, 1001):
        assert np.abs(ones[length:] - ones[:-length] - length / 4).max() <= 1
    # As many moves as there are pages on the other node now: none was moved twice, none in vain. (A few pages of its
    # files may have been there before.)
    found = measure.measure(ROOT, child.popen.pid, THREE_TO_ONE)
    away, back = (sum(result.moved.get(way, (0, 0))[1] for result in results) for way in ((0, 1), (1, 0)))
    assert away - back == found.bytes_by_node[1] - before.get(1, 0)
    assert back <= before.get(1, 0)
    assert moved(results) == sum(result.planned for result in results)
    assert failed(results) == {}
    assert found.distance < 0.005

    again = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    assert sum(result.planned for result in again) == 0
    assert moved(again) == 0
    assert sum(result.examined for result in again) >= 65536
    assert child.verdict() == "intact"


def test_an_allowance_is_kept(children: list[Child]) -> None:
    child = Child(16, "small")
    children.append(child)
    mover = ProcessPass(ROOT, child.process, THREE_TO_ONE)
    results = run(mover, 100 * 4096)
    assert max(result.bytes_moved for result in results) <= 100 * 4096
    assert (child.nodes() == 1).mean() == 0.25
    nothing = ProcessPass(ROOT, child.process, targets.all_of(plan.ratio({0: 1, 1: 1}))).step(0)
    assert nothing.bytes_moved == 0
    assert nothing.needs == 4096
    assert not nothing.done


def test_huge_pages_move_whole(children: list[Child]) -> None:
    child = Child(128, "huge")
    children.append(child)
    before = child.huge_kib()
    assert before >= 128 << 10
    # Not its heap: the kernel splits a huge page of which a part was given back.
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE, within=child.span))
    nodes = child.nodes().reshape(-1, 512)
    assert (nodes == nodes[:, :1]).all()
    assert abs(int((nodes[:, 0] == 1).sum()) - 16) <= 1
    assert child.huge_kib() == before
    assert failed(results) == {}
    assert moved(run(ProcessPass(ROOT, child.process, THREE_TO_ONE, within=child.span))) == 0
    assert child.verdict() == "intact"


@pytest.mark.parametrize("weights", [{0: 40, 1: 17}, {0: 60, 1: 1}])
def test_huge_pages_that_lie_right_stay_though_a_window_is_longer_than_a_chunk(
    children: list[Child], weights: dict[int, int]
) -> None:
    """A chunk is 32 huge pages. What the kernel interleaved, by any phase, is right."""
    child = Child(256, "huge")
    children.append(child)
    heads = child.addresses[::512]
    laid = np.resize(np.roll(np.repeat([0, 1], list(weights.values())), 5), len(heads))
    assert pages.move(child.popen.pid, heads[laid == 1], 1).result == 0
    assert (child.nodes()[::512] == laid).all()
    share, within = targets.all_of(plan.ratio(weights)), (int(heads[0]), int(heads[-1]) + (2 << 20))
    windows, rest = divmod(len(heads), sum(weights.values()))
    results = run(ProcessPass(ROOT, child.process, share, within=within))
    # What is left at the end is rounded: no further off than one piece of the laying can be.
    assert moved(results) <= 512 * rest
    after = child.nodes()[::512][: windows * sum(weights.values())]
    assert (after == laid[: len(after)]).all()
    # From one node as well it is as many as lack.
    assert pages.move(child.popen.pid, heads[child.nodes()[::512] == 1], 0).result == 0
    assert moved(run(ProcessPass(ROOT, child.process, share, within=within))) // 512 in (
        windows * weights[1] + rest * weights[1] // sum(weights.values()),
        windows * weights[1] + rest * weights[1] // sum(weights.values()) + 1,
    )
    assert moved(run(ProcessPass(ROOT, child.process, share, within=within))) == 0
    assert child.verdict() == "intact"


def test_folios_between_move_whole(children: list[Child]) -> None:
    """64 KiB folios, mapped page by page: nothing in page tables tells them from small pages.

    Its heap is left out: where that has given back a part of such a folio, the kernel splits it as it moves (6.10), and
    gives back those of its pages that are all zeros (6.12), so that there is something else to plan the next time.
    """
    settings = Path("/sys/kernel/mm/transparent_hugepage")
    sizes = {"hugepages-64kB": "always", "hugepages-2048kB": "never"}
    before = {size: _chosen((settings / size / "enabled").read_text()) for size in sizes}
    try:
        for size, value in sizes.items():
            (settings / size / "enabled").write_text(value)
        child = Child(64, "plain")
    finally:
        for size, value in before.items():
            (settings / size / "enabled").write_text(value)
    children.append(child)
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE, within=child.span))
    nodes = child.nodes().reshape(-1, 16)
    assert (nodes == nodes[:, :1]).all()
    assert abs(int((nodes[:, 0] == 1).sum()) - 256) <= 1
    assert failed(results) == {}
    assert moved(run(ProcessPass(ROOT, child.process, THREE_TO_ONE, within=child.span))) == 0
    assert child.verdict() == "intact"


def test_huge_pages_with_holes_move_whole(children: list[Child]) -> None:
    child = Child(64, "holed")
    children.append(child)
    assert child.huge_kib() < 32 << 10
    run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    nodes = child.nodes().reshape(-1, 512)
    assert (nodes[:, 7] < 0).all()
    mapped = np.delete(nodes, 7, axis=1)
    assert (mapped == mapped[:, :1]).all()
    assert abs(int((mapped[:, 0] == 1).sum()) - 8) <= 1
    assert child.verdict() == "intact"


@pytest.mark.lab(kernel="6.1")
@pytest.mark.lab
def test_what_is_left_of_huge_pages_is_paid_for_as_the_whole(children: list[Child]) -> None:
    """Before 6.10 the kernel moves all of a folio of which a page is mapped: a page of 4 KiB takes 2 MiB."""
    child = Child(64, "remnant")
    children.append(child)
    mover = ProcessPass(ROOT, child.process, targets.all_of(plan.within([1])), within=child.span)
    before = zoneinfo.node_vmstat(ROOT, 1)["nr_free_pages"]
    while not (result := mover.step(4 << 20)).bytes_moved:
        assert not result.done
    taken = before - zoneinfo.node_vmstat(ROOT, 1)["nr_free_pages"]
    assert taken * 4096 < result.bytes_moved + (4 << 20)
    assert (child.nodes() == 1).sum() * HUGE == result.bytes_moved <= 4 << 20
    results = run(mover)
    assert failed(results) == {}
    assert (child.nodes() == 1).sum() == 32
    assert child.verdict() == "intact"


def test_a_mask_takes_what_is_outside(children: list[Child]) -> None:
    child = Child(16, "small")
    children.append(child)
    assert moved(run(ProcessPass(ROOT, child.process, targets.all_of(plan.within([0, 1]))))) == 0
    results = run(ProcessPass(ROOT, child.process, targets.all_of(plan.within([1]))))
    assert (child.nodes() == 1).all()
    # All its own memory went along; what is left on node 0 it shares with other programs.
    found = measure.measure(ROOT, child.popen.pid, THREE_TO_ONE)
    assert set(found.bytes_by_node) == {1}, (found, failed(results))
    assert child.verdict() == "intact"


def test_a_nearly_full_node_stops_the_pass(children: list[Child]) -> None:
    kills = _vmstat("oom_kill")
    marks = zoneinfo.watermarks(ROOT)[1]
    child = Child(256, "small")
    children.append(child)
    # What earlier tests read would count as room.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    spare = 24 << 20
    children.append(Child((headroom.Headroom(ROOT).room(1) * 4096 - spare) >> 20, "ballast", node=1))
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    counts = failed(results)
    assert counts["node-full"] > 0
    assert 0 < moved(results) < 16384
    assert zoneinfo.node_vmstat(ROOT, 1)["nr_free_pages"] > marks.high
    assert _vmstat("oom_kill") == kills
    assert all(each.popen.poll() is None for each in children)
    assert child.verdict() == "intact"


def test_pages_shared_with_a_child_are_left(children: list[Child]) -> None:
    child = Child(8, "small", "fork")
    children.append(child)
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    assert (child.nodes() == 0).all()
    counts = failed(results)
    assert counts["shared"] >= 512
    assert set(counts) == {"shared"}
    assert child.verdict() == "intact"


def test_pinned_pages_are_given_up_and_the_others_moved(children: list[Child]) -> None:
    child = Child(8, "small", "pin")
    children.append(child)
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    nodes = child.nodes()
    assert (nodes[:16] == 0).all()
    assert failed(results) == {"busy": 4}
    assert int((nodes == 1).sum()) == 512 - 4
    again = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    assert moved(again) == 0
    assert failed(again) == {"busy": 4}
    assert child.verdict() == "intact"


def test_locked_pages_move(children: list[Child]) -> None:
    child = Child(8, "small", "lock")
    children.append(child)
    results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
    assert int((child.nodes() == 1).sum()) == 512
    assert failed(results) == {}
    assert child.verdict() == "intact"


def test_a_process_that_ends_meanwhile(children: list[Child]) -> None:
    child = Child(16, "small")
    children.append(child)
    mover = ProcessPass(ROOT, child.process, THREE_TO_ONE)
    waiting = mover.step(4096)
    assert waiting.needs == 4096
    child.popen.kill()
    child.popen.wait()
    last = mover.step(64 << 20)
    assert (last.done, last.gone) == (True, True)
    assert last.failed["gone"] > 0
    assert mover.step(64 << 20).done


def test_a_cpuset_refuses(children: list[Child]) -> None:
    child = Child(8, "small")
    children.append(child)
    hierarchy = Path("/sys/fs/cgroup")
    (hierarchy / "cgroup.subtree_control").write_text("+cpuset")
    group = hierarchy / "memory-test"
    group.mkdir(exist_ok=True)
    try:
        (group / "cpuset.mems").write_text("0")
        (group / "cgroup.procs").write_text(str(child.popen.pid))
        results = run(ProcessPass(ROOT, child.process, THREE_TO_ONE))
        assert set(failed(results)) == {"cpuset"}
        assert moved(results) == 0
        assert child.verdict() == "intact"
    finally:
        child.popen.kill()
        child.popen.wait()
        group.rmdir()


def _chosen(text: str) -> str:
    """`always [inherit] never` to `inherit`."""
    return text.split("[")[1].split("]", 1)[0]


def _vmstat(name: str) -> int:
    return next(int(line.split()[1]) for line in ROOT.read_text("/proc/vmstat").splitlines() if line.split()[0] == name)

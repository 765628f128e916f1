"""Regions, presence and folios of a real process whose layout is known."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hetmemd.kernel import folios, pages, procfs
from hetmemd.kernel.pagemap import Pagemap, Presence
from hetmemd.kernel.root import Root
from hetmemd.memory import measure, plan, regions, targets
from hetmemd.memory.rebalance import ProcessPass
from hetmemd.memory.regions import Region
from hetmemd.memory.sample import sample

pytestmark = pytest.mark.root
ROOT = Root()
ON_NODE_0 = targets.all_of(plan.ratio({0: 1}))
TARGET = Path(__file__).with_name("memory_layout.py")


class Layout(NamedTuple):
    popen: subprocess.Popen[str]
    spans: dict[str, tuple[int, int]]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def region(self, name: str) -> Region:
        start = self.spans[name][0]
        return next(region for region in regions.read(ROOT, self.pid) if region.start <= start < region.end)


@pytest.fixture(scope="module")
def layout() -> Generator[Layout, None, None]:
    # On a disk: /tmp can be a tmpfs, whose files are memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield from _started(Path(folder))


def _started(folder: Path) -> Generator[Layout, None, None]:
    (folder / "file").write_bytes(bytes(4 * 4096))
    in_memory = Path("/dev/shm") / f"hetmemd-test-{folder.name}"
    in_memory.write_bytes(bytes(4 * 4096))
    command = [sys.executable, str(TARGET), str(folder / "file"), str(in_memory)]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert popen.stdout
        yield Layout(popen, {name: (span[0], span[1]) for name, span in json.loads(popen.stdout.readline()).items()})
    finally:
        popen.kill()
        popen.communicate()
        in_memory.unlink()


@pytest.mark.parametrize(
    ("name", "kind", "left_out"),
    [
        ("scattered", "anon", ""),
        ("zero", "anon", ""),
        ("shared", "shm", "shm"),
        ("code", "exec", ""),
        ("private-file", "file", ""),
        ("shared-file", "file", "shared"),
        ("tmpfs", "shm", "shm"),
        ("bound", "anon", "bound"),
        ("whole", "anon", ""),
        ("thread", "stack", ""),
        ("busy", "stack", ""),
        ("memfd", "shm", "shm"),
        ("guard", "guard", "guard"),
        ("protected", "anon", ""),
    ],
)
def test_kinds(layout: Layout, name: str, kind: str, left_out: str) -> None:
    region = layout.region(name)
    assert (region.kind, region.left_out) == (kind, left_out)


def test_the_process_own_regions(layout: Layout) -> None:
    found = {region.name: region for region in regions.read(ROOT, layout.pid)}
    assert found["[heap]"].kind == "heap"
    assert found["[stack]"].kind == "stack"
    assert found["[vdso]"].left_out == "special"
    libc = [region for name, region in found.items() if "/libc.so" in name]
    assert all(region.left_out == "shared" for region in libc if region.mapmax > 1)


def test_scattered_pages_are_counted(layout: Layout) -> None:
    assert layout.region("scattered").pages == 32
    assert layout.region("shared").pages_by_node == {0: 4}


def test_the_measurement_is_the_sum_of_the_regions(layout: Layout) -> None:
    found = measure.measure(ROOT, layout.pid, targets.all_of(plan.ratio({0: 3, 1: 1})))
    acted_on = [region for region in regions.read(ROOT, layout.pid) if not region.left_out]
    assert sum(found.bytes_by_node.values()) == sum(region.pages for region in acted_on) * 4096
    assert found.left_out["shm"][0] >= 8 * 4096
    assert found.left_out["bound"][0] == 4 * 4096
    assert found.distance == pytest.approx(0.25)
    assert measure.measure(ROOT, layout.pid, ON_NODE_0).distance == 0


def present(layout: Layout, name: str, scan: bool, most: int = 1 << 20) -> list[Presence]:
    start, length = layout.spans[name]
    end = start + max(length, 64 * 4096 if name == "scattered" else 0)
    found = []
    with Pagemap(ROOT, layout.pid) as pagemap:
        pagemap.can_scan = scan
        while start < end:
            found.append(pagemap.present(start, end, most))
            assert start < found[-1].next <= end
            start = found[-1].next
    return found


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "read"])
def test_presence(layout: Layout, scan: bool) -> None:
    start, _ = layout.spans["scattered"]
    found = present(layout, "scattered", scan)
    assert np.concatenate([each.addresses for each in found]).tolist() == [start + place * 8192 for place in range(32)]
    assert all((each.sizes == 1).all() for each in found)


def test_zero_pages_are_not_there(layout: Layout) -> None:
    assert sum(len(each.addresses) for each in present(layout, "zero", True)) == 0


def test_a_huge_page_is_one_entry(layout: Layout) -> None:
    start, length = layout.spans["whole"]
    known = folios.Frames(ROOT)
    with Pagemap(ROOT, layout.pid) as pagemap:
        found = pagemap.present(start, start + length, 1)
        if not pagemap.can_scan:  # before 6.7
            found = folios.gather(pagemap, known, found)
    known.close()
    assert found.addresses.tolist() == [start]
    assert found.sizes.tolist() == [512]


def test_huge_pages_that_are_not_wholly_within_are_left_out(layout: Layout) -> None:
    start, length = layout.spans["whole"]
    with Pagemap(ROOT, layout.pid) as pagemap:
        both = pagemap.present(start, start + 2 * length, 1)
        later = pagemap.present(start + 4096, start + 2 * length, 1)
        earlier = pagemap.present(start, start + 2 * length - 4096, 1)
        if not pagemap.can_scan:
            pytest.skip("this kernel tells of no huge pages")
    assert both.addresses.tolist() == [start, start + length]
    assert later.addresses.tolist() == [start + length]
    assert earlier.addresses.tolist() == [start]


@pytest.mark.parametrize(("name", "mapped", "first"), [("whole", 512, 0), ("holed", 505, 0), ("remnant", 2, 100)])
def test_a_folio_mapped_page_by_page_is_one_entry(layout: Layout, name: str, mapped: int, first: int) -> None:
    """Of its own size: the kernel moves all of it."""
    start, length = layout.spans[name]
    with Pagemap(ROOT, layout.pid) as pagemap:
        # As a kernel without the ioctl sees it: page by page.
        pagemap.can_scan = name != "whole"
        found = pagemap.present(start, start + length, 512)
        assert found.sizes.tolist() == [1] * mapped
        known = folios.Frames(ROOT)
        gathered = folios.gather(pagemap, known, found)
        known.close()
    assert gathered.addresses.tolist() == [start + first * 4096]
    assert gathered.sizes.tolist() == [512]


def test_small_pages_stay_alone(layout: Layout) -> None:
    start, _ = layout.spans["scattered"]
    known = folios.Frames(ROOT)
    with Pagemap(ROOT, layout.pid) as pagemap:
        found = pagemap.present(start, start + 64 * 4096, 512)
        assert folios.gather(pagemap, known, found).sizes.tolist() == [1] * 32
    known.close()


def test_query(layout: Layout) -> None:
    start, _ = layout.spans["scattered"]
    addresses = np.arange(start, start + 64 * 4096, 4096, dtype=np.int64)
    # Every second page was never touched; a strided view must not be taken for what lies between.
    assert (pages.query(layout.pid, addresses[::2]) == 0).all()
    assert (pages.query(layout.pid, addresses[1::2]) < 0).all()
    assert (pages.query(layout.pid, addresses)[::2] == 0).all()


def test_a_sample_finds_what_is_there(layout: Layout) -> None:
    """Every second page of one range is there, all pages of another, on the only node; none of a third."""
    starts = [layout.spans[name][0] for name in ("scattered", "whole", "zero")]
    target = plan.ratio({0: 1})
    spans = [
        targets.Span(start, start + 4096 * count, target) for start, count in zip(starts, (64, 512, 8), strict=True)
    ]
    found = sample(layout.pid, spans, np.random.default_rng(1))
    assert set(found.counts) == {0}
    assert found.found == pytest.approx(4096 * (32 + 512) / (64 + 512 + 8), rel=0.05)
    assert found.is_within(plan.ratio({0: 1}), 0.02) is True
    assert found.is_within(plan.ratio({0: 3, 1: 1}), 0.02) is False
    assert sample(layout.pid, [], np.random.default_rng(1)).found == 0


def test_a_pass_over_what_is_right_moves_nothing(layout: Layout) -> None:
    process = procfs.identify(ROOT, layout.pid)
    for target in (plan.ratio({0: 1}), plan.within([0])):
        mover = ProcessPass(ROOT, process, targets.all_of(target))
        results = [mover.step(1 << 30)]
        while not results[-1].done:
            results.append(mover.step(1 << 30))
        assert sum(result.planned for result in results) == 0
        assert sum(result.bytes_moved for result in results) == 0
        examined = sum(result.examined for result in results) * 4096
        assert examined == pytest.approx(
            sum(measure.measure(ROOT, layout.pid, ON_NODE_0).bytes_by_node.values()), rel=0.05
        )


def test_a_node_that_is_not_there_takes_nothing(layout: Layout) -> None:
    process = procfs.identify(ROOT, layout.pid)
    mover = ProcessPass(ROOT, process, targets.all_of(plan.ratio({0: 1, 900: 1})))
    results = [mover.step(1 << 30)]
    while not results[-1].done:
        results.append(mover.step(1 << 30))
    assert sum(result.bytes_moved for result in results) == 0
    assert sum(result.failed.get("node-full", 0) for result in results) > 0


def test_another_process_under_the_same_pid_is_not_touched(layout: Layout) -> None:
    process = procfs.identify(ROOT, layout.pid)
    result = ProcessPass(ROOT, process._replace(start=process.start + 1), ON_NODE_0).step(1 << 30)
    assert (result.done, result.gone, result.examined) == (True, True, 0)


def test_a_process_that_ended_is_gone() -> None:
    ended = subprocess.Popen(["true"])
    process = procfs.identify(ROOT, ended.pid)
    mover = ProcessPass(ROOT, process, ON_NODE_0)
    # It is not reaped yet: a zombie.
    while procfs.stat(ROOT, ended.pid).state != "Z":
        pass
    assert mover.step(0).gone
    ended.wait()
    result = ProcessPass(ROOT, process, ON_NODE_0).step(0)
    assert (result.done, result.gone) == (True, True)


DEAD_LEADER = """
import ctypes, threading, sys, time
def go():
    tid = threading.get_native_id()
    while open(f"/proc/self/task/{main}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    print(tid, flush=True)
    sys.stdin.readline()
main = threading.get_native_id()
threading.Thread(target=go).start()
ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_dead_leader_has_living_threads() -> None:
    popen = subprocess.Popen(
        [sys.executable, "-c", DEAD_LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert popen.stdout
        tid = int(popen.stdout.readline())
        assert procfs.living_thread(ROOT, popen.pid) == tid
        assert regions.read(ROOT, popen.pid) == []
        assert measure.measure(ROOT, popen.pid, ON_NODE_0, tid).bytes_by_node[0] > 0
        mover = ProcessPass(ROOT, procfs.identify(ROOT, popen.pid), ON_NODE_0)
        results = [mover.step(0)]
        while not results[-1].done:
            results.append(mover.step(0))
        assert not results[-1].gone
        assert sum(result.examined for result in results) > 0
    finally:
        popen.kill()
        popen.communicate()

"""Classes of regions, and what is left out of a measurement, from /proc's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.memory import measure, plan, regions, targets

MAPS = """\
300000-301000 ---p 00000000 00:00 0
400000-410000 r-xp 00000000 fe:00 10                         /usr/bin/app
500000-580000 rw-p 00000000 00:00 0                          [heap]
7efffffff000-7f0000000000 ---p 00000000 00:00 0
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
7f0000200000-7f0000400000 rw-p 00000000 00:00 0
7f0000400000-7f0000410000 r-xp 00000000 fe:00 11                         /usr/lib/libc.so.6
7f0000500000-7f0000510000 rw-s 00000000 00:2f 12                         /run/app/buffer
7f0000600000-7f0000a00000 rw-p 00000000 00:0f 13                         /anon_hugepage (deleted)
7f0000b00000-7f0000b10000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0                          [vdso]
"""
NUMA_MAPS = """\
00300000 bind:0
00400000 interleave=static:0-1 file=/usr/bin/app mapped=10 N0=10 kernelpagesize_kB=4
00500000 interleave=static:0-1 heap anon=100 dirty=100 N0=60 N1=40 kernelpagesize_kB=4
7efffffff000 interleave=static:0-1
7f0000000000 interleave=static:0-1 anon=512 dirty=512 mapmax=2 N1=512 kernelpagesize_kB=4
7f0000200000 bind:1 anon=5 dirty=5 N1=5 kernelpagesize_kB=4
7f0000400000 interleave=static:0-1 file=/usr/lib/libc.so.6 mapped=16 mapmax=40 N0=16 kernelpagesize_kB=4
7f0000500000 interleave=static:0-1 file=/run/app/buffer dirty=3 N0=3 kernelpagesize_kB=4
7f0000600000 interleave=static:0-1 file=/anon_hugepage huge anon=2 dirty=2 N0=1 N1=1 kernelpagesize_kB=2048
7f0000700000 default
7ffc00000000 interleave=static:0-1
"""
MOUNTINFO = """\
20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
21 20 0:47 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=10%
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    process = tmp_path / "proc/7"
    (process / "task/7").mkdir(parents=True)
    for name, text in (("maps", MAPS), ("numa_maps", NUMA_MAPS), ("mountinfo", MOUNTINFO)):
        (process / name).write_text(text)
    (process / "task/8").mkdir()
    (process / "task/8/syscall").write_text("202 0x1 0x2 0x3 0x4 0x5 0x6 0x7f0000000ff0 0x400123\n")
    (process / "task/9").mkdir()
    (process / "task/9/syscall").write_text("running\n")
    return Root(tmp_path)


def test_regions(root: Root) -> None:
    found = regions.read(root, 7)
    assert [(region.kind, region.left_out, region.pages) for region in found] == [
        ("guard", "guard", 0),
        ("exec", "", 10),
        ("heap", "", 100),
        ("guard", "guard", 0),
        ("stack", "", 512),
        ("anon", "bound", 5),
        ("exec", "shared", 16),
        ("shm", "shm", 3),
        ("hugetlb", "hugetlb", 1024),
        ("special", "special", 0),
    ]
    assert found[1].size == 0x10000
    assert found[8].page_size == 2 << 20


@pytest.fixture
def status(root: Root) -> None:
    root.path("/proc/7/status").write_text("Name:\tapp\nVmSwap:\t      12 kB\n")


@pytest.mark.usefixtures("status")
def test_measurement(root: Root) -> None:
    found = measure.measure(root, 7, targets.all_of(plan.ratio({0: 1})))
    assert found.bytes_by_node == {0: 70 * 4096, 1: 552 * 4096}
    assert found.left_out == {
        "bound": {1: 5 * 4096},
        "shared": {0: 16 * 4096},
        "shm": {0: 3 * 4096},
        "hugetlb": {0: 2 << 20, 1: 2 << 20},
    }
    assert found.swapped == 12 * 1024
    assert found.distance == pytest.approx(552 / 622)


@pytest.mark.usefixtures("status")
def test_each_region_is_held_against_its_own_target(root: Root) -> None:
    """The heap (60, 40) against 1:1, the stack (0, 512) against node 0, and of the rest nothing."""
    by_kind: dict[str, plan.Target] = {"heap": plan.ratio({0: 1, 1: 1}), "stack": plan.within([0])}
    found = measure.measure(root, 7, lambda region: by_kind.get(region.kind))
    assert found.bytes_by_node == {0: 60 * 4096, 1: 552 * 4096}
    assert found.misplaced == pytest.approx((10 + 512) * 4096)
    assert found.left_out["unasked"] == {0: 10 * 4096}


@pytest.mark.usefixtures("status")
def test_what_others_map_takes_part_where_they_may_all_agree(root: Root) -> None:
    """`shared = "move"`: libc's pages are mapped 40 times, the buffer's once."""
    target = plan.ratio({0: 1})
    for mappers, left_out in ((0, {"shm", "shared"}), (1, {"shared"}), (39, {"shared"}), (40, set())):
        found = measure.measure(root, 7, targets.all_of(target, mappers))
        assert set(found.left_out) & {"shm", "shared"} == left_out


def test_a_process_that_is_not_there(root: Root) -> None:
    with pytest.raises(FileNotFoundError):
        measure.measure(root, 8, targets.all_of(plan.ratio({0: 1})))

"""Which shared and which huge memory may be bound, from small trees."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from hetmemd.engine import clearance as module
from hetmemd.engine.clearance import Clearance
from hetmemd.engine.regionwise import Asked
from hetmemd.kernel import maps
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root
from hetmemd.memory.regions import Region
from hetmemd.memory.scope import scope

HUGE = 2 << 20
BIND = Asked(Mempolicy(Mode.BIND, frozenset({1}), Flag.STATIC_NODES), scope(("shm", "hugetlb")))
OTHER = Asked(Mempolicy(Mode.BIND, frozenset({0}), Flag.STATIC_NODES), scope(("shm", "hugetlb")))
NODES = frozenset({0, 1})


def process(top: Path, pid: int, cgroup: str, maps: str) -> None:
    folder = top / f"proc/{pid}"
    folder.mkdir(parents=True)
    (folder / "maps").write_text(maps)
    (folder / "cgroup").write_text(f"0::{cgroup}\n")


def line(inode: int, permissions: str = "rw-s") -> str:
    return f"7f0000000000-7f0000004000 {permissions} 00000000 00:01 {inode} /memfd:x (deleted)\n"


def shared(inode: int) -> Region:
    return Region(
        0x7F0000000000, 0x7F0000004000, "shm", "/memfd:x", DEFAULT, False, {}, 4096, True, 1, file=("00:01", inode)
    )


def clearance(top: Path) -> Clearance:
    wishes = {"/a": BIND, "/b": BIND, "/c": OTHER}
    return Clearance(Root(top), lambda path: wishes.get(path, Asked(None, scope(("all",)))))


def test_shared_memory_where_all_who_map_it_want_the_same(tmp_path: Path) -> None:
    process(tmp_path, 10, "/a", line(1) + line(2) + line(3) + line(4))
    process(tmp_path, 11, "/b", line(1) + line(4, "r-xs"))
    process(tmp_path, 12, "/c", line(2))
    process(tmp_path, 13, "/elsewhere", line(3))
    found = [clearance(tmp_path).cleared([shared(inode)], BIND, NODES) for inode in (1, 2, 3, 4, 5)]
    assert [bool(starts) for starts in found] == [True, False, False, False, False]


def test_where_not_all_can_be_looked_into_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, 10, "/a", line(1))
    process(tmp_path, 11, "/elsewhere", line(2))
    read = maps.read

    def without_the_right(root: Root, pid: int, tid: int | None = None) -> list[maps.Mapping]:
        if pid == 11:
            raise PermissionError(errno.EACCES, "", "maps")
        return read(root, pid, tid)

    assert clearance(tmp_path).cleared([shared(1)], BIND, NODES)
    monkeypatch.setattr(maps, "read", without_the_right)
    assert not clearance(tmp_path).cleared([shared(1)], BIND, NODES)
    assert not clearance(tmp_path).alone([shared(1)], 10)


def test_private_mappings_are_no_matter_of_others(tmp_path: Path) -> None:
    process(tmp_path, 10, "/a", line(1))
    process(tmp_path, 11, "/c", line(1, "rw-p"))
    assert clearance(tmp_path).cleared([shared(1)], BIND, NODES)


def test_shared_memory_that_nobody_else_maps(tmp_path: Path) -> None:
    process(tmp_path, 10, "/a", line(1) + line(2) + line(3, "r-xs"))
    process(tmp_path, 11, "/a", line(2))
    found = [clearance(tmp_path).alone([shared(inode)], 10) for inode in (1, 2, 3, 4)]
    assert [bool(starts) for starts in found] == [True, False, False, False]
    assert not clearance(tmp_path).alone([shared(1)], 12)


def test_a_process_that_goes_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    process(tmp_path, 10, "/a", line(1))
    (tmp_path / "proc/11").mkdir()
    assert clearance(tmp_path).cleared([shared(1)], BIND, NODES)


def huge(start: int, pages: int, there: int = 0) -> Region:
    return Region(start, start + pages * HUGE, "hugetlb", "", DEFAULT, False, {0: there * 512}, HUGE, False, 1)


@pytest.mark.parametrize(
    ("free", "regions", "expected"),
    [
        (4, [huge(0, 4)], {0}),
        (3, [huge(0, 4)], set()),
        (3, [huge(0, 4, there=1)], {0}),
        (4, [huge(0, 3), huge(HUGE * 8, 2), huge(HUGE * 16, 1)], {0, HUGE * 16}),
        (0, [huge(0, 2, there=2)], {0}),
    ],
)
def test_huge_pages_where_there_are_as_many_free(
    tmp_path: Path, free: int, regions: list[Region], expected: set[int]
) -> None:
    for node, count in ((0, 100), (1, free)):
        folder = tmp_path / f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{count}\n")
    assert clearance(tmp_path).cleared(regions, BIND, NODES) == expected


def pool(top: Path, reserved: int, *free: int) -> None:
    """Huge pages of 2 MiB that are free on node 0, 1, ..., and how many of them were promised."""
    for node, count in enumerate(free):
        folder = top / f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{count}\n")
    folder = top / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "resv_hugepages").write_text(f"{reserved}\n")


@pytest.mark.parametrize(("reserved", "is_cleared"), [(0, True), (3, True), (4, True), (5, False), (100, False)])
def test_huge_pages_that_others_were_promised_are_theirs(tmp_path: Path, reserved: int, is_cleared: bool) -> None:
    """Three of those that are promised are the process's own; one is left over."""
    pool(tmp_path, reserved, 100, 4)
    assert bool(clearance(tmp_path).cleared([huge(0, 4, there=1)], BIND, NODES)) == is_cleared


@pytest.mark.parametrize(
    ("mode", "bound", "reserved", "free", "bears"),
    [
        (Mode.BIND, "default", 4, 4, True),
        (Mode.BIND, "default", 4, 3, False),
        (Mode.BIND, "bind:0", 4, 3, True),
        (Mode.BIND, "default", 0, 3, True),
        (Mode.PREFERRED_MANY, "default", 4, 0, True),
        (Mode.WEIGHTED_INTERLEAVE, "default", 4, 0, True),
    ],
    ids=["enough", "too few", "of its own policy", "all touched", "falls back", "interleaves"],
)
def test_a_bind_of_the_task_leaves_it_its_huge_pages(
    tmp_path: Path, mode: Mode, bound: str, reserved: int, free: int, bears: bool
) -> None:
    pool(tmp_path, reserved, 100, free)
    process(tmp_path, 10, "/a", "7f0000000000-7f0000c00000 rw-p 00000000 00:01 5 /anon_hugepage (deleted)\n")
    pages = "file=/anon_hugepage\\040(deleted) huge anon=2 dirty=2 N0=2 kernelpagesize_kB=2048"
    for folder in (tmp_path / "proc/10", tmp_path / "proc/10/task/10"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "numa_maps").write_text(f"7f0000000000 {bound} {pages}\n7fff00000000 default\n")
        (folder / "maps").write_text(
            (tmp_path / "proc/10/maps").read_text() + "7fff00000000-7fff00002000 r-xp 0 00:00 0 [vdso]\n"
        )
        (folder / "stat").write_text(f"10 (db) S {' '.join(['0'] * 18)} 1007 4096 1\n")
        (folder / "mountinfo").write_text("")
    policy = Mempolicy(mode, frozenset({1}), Flag.STATIC_NODES)
    assert module.bears(Root(tmp_path), 10, policy, [NODES]) == bears


def test_huge_pages_of_a_size_that_is_not_known_are_left(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/node/node1/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "free_hugepages").write_text("100\n")
    known, unknown = huge(0, 1), replace(huge(HUGE * 8, 1), page_size=0)
    assert clearance(tmp_path).cleared([unknown, known], BIND, NODES) == {0}


def test_nothing_is_looked_at_that_the_policy_is_not_about(tmp_path: Path) -> None:
    asked = Asked(BIND.policy, scope(("heap",)))
    assert clearance(tmp_path).cleared([shared(1), huge(0, 1)], asked, NODES) == frozenset()

"""The cgroup tree by identity, on folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import cgroupfs
from hetmemd.kernel.root import Root
from hetmemd.tasks.tree import CgroupTree, Changes

MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def machine(top: Path, *paths: str) -> Path:
    (top / "proc/self").mkdir(parents=True)
    (top / "proc/self/mountinfo").write_text(MOUNT)
    mount = top / "sys/fs/cgroup"
    mount.mkdir(parents=True)
    for path in paths:
        (mount / path).mkdir(parents=True)
    return mount


def paths(changes: Changes) -> tuple[set[str], set[str]]:
    return {cgroup.path for cgroup in changes.appeared}, {cgroup.path for cgroup in changes.vanished}


def test_scan(tmp_path: Path) -> None:
    mount = machine(tmp_path, "a/b", "c")
    (mount / "cgroup.procs").write_text("1\n")
    tree = CgroupTree(Root(tmp_path))
    assert paths(tree.scan()) == ({"/", "/a", "/a/b", "/c"}, set())
    assert tree.by_path["/"].parent is None
    assert tree.by_path["/a/b"].parent == tree.by_path["/a"].id
    assert tree.by_id[(mount / "a/b").stat().st_ino].path == "/a/b"
    assert [cgroup.path for cgroup in tree.children(tree.by_path["/a"])] == ["/a/b"]
    assert paths(tree.scan()) == (set(), set())


def test_look_keeps_to_its_subtree(tmp_path: Path) -> None:
    mount = machine(tmp_path, "a", "c")
    tree = CgroupTree(Root(tmp_path))
    tree.scan()
    (mount / "a/new").mkdir()
    (mount / "c/new").mkdir()
    assert paths(tree.look("/a")) == ({"/a/new"}, set())
    assert paths(tree.look("/c/new")) == ({"/c/new"}, set())
    shutil.rmtree(mount / "a")
    assert paths(tree.look("/a")) == (set(), {"/a", "/a/new"})
    assert set(tree.by_path) == {"/", "/c", "/c/new"}
    assert tree.children(tree.by_path["/"]) == [tree.by_path["/c"]]


def test_an_unknown_parent_is_looked_for_first(tmp_path: Path) -> None:
    mount = machine(tmp_path)
    tree = CgroupTree(Root(tmp_path))
    (mount / "a/b/c").mkdir(parents=True)
    assert paths(tree.look("/a/b/c")) == ({"/", "/a", "/a/b", "/a/b/c"}, set())
    assert paths(tree.look("/x/y")) == (set(), set())


def test_a_name_that_is_used_again_is_another_cgroup(tmp_path: Path) -> None:
    mount = machine(tmp_path, "a/b")
    tree = CgroupTree(Root(tmp_path))
    tree.scan()
    before = tree.by_path["/a"], tree.by_path["/a/b"]
    # The old one is kept under another name: an ordinary filesystem would use its number again.
    (mount / "a").rename(tmp_path / "kept")
    (mount / "a/b").mkdir(parents=True)
    changes = tree.look("/a")
    after = tree.by_path["/a"], tree.by_path["/a/b"]
    assert set(changes.vanished) == set(before)
    assert set(changes.appeared) == set(after)
    assert {cgroup.id for cgroup in before}.isdisjoint(cgroup.id for cgroup in after)
    assert set(tree.by_id) == {tree.by_path["/"].id, *(cgroup.id for cgroup in after)}


def test_hostile_names(tmp_path: Path) -> None:
    mount = machine(tmp_path)
    (mount / os.fsdecode(b"\xff\xfe \x1b/[*]")).mkdir(parents=True)
    tree = CgroupTree(Root(tmp_path))
    tree.scan()
    path = os.fsdecode(b"/\xff\xfe \x1b/[*]")
    assert os.fsencode(tree.by_path[path].path) == b"/\xff\xfe \x1b/[*]"
    assert paths(tree.look(path)) == (set(), set())


def test_links_are_no_cgroups(tmp_path: Path) -> None:
    mount = machine(tmp_path, "a")
    (mount / "link").symlink_to("a")
    tree = CgroupTree(Root(tmp_path))
    assert "/link" not in {cgroup.path for cgroup in tree.scan().appeared}


def test_a_path_that_is_too_long_is_said_and_does_not_stop_the_scan(tmp_path: Path) -> None:
    """Nothing limits the depth of cgroups, but open(2) takes no more than 4096 bytes."""
    mount = machine(tmp_path, "plain")
    here = os.open(mount, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 255, dir_fd=here)
        below = os.open("x" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    tree = CgroupTree(Root(tmp_path))
    tree.scan()
    assert "/plain" in tree.by_path
    assert list(tree.unreadable.values()) == ["File name too long"]
    tree.scan()
    assert len(tree.unreadable) == 1


def test_without_a_mount(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("")
    with pytest.raises(cgroupfs.NoCgroup2):
        CgroupTree(Root(tmp_path))


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "/d", "/e"]), st.booleans()), max_size=12))
def test_what_it_says_adds_up(steps: list[tuple[str, str, bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever happens between looks: what was there, plus what appeared, minus what vanished, is what is there."""
    top = tmp_path_factory.mktemp("tree")
    mount = machine(top)
    tree = CgroupTree(Root(top))
    known = {cgroup.id: cgroup for cgroup in tree.scan().appeared}
    for name, below, make in steps:
        if make:
            (mount / f"{name}{below}").mkdir(parents=True, exist_ok=True)
        else:
            shutil.rmtree(mount / name, ignore_errors=True)
        changes = tree.look(f"/{name}")
        for cgroup in changes.vanished:
            del known[cgroup.id]
        for cgroup in changes.appeared:
            assert cgroup.id not in known
            known[cgroup.id] = cgroup
        there = {"/", *(f"/{each.relative_to(mount)}" for each in mount.rglob("*"))}
        assert {cgroup.path for cgroup in known.values()} == there == set(tree.by_path)
        assert known == tree.by_id

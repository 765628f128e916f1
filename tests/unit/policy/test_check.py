"""What `check` says of files: every fault, and what is doubtful on the machine at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.policy.check import check_files
from hetmemd.policy.faults import Caution, Fault
from tests.unit.machine.sysfs import DRAM_AND_CXL, FakeNode, build
from tests.unit.policy.given import policy, write

ETC, USR = "/etc/hetmemd.d", "/usr/lib/hetmemd.d"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A machine with two nodes and the cgroups /a and /a/b."""
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    return build(tmp_path, DRAM_AND_CXL)


def put(top: Path, path: str, content: str) -> Path:
    return write(top / path.lstrip("/"), content)


def said(top: Path, *paths: Path) -> list[str]:
    return [str(finding) for finding in check_files(Root(top), [str(path) for path in paths] or None)]


def test_nothing_is_wrong(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a", "weighted-interleave", "all", weights="bandwidth"))
    assert said(top) == []


def test_faults_of_all_files(top: Path) -> None:
    put(top, f"{ETC}/20.toml", "x = 1\ny = 2\n")
    put(top, f"{ETC}/10.toml", "[[policy]]\n")
    found = check_files(Root(top))
    assert [(type(each), each.file, each.line) for each in found if isinstance(each, Fault)] == [
        (Fault, f"{ETC}/10.toml", 1),
        (Fault, f"{ETC}/20.toml", 1),
        (Fault, f"{ETC}/20.toml", 2),
    ]


def test_a_node_that_does_not_exist(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a", "interleave", "0-3"))
    assert said(top) == [
        f"{ETC}/50.toml:4: warning: there is no memory node 2-3 on this machine "
        "(it has 0-1; what does not exist is cut (I6))"
    ]


def test_weights_for_nodes_that_get_nothing(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a", "weighted-interleave", "0", weights={"0": 3, "1,5": 2, "cpuless": 1}))
    assert said(top) == [
        f"{ETC}/50.toml:5: warning: weights name node 1,5, which is not among nodes (such a weight does nothing)"
    ]
    put(top, f"{ETC}/50.toml", policy("/a", "weighted-interleave", "dram", weights={"0": 3, "1,5": 2}))
    assert said(top) == []


def test_a_home_node_that_does_not_exist(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a", "bind", "0-1", home_node=5))
    assert said(top) == [f"{ETC}/50.toml:5: warning: there is no node 5 on this machine (it is left out (I6))"]


def test_a_pattern_that_matches_nothing(top: Path) -> None:
    put(top, f"{ETC}/50.toml", "\n" + policy("/x*"))
    assert said(top) == [
        f"{ETC}/50.toml:3: warning: '/x*' matches no cgroup that exists now (it will where one appears (M2))"
    ]


def test_a_table_that_holds_nowhere(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a", nodes="0") + policy("/a", nodes="1"))
    assert said(top) == [f"{ETC}/50.toml:2: warning: holds nowhere: {ETC}/50.toml:5 is a later table of the file (M1)"]


def test_a_table_that_holds_somewhere_is_no_matter(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/**", nodes="0") + policy("/a/b", nodes="1"))
    assert said(top) == []


def test_masked_files(top: Path) -> None:
    put(top, f"{ETC}/50.toml", policy("/a"))
    put(top, f"{USR}/50.toml", policy("/a", nodes="9"))
    assert said(top) == [f"{USR}/50.toml:1: warning: masked by {ETC}/50.toml: nothing of it holds (F1)"]


def test_a_broken_file_that_masks_nothing(top: Path) -> None:
    put(top, f"{ETC}/50.toml", "x = 1\n")
    put(top, f"{USR}/50.toml", policy("/a"))
    assert f"{ETC}/50.toml:1: warning: was never good, so it does not mask {USR}/50.toml (F2)" in said(top)


def test_an_empty_file_and_a_mask_of_nothing(top: Path) -> None:
    put(top, f"{ETC}/50.toml", "# nothing\n")
    (top / f"{ETC}/60.toml".lstrip("/")).symlink_to("/dev/null")
    assert said(top) == [
        f"{ETC}/50.toml:1: warning: says nothing (a policy begins with [[policy]])",
        f"{ETC}/60.toml:1: warning: is a mask, a link to /dev/null, and masks no file of a weaker directory (F1)",
    ]


def test_what_would_be_blocked(top: Path) -> None:
    build(top, {0: FakeNode("0"), 1: FakeNode("")})
    put(top, f"{ETC}/50.toml", policy("/a", "weighted-interleave", "all", weights={"dram": 1}))
    assert said(top) == [f"{ETC}/50.toml:5: warning: blocked: no weight is given for node 1"]


def test_named_files_are_judged_by_themselves(top: Path, tmp_path: Path) -> None:
    put(top, f"{ETC}/50.toml", "x = 1\n")
    good = write(tmp_path / "mine.toml", policy("/a", nodes="0"))
    bad = write(tmp_path / "other.toml", policy("/a", "bnid"))
    assert said(top, good) == []
    assert said(top, bad) == [f"{bad}:3: mode is 'bnid', which is no mode (did you mean 'bind'?)"]


def test_named_folders_and_files_that_are_not_there(top: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    write(folder / "10.toml", "x = 1\n")
    write(folder / "10.toml~", "x = 1\n")
    assert len(said(top, folder)) == 1
    assert said(top, tmp_path / "none.toml") == [f"{tmp_path}/none.toml:1: does not exist"]
    (tmp_path / "folder.toml").mkdir()
    assert said(top, tmp_path / "folder.toml") == [f"{tmp_path}/folder.toml:1: is a directory, not a file"]


def test_without_cgroups_at_hand_patterns_are_not_judged(tmp_path: Path) -> None:
    build(tmp_path, DRAM_AND_CXL)
    put(tmp_path, f"{ETC}/50.toml", policy("/x"))
    assert said(tmp_path) == []


def test_severity_tells_faults_from_warnings() -> None:
    assert (Fault("f", 1, "m").severity, Caution("f", 1, "m").severity) == ("error", "warning")


def test_a_machine_that_cannot_be_read_is_a_fault_beside_those_of_the_files(top: Path) -> None:
    put(top, "/sys/devices/system/node/has_memory", "garbage")
    put(top, f"{ETC}/50.toml", policy("/a", "interleave", "0-3") + "x = 1\n")
    put(top, f"{ETC}/60.toml", policy("/a/b", "interleave", "0-3"))
    assert said(top) == [
        "/sys/devices/system/node/has_memory:1: is no list of numbers below 1024: 'garbage' "
        "(files are checked without what depends on the machine)",
        f"{ETC}/50.toml:5: unknown key 'x'",
    ]

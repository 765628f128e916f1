"""The answer of `explain`, from values and from a collected tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.policy import explain
from hetmemd.policy.effective import Handling
from hetmemd.policy.resolve import CgroupFacts
from tests.unit.machine.sysfs import DRAM_AND_CXL, FakeNode, build
from tests.unit.policy.given import TWO_SOCKETS, policy, resolved, write

FILE = "/etc/hetmemd.d/50-test.toml"
WEIGHTED = policy("/a", "weighted-interleave", "all", weights="bandwidth", memory=["all"])


def collected(top: Path, text: str = WEIGHTED) -> Root:
    """Another machine's folders, without its cgroups."""
    build(top, DRAM_AND_CXL, weights={0: 25, 1: 6})
    write(top / FILE.lstrip("/"), text)
    return Root(top)


def cgroup(top: Path, path: str, **files: str) -> None:
    folder = top / "sys/fs/cgroup" / path.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(folder / name.replace("_", "."), content + "\n")


def test_the_answer_is_plain_data() -> None:
    effective = resolved("/a/b", policy("/a", "weighted-interleave", "0-1", weights={"0": 3, "1": 1}) + policy("/b"))
    found = explain.answer(effective)
    assert json.loads(json.dumps(found)) == found
    assert found["effective"] == {
        "mode": "weighted-interleave",
        "nodes": [0, 1],
        "weights": {"0": 3, "1": 1},
        "flags": ["static"],
        "home_node": None,
        "memory": ["all"],
    }
    assert found["state"] == "active"
    assert found["own"] is None
    assert found["inherited_from"] == {"path": "/a", "file": FILE, "line": 1}
    assert found["rules"] == ["I1"]
    assert found["handling"]["existing"] == "rebalance"


def test_where_nothing_is_asked_for_the_mode_is_default() -> None:
    found = explain.answer(resolved("/x", ""))
    assert (found["state"], found["effective"]["mode"], found["effective"]["nodes"]) == ("default", "default", [])


def test_a_blocked_placement_is_shown_with_its_state() -> None:
    elsewhere = {"/a": CgroupFacts(mems=frozenset({1}))}
    found = explain.answer(resolved("/a", policy("/a", "bind", "0", memory=["heap"]), facts=elsewhere))
    assert (found["state"], found["effective"]["mode"], found["effective"]["memory"]) == ("blocked", "bind", ["heap"])


def test_I5_modes_that_can_spill_over_a_wall_are_named() -> None:
    for mode, spills in (("bind", False), ("interleave", True)):
        given = policy("/a", "bind", "0", confine=True) + policy("/a/b", mode, "0")
        notes = explain.answer(resolved("/a/b", given, TWO_SOCKETS))["notes"]
        assert any("cpuset.mems (I5)" in note for note in notes) == spills


def test_L6_what_a_policy_means_for_numa_balancing_is_said() -> None:
    plain = explain.answer(resolved("/a", policy("/a", "bind", "0")))["notes"]
    balancing = explain.answer(resolved("/a", policy("/a", "bind", "0", flags=["balancing"])))["notes"]
    classes = explain.answer(resolved("/a", policy("/a", "bind", "0", memory=["heap"])))["notes"]
    assert any(note.startswith("tasks with this policy are left alone") for note in plain)
    assert any(note.startswith("regions that this policy binds are left alone") for note in classes)
    assert any("(L6)" in note for note in plain) and not any("(L6)" in note for note in balancing)


def test_offline_answers_for_a_cgroup_that_does_not_exist_there(tmp_path: Path) -> None:
    found = explain.offline(collected(tmp_path), "/a/new/")
    assert found["cgroup"] == "/a/new"
    assert found["effective"]["weights"] == {"0": 25, "1": 6}
    assert found["inherited_from"] == {"path": "/a", "file": FILE, "line": 1}
    assert found["rules"] == ["M2", "I1"]
    assert not (tmp_path / "var").exists()


def test_offline_reads_the_cpusets_of_the_cgroup_and_above(tmp_path: Path) -> None:
    root = collected(tmp_path, policy("/a/*", "interleave", "0"))
    cgroup(tmp_path, "/a", cpuset_mems_effective="1")
    cgroup(tmp_path, "/a/b")
    found = explain.offline(root, "/a/b")
    assert found["state"] == "blocked" and "I6" in found["rules"] and "M2" not in found["rules"]


def test_I6_offline_tasks_tell_where_no_cpuset_of_cgroup2_does(tmp_path: Path) -> None:
    """On a hybrid host the cpuset is a hierarchy of its own."""
    root = collected(tmp_path, policy("/a", "interleave", "0"))
    cgroup(tmp_path, "/a", cgroup_procs="7\n8\n9")
    for pid, nodes in ((7, "1"), (8, "1")):
        write(tmp_path / f"proc/{pid}/status", f"Name:\tx\nMems_allowed_list:\t{nodes}\n")
    assert explain.offline(root, "/a")["state"] == "blocked"
    write(tmp_path / "proc/8/status", "Name:\tx\nMems_allowed_list:\t0-1\n")
    assert explain.offline(root, "/a")["state"] == "active", "one may use it"


def test_offline_finds_the_mount_in_mountinfo(tmp_path: Path) -> None:
    root = collected(tmp_path, policy("/a", "interleave", "nearest"))
    build(tmp_path, {0: FakeNode("0"), 1: FakeNode("1")})
    line = "31 24 0:27 / /cg2 rw,nosuid - cgroup2 cgroup2 rw\n"
    write(tmp_path / "proc/self/mountinfo", line)
    write(tmp_path / "cg2/a/cpuset.cpus.effective", "1\n")
    assert explain.offline(root, "/a")["effective"]["nodes"] == [1]


def test_offline_takes_the_defaults_that_it_is_given(tmp_path: Path) -> None:
    root = collected(tmp_path)
    assert explain.offline(root, "/a", Handling(tolerance=0.25))["handling"]["tolerance"] == 0.25
    assert explain.offline(root, "/a")["handling"]["tolerance"] == 0.02


def test_offline_says_which_files_are_broken(tmp_path: Path) -> None:
    root = collected(tmp_path)
    write(tmp_path / "etc/hetmemd.d/60.toml", "x = 1\n")
    notes = explain.offline(root, "/a")["notes"]
    assert any(
        "/etc/hetmemd.d/60.toml is rejected: /etc/hetmemd.d/60.toml:1: unknown key 'x'" in note for note in notes
    )


def test_offline_without_any_sys(tmp_path: Path) -> None:
    write(tmp_path / FILE.lstrip("/"), policy("/a", nodes="all"))
    assert explain.offline(Root(tmp_path), "/a")["state"] == "blocked"
    assert explain.offline(Root(tmp_path), "/")["state"] == "default"


@pytest.mark.parametrize("text", ["a", "", "/a//b", "/a/../b"])
def test_what_is_no_cgroup(text: str) -> None:
    with pytest.raises(ValueError, match="cgroup"):
        explain.cgroup_path(text)


@pytest.mark.parametrize(("text", "path"), [("/", "/"), ("/a/", "/a"), ("/a/b", "/a/b")])
def test_paths_as_people_type_them(text: str, path: str) -> None:
    assert explain.cgroup_path(text) == path


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/a" * (explain.MOST_LEVELS + 1), "levels deep"),
        ("/" + "a" * 5000, "4096 characters"),
        ("a", "begins with /"),
        ("/a/../b", "not a path"),
        ("x" * 100_000, "begins with /"),
    ],
)
def test_what_is_no_path_of_a_cgroup_is_refused(path: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        explain.cgroup_path(path)
    assert len(str(error.value)) < 500
    assert explain.cgroup_path("/a" * explain.MOST_LEVELS + "/") == "/a" * explain.MOST_LEVELS


def test_a_cpuset_that_no_kernel_writes_is_an_error_with_its_file(tmp_path: Path) -> None:
    root = collected(tmp_path)
    cgroup(tmp_path, "/a/b")
    (tmp_path / "sys/fs/cgroup/a/cpuset.mems.effective").write_bytes(b"\xff zz")
    for path in ("/a", "/a/b"):
        with pytest.raises(OSError) as error:
            explain.offline(root, path)
        assert error.value.filename == str(tmp_path / "sys/fs/cgroup/a/cpuset.mems.effective")
    assert explain.offline(root, "/b")["state"] == "default"

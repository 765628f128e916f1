"""`hetmemctl weights` on another machine's files: two sockets, each with DRAM and CXL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetmemd.ctl import main, weights
from hetmemd.ctl.text import Paint
from tests.unit.machine.sysfs import FakeNode, build
from tests.unit.policy.given import policy, write

ETC = "etc/hetmemd.d/50-test.toml"
NODES = {
    0: FakeNode("0-1", bandwidth=(300000, 310000), initiators=(0,)),
    1: FakeNode("2-3", bandwidth=(300000, 300000), initiators=(1,)),
    2: FakeNode("", bandwidth=(100000, 120000), initiators=(0,)),
    3: FakeNode("", bandwidth=(100000, 100000), initiators=(1,)),
}
PACKAGES = {0: 0, 1: 0, 2: 1, 3: 1}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    build(
        tmp_path, NODES, weights={0: 3, 1: 3, 2: 1, 3: 1}, auto="true", tiers={4: "0-1", 22: "2-3"}, packages=PACKAGES
    )
    write(tmp_path / "sys/devices/system/node/node2/access1/initiators/read_latency", "250\n")
    for cgroup, cpus in (("a", "0"), ("a/b", "2-3"), ("c", "0-3")):
        write(tmp_path / "sys/fs/cgroup" / cgroup / "cpuset.cpus.effective", cpus + "\n")
    return tmp_path


def told(top: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main.main(["weights", "--json", "--root", str(top)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_the_machine_tells(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(top / "etc/hetmemd.toml", '[kernel]\nweights = { dram = 3, "tier:22" = 1 }\n')
    found = told(top, capsys)
    assert found["kernel"] == {"weights": {"0": 3, "1": 3, "2": 1, "3": 1}, "auto": True, "known": True}
    assert found["bandwidth"] == {"0": 3, "1": 3, "2": 1, "3": 1}
    assert found["setting"] == {"dram": 3, "tier:22": 1}
    cxl = found["nodes"][2]
    assert (cxl["node"], cxl["cpus"], cxl["tier"]) == (2, [], 22)
    assert cxl["access1"] == {
        "initiators": [0],
        "read_bandwidth": 100000,
        "write_bandwidth": 120000,
        "read_latency": 250,
        "write_latency": None,
    }


def test_what_each_policy_gets_and_how(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        top / ETC,
        policy("/a", "weighted-interleave", "nearest", weights="bandwidth")
        + policy("/c", "weighted-interleave", "dram+cpuless", weights={"dram": 5, "cpuless": 1})
        + policy("/d*", "weighted-interleave", "0,2", weights="capacity")
        + policy("/c/e", "weighted-interleave", "0", weights={"0": 1}, enabled=False)
        + policy("/x", "interleave", "0-1"),
    )
    found = told(top, capsys)["policies"]
    assert [(row["line"], row["cgroups"], row["asked"], row["weights"]) for row in found] == [
        (1, ["/a"], "bandwidth", {"0": 3, "2": 1}),
        (1, ["/a/b"], "bandwidth", {"1": 3, "3": 1}),
        (6, ["/c"], {"dram": 5, "cpuless": 1}, {"0": 5, "1": 5, "2": 1, "3": 1}),
        (11, [], "capacity", {"0": 1, "2": 1}),
    ]
    assert [row["agrees_with_kernel"] for row in found] == [True, True, False, False]
    assert found[0]["met"].startswith("by the kernel")
    assert found[2]["met"].startswith("by moving") and "(L5)" in found[2]["met"]


def test_what_is_blocked_says_why(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (top / "sys/devices/system/node/node3/access1/initiators/read_bandwidth").unlink()
    write(top / ETC, policy("/c", "weighted-interleave", "all", weights="bandwidth"))
    found = told(top, capsys)
    assert found["bandwidth"] is None
    (row,) = found["policies"]
    assert (row["state"], row["weights"]) == ("blocked", {})
    assert "node 3" in row["met"]


def test_it_reads_like_tables(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(top / ETC, policy("/c", "weighted-interleave", "all", weights={"dram": 5, "tier:22": 1}))
    assert main.main(["weights", "--root", str(top)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Memory nodes"
    assert 'kept by the kernel itself; [kernel] weights = "leave"' in lines[6]
    assert '{ dram = 5, "tier:22" = 1 }' in lines[-1] and "0=5 1=5 2=1 3=1" in lines[-1]


def test_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["weights", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "table of interleave weights is not known" in shown and "none" in shown
    write(tmp_path / "proc/sys/kernel/osrelease", "6.1.0-18-amd64")
    assert main.main(["weights", "--root", str(tmp_path)]) == 0
    assert "no table of interleave weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--measure", "--root", "/"],
        ["--measure", "--size", "much"],
        ["--measure", "--size", "1MiB"],
        ["--measure", "--seconds", "0"],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["weights", *words]) == 2
    assert capsys.readouterr().err.startswith("hetmemctl: ")


def figure(node: int, **more: object) -> dict[str, object]:
    known: dict[str, object] = {
        "node": node,
        "socket": 0,
        "cpus": [0, 1],
        "size": 1 << 30,
        "note": "",
        "caches": 1 << 26,
    }
    return {**known, "read": 2e9, "write": 1e9, "copy": 1.5e9, **more}


def test_what_was_measured_can_be_pasted(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = told(top, capsys)
    lines = weights.lines({**known, "measured": [figure(0), figure(2)], "proposed": {"0": 3, "2": 1}}, Paint(False))
    assert lines[lines.index("[kernel]") + 1] == "weights = { 0 = 3, 2 = 1 }"
    doubtful = figure(0, note="may be the caches' figures: they hold 384 MiB")
    lines = weights.lines({**known, "measured": [doubtful], "proposed": None}, Paint(False))
    assert "they hold 384 MiB" in lines[-2]
    assert "no weights are proposed" in lines[-1]
    assert "[kernel]" not in lines

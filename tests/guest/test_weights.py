"""The kernel's table of interleave weights: what real kernels make of the writes, and `hetmemctl weights`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.daemon import FILES, Group, drop, eventually, policy, systemctl
from tests.running import running

TABLE = Path("/sys/kernel/mm/mempolicy/weighted_interleave")
SETTINGS = Path("/etc/hetmemd.toml")
RECORD = Path("/run/hetmemd/kernel-weights.json")


def held() -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in sorted(TABLE.iterdir())}


def weights_of(table: dict[str, str]) -> dict[str, int]:
    return {name.removeprefix("node"): int(text) for name, text in table.items() if name != "auto"}


def told(*words: str) -> Any:
    shown = subprocess.run(["hetmemctl", *words, "--json"], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(shown.stdout)


def put_back(table: dict[str, str]) -> None:
    """The switch last: a weight that is written turns it off."""
    for name, text in sorted(table.items(), reverse=True):
        (TABLE / name).write_text(text)


@pytest.fixture
def before() -> Generator[dict[str, str], None, None]:
    """The table as it was; the service runs with its shipped settings again afterwards."""
    shipped, table = SETTINGS.read_text(), held()
    systemctl("start", "hetmemd")
    yield table
    SETTINGS.write_text(shipped)
    for file in FILES.glob("*"):
        file.unlink()
    systemctl("start", "hetmemd")
    eventually("the table is as it was", lambda: held() == table)


@pytest.mark.lab
@pytest.mark.lab(kernel="newest", topology="two-sockets")
def test_weights_by_hand_and_what_was_there_is_given_back(before: dict[str, str]) -> None:
    shipped = SETTINGS.read_text()
    SETTINGS.write_text(shipped.replace('#weights = "leave"', "weights = { dram = 7, cpuless = 2 }"))
    by_hand = {
        node: 7 if Path(f"/sys/devices/system/node/node{node}/cpulist").read_text().strip() else 2
        for node in weights_of(before)
    }
    eventually("written", lambda: weights_of(held()) == by_hand)
    assert held().get("auto") in (None, "false")
    SETTINGS.write_text(shipped)
    eventually("given back", lambda: held() == before and not RECORD.exists())


@pytest.mark.lab
@pytest.mark.lab(kernel="newest", topology="two-sockets")
def test_bandwidth_is_what_the_kernel_computes_itself(before: dict[str, str]) -> None:
    """Where there is `auto`, the kernel's own; where there is none, the same reduction is ours."""
    if "auto" in before:
        (TABLE / "node0").write_text("99")
        assert held()["auto"] == "false", "a weight that is written switches it off"
    SETTINGS.write_text(SETTINGS.read_text().replace('#weights = "leave"', 'weights = "bandwidth"'))
    computed = told("weights")["bandwidth"]
    eventually("computed", lambda: weights_of(held()) == computed)
    assert held().get("auto") in (None, "true")
    if "auto" in before:
        # So that the table is as it was afterwards.
        SETTINGS.write_text(SETTINGS.read_text().replace('weights = "bandwidth"', '#weights = "leave"'))
        eventually("given back", lambda: held()["node0"] == "99")
        put_back(before)


@pytest.mark.lab
def test_a_stop_gives_back_only_if_asked(before: dict[str, str]) -> None:
    asked = SETTINGS.read_text().replace('#weights = "leave"', "weights = { 0 = 9 }")
    SETTINGS.write_text(asked)
    eventually("written", lambda: held()["node0"] == "9")
    systemctl("stop", "hetmemd")
    assert held()["node0"] == "9"
    SETTINGS.write_text(asked.replace('#on_stop = "keep"', 'on_stop = "restore"'))
    systemctl("start", "hetmemd")
    assert held()["node0"] == "9", "a start changes nothing, and knows what was there first"
    systemctl("stop", "hetmemd")
    assert held() == before


@pytest.mark.lab
def test_the_kill_switch_writes_nothing(before: dict[str, str]) -> None:
    switch = Path("/run/hetmemd/observe")
    switch.touch()
    try:
        SETTINGS.write_text(SETTINGS.read_text().replace('#weights = "leave"', "weights = { 0 = 9 }"))
        systemctl("reload", "hetmemd")
        assert held() == before
    finally:
        switch.unlink()
    eventually("written when it is off", lambda: held()["node0"] == "9")


@pytest.mark.lab
@pytest.mark.lab(kernel="newest", topology="two-sockets")
def test_a_kernel_refuses_or_resets_what_hetmemd_never_writes(before: dict[str, str]) -> None:
    """The traps that machine/table.py is built around, as this kernel has them."""
    node = TABLE / "node1"
    node.write_text("5")
    for text in ("0", "\n"):
        try:
            node.write_text(text)
        except OSError:
            assert node.read_text().strip() == "5", "EINVAL, and nothing is changed"
        else:
            assert node.read_text().strip() != "0", "back to a default"
            node.write_text("5")
    put_back(before)


@pytest.mark.lab
def test_what_the_table_does_not_give_is_met_by_moving_and_said(before: dict[str, str]) -> None:
    group = Group("/weights.slice")
    with running(["sleep", "10000"]) as task:
        group.take(task.pid)
        drop("50-test.toml", policy(group.path, nodes="0-1", more=""))
        eventually("said", lambda: any("weights" in note for note in told("status")["notes"]))
        (row,) = [row for row in told("weights")["policies"] if group.path in row["cgroups"]]
        assert (row["weights"], row["agrees_with_kernel"]) == ({"0": 3, "1": 1}, False)
        assert row["met"].startswith("by moving")
    eventually("empty", lambda: not group.pids())
    group.remove()


@pytest.mark.lab(kernel="newest", topology="two-sockets")
def test_measuring_each_node_from_each_socket() -> None:
    found = told("weights", "--measure", "--seconds", "0.05")
    nodes = {node["node"] for node in found["nodes"]}
    sockets = {figure["socket"] for figure in found["measured"]}
    assert {(figure["node"], figure["socket"]) for figure in found["measured"]} == {
        (node, socket) for node in nodes for socket in sockets
    }
    assert all(figure["read"] and figure["write"] and figure["copy"] for figure in found["measured"]), found["measured"]
    assert all(figure["size"] // 2 >= 2 * figure["caches"] for figure in found["measured"]), found["measured"]
    assert found["proposed"].keys() == {str(node) for node in nodes}

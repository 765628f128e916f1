"""From a topology file to QEMU's command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hetmemlab import topology

FOUR: dict[str, Any] = {
    "cpus": 2,
    "sockets": 2,
    "nodes": [
        {"memory_mib": 512, "cpus": "0"},
        {"memory_mib": 512, "cpus": "1"},
        {"memory_mib": 256, "initiator": 0},
        {"memory_mib": 256, "initiator": 1},
    ],
    "distances": [[10, 21, 20, 31], [21, 10, 31, 20], [20, 31, 10, 41], [31, 20, 41, 10]],
    "access": [
        {"initiator": initiator, "target": target, "latency_ns": 100 + 50 * target, "bandwidth": f"{100 - target}G"}
        for initiator in (0, 1)
        for target in range(4)
    ],
}


def pairs(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in zip(arguments[::2], arguments[1::2], strict=True) if name == option]


def test_the_default_is_dram_and_cxl() -> None:
    arguments = topology.qemu_arguments(topology.load("dram+cxl"))
    assert pairs(arguments, "-smp") == ["2,sockets=1"]
    assert pairs(arguments, "-m") == ["2560M"]
    assert pairs(arguments, "-object") == [
        "memory-backend-ram,id=m0,size=1536M",
        "memory-backend-ram,id=m1,size=1024M",
    ]
    assert pairs(arguments, "-numa") == [
        "node,nodeid=0,memdev=m0,cpus=0-1",
        "node,nodeid=1,memdev=m1,initiator=0",
        "dist,src=0,dst=1,val=20",
        "dist,src=1,dst=0,val=20",
        "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=100",
        "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=200G",
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=250",
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-bandwidth,bandwidth=50G",
    ]


def test_four_nodes_on_two_sockets() -> None:
    numa = pairs(topology.qemu_arguments(topology.parse("four", FOUR)), "-numa")
    assert [value for value in numa if value.startswith("node,")][2:] == [
        "node,nodeid=2,memdev=m2,initiator=0",
        "node,nodeid=3,memdev=m3,initiator=1",
    ]
    assert len([value for value in numa if value.startswith("dist,")]) == 12
    assert len([value for value in numa if value.startswith("hmat-lb,")]) == 16


def test_each_file_is_a_topology() -> None:
    assert "dram+cxl" in topology.names()
    for name in topology.names():
        assert topology.load(name).name == name


@pytest.mark.parametrize("name", ["no-such", "../topologies/dram+cxl", ""])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(topology.TopologyError, match=r"there are: .*dram\+cxl"):
        topology.load(name)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("nodes", 0, "cpus"), None, "either cpus or an initiator"),
        (("nodes", 2, "cpus"), "0", "either cpus or an initiator"),
        (("nodes", 2, "initiator"), 3, "has no CPUs"),
        (("distances",), [[10]], "4 rows of 4"),
        (("access",), [], "access must name"),
    ],
)
def test_contradictions_are_told(path: tuple[str | int, ...], value: object, complaint: str) -> None:
    data: Any = copy.deepcopy(FOUR)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(topology.TopologyError, match=complaint):
        topology.parse("four", data)


@pytest.mark.parametrize("text", ["", "[]", '{"cpus": 1}', '{"cpus": "x"}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(topology.TopologyError, match=r"odd\.json"):
        topology.load("odd", tmp_path)

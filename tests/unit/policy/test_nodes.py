"""The `nodes` expression against a straightforward reading of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.machine.topology import Machine, Node
from hetmemd.policy import nodes


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Up to six nodes on three sockets: with and without CPUs, memory, a tier, and firmware's word."""
    numbers = draw(st.lists(st.integers(0, 7), unique=True, min_size=1, max_size=6))
    found: dict[int, Node] = {}
    packages: dict[int, int] = {}
    cpu = 0
    for number in numbers:
        cpus = range(cpu, cpu + draw(st.integers(0, 2)))
        cpu = cpus.stop
        packages |= dict.fromkeys(cpus, draw(st.integers(0, 2)))
        found[number] = Node(
            number,
            frozenset(cpus),
            1 << 30,
            tier=draw(st.sampled_from([None, 4, 22])),
            initiators=draw(st.frozensets(st.sampled_from(numbers), max_size=2)),
            has_memory=draw(st.integers(0, 4)) > 0,
        )
    return Machine(found, packages=packages)


def meant(word: str, machine: Machine, cpus: frozenset[int]) -> set[int]:
    """One term, said anew from hetmemd.policy(5)."""
    if word[0].isdigit():
        found: set[int] = set()
        for part in word.split(","):
            low, _, high = part.partition("-")
            found |= set(range(int(low), int(high or low) + 1))
        return found
    chosen = set()
    for node in machine.nodes.values():
        near = {machine.packages[cpu] for cpu in cpus if cpu in machine.packages}
        touches = any(machine.packages[cpu] in near for cpu in node.cpus)
        by_firmware = any(
            machine.packages[cpu] in near
            for other in node.initiators
            if other in machine.nodes
            for cpu in machine.nodes[other].cpus
        )
        holds = {
            "all": True,
            "dram": bool(node.cpus),
            "cpuless": not node.cpus,
            "nearest": touches or (not node.cpus and by_firmware),
        }
        if node.has_memory and (holds.get(word) or word == f"tier:{node.tier}"):
            chosen.add(node.id)
    return chosen


WORDS = st.sampled_from(["all", "dram", "cpuless", "nearest", "tier:4", "tier:22", "0", "1-3", "0,2", "2-4,6"])


@given(
    machines(),
    st.lists(st.tuples(st.booleans(), WORDS), min_size=1, max_size=5),
    st.frozensets(st.integers(0, 9), min_size=1),
)
def test_united_by_plus_and_taken_out_by_exclamation_marks_whatever_the_order(
    machine: Machine, terms: list[tuple[bool, str]], cpus: frozenset[int]
) -> None:
    text = "".join(f"!{word}" if out else f"+{word}" for out, word in terms).removeprefix("+")
    taken = [word for out, word in terms if not out] or ["all"]
    expected = {node for word in taken for node in meant(word, machine, cpus)}
    expected -= {node for out, word in terms if out for node in meant(word, machine, cpus)}
    assert nodes.parse(text).select(machine, cpus) == expected
    assert nodes.parse(text.replace("+", " + ").replace("!", " ! ")).select(machine, cpus) == expected


@given(machines(), st.frozensets(st.integers(0, 5), min_size=1, max_size=2))
def test_nearest_is_by_the_sockets_that_the_cpus_touch(machine: Machine, cpus: frozenset[int]) -> None:
    assert nodes.parse("nearest").select(machine, cpus) == meant("nearest", machine, cpus)


@given(machines())
def test_a_cgroup_that_is_not_confined_is_near_to_every_cpu(machine: Machine) -> None:
    assert nodes.parse("nearest").select(machine) == nodes.parse("nearest").select(machine, machine.cpus)


@pytest.mark.parametrize(
    "text", ["", "+0", "0+", "0++1", "dram cpuless", "0-", "3-1", "tier:", "tier:x", "dram,0", "-1"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        nodes.parse(text)
    assert caught.value.args[0]


@pytest.mark.parametrize("text", ["0 1", "1\t0", "0\n1", "0\u00a01", "dram cpuless", "d ram", "0-1 3", "tier:22 4"])
def test_spaces_unite_nothing(text: str) -> None:
    """Least of all digits: "0 1" is not node 1, and "1 0" is not node 10."""
    with pytest.raises(ValueError, match="has a space within a part") as caught:
        nodes.parse(text)
    assert caught.value.args[1] == f"unite parts by +: '{'+'.join(text.split())}'"


@pytest.mark.parametrize("text", ["0 - 1 , 3", " 0-1,3\n", "0-1 + 3", "0-3 ! 2", "tier: 22 + 0-1,3"])
def test_spaces_around_signs_are_nothing(text: str) -> None:
    assert nodes.parse(text).select(Machine({})) == {0, 1, 3}

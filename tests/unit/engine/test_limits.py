"""What is said of a machine that cannot do what policies ask for (L5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetmemd.engine.limits import MOVING_ONLY, limitations
from hetmemd.kernel import libc
from hetmemd.kernel.features import ALL, Features
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.machine.topology import Machine, Node
from hetmemd.policy.effective import Placement

BOTH = frozenset({0, 1})
NODES = {number: Node(number, frozenset({number}), 1 << 30) for number in BOTH}
ABLE = Machine(NODES, {0: 3, 1: 1})
OLD = Machine(NODES, features=Features(balancing=frozenset({Mode.BIND}), scans_pagemap=False))
THREE_TO_ONE = Placement(Mempolicy(Mode.WEIGHTED_INTERLEAVE, BOTH, Flag.STATIC_NODES), {0: 3, 1: 1})


def placed(mode: Mode, flags: Flag = Flag.STATIC_NODES) -> Placement:
    return Placement(Mempolicy(mode, BOTH, flags))


def test_L5_a_machine_that_can_do_all_is_not_complained_of() -> None:
    many = placed(Mode.PREFERRED_MANY, Flag.NUMA_BALANCING)
    assert limitations(ABLE, [THREE_TO_ONE, placed(Mode.BIND), many], ["frozen", "own-bind"]) == []


def test_L5_one_node_is_nowhere_to_move_to() -> None:
    (said,) = limitations(Machine({0: NODES[0]}, {0: 1}), [], [])
    assert "nowhere to move to" in said


def test_L5_each_thing_is_said_once_and_with_the_way_round() -> None:
    many = placed(Mode.PREFERRED_MANY, Flag.NUMA_BALANCING)
    said = limitations(OLD, [THREE_TO_ONE, THREE_TO_ONE, many, many], ["yama", "yama"])
    assert [sum(word in each for each in said) for word in ("PAGEMAP_SCAN", "weighted", "preferred-many", "Yama")] == [
        1,
        1,
        1,
        1,
    ]
    assert len(said) == 4
    assert any("interleaved evenly" in each and "by moving" in each for each in said)
    assert any("set without it" in each for each in said)


def test_L5_what_no_policy_asks_for_is_not_missed() -> None:
    assert limitations(OLD, [placed(Mode.BIND, Flag.NUMA_BALANCING)], []) == limitations(OLD, [], [])
    assert "PAGEMAP_SCAN" in "".join(limitations(OLD, [], []))


def test_L5_weights_that_differ_from_the_kernels_table() -> None:
    other = Machine(NODES, {0: 1, 1: 1})
    (said,) = limitations(other, [THREE_TO_ONE], [])
    assert "node 0-1: 1" in said and "are moved to the policy's" in said
    assert limitations(other, [Placement(THREE_TO_ONE.mempolicy, {0: 2, 1: 2})], []) == []


@pytest.mark.parametrize(
    ("calls", "moves", "says"),
    [
        (False, True, "policies are not set, and pages are moved to where they belong"),
        (False, False, "not of 4 KiB: no policy is set, and no page is moved"),
    ],
)
def test_L5_other_architectures(monkeypatch: pytest.MonkeyPatch, calls: bool, moves: bool, says: str) -> None:
    monkeypatch.setattr(libc, "SUPPORTED", calls)
    monkeypatch.setattr(libc, "MOVES", moves)
    (said,) = limitations(ABLE, [], ["architecture"])
    assert says in said and "architecture" in said


def test_L5_no_right_to_call_means_moving_only() -> None:
    for reason in MOVING_ONLY:
        (said,) = limitations(ABLE, [THREE_TO_ONE], [reason])
        assert "pages are moved" in said


def test_L5_of_what_could_not_be_asked_nothing_is_known_to_be_missing() -> None:
    assert replace(OLD, features=ALL, kernel_weights={0: 3, 1: 1}) == ABLE

"""Memory bandwidth, measured on this machine: that it is what it says, not how much it is."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading

import pytest

from hetmemd.kernel.root import Root
from hetmemd.machine import caches, measure, topology
from hetmemd.machine.measure import Figure
from hetmemd.machine.topology import Machine, Node

NONE: frozenset[int] = frozenset()


def test_a_node_of_this_machine() -> None:
    machine = topology.read(Root())
    mine = frozenset(os.sched_getaffinity(0))
    socket, cpus = next(iter(measure.sockets(machine, mine).items()))
    figure = measure.measure(min(machine.memory_nodes), socket, cpus, 32 << 20, 0.02)
    assert figure.note == "" and figure.cpus == cpus
    assert 16 << 20 <= figure.size <= 32 << 20
    assert figure.read and figure.write and figure.copy
    assert frozenset(os.sched_getaffinity(0)) == mine, "only its own threads stay anywhere"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("measure-")]


@pytest.mark.parametrize("broken", ["node", "cpu"])
def test_what_cannot_be_measured_is_a_note(broken: str) -> None:
    node, cpus = (63, os.sched_getaffinity(0)) if broken == "node" else (0, {*os.sched_getaffinity(0), 1000})
    figure = measure.measure(node, 0, cpus, 32 << 20, 0.01)
    assert figure.note and (figure.read, figure.write, figure.copy) == (None, None, None)


def test_the_command_says_what_it_measured() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "hetmemd.ctl.main", "weights", "--measure", "--size", "16MiB", "--seconds", "0.01"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    held = caches.total(Root(), os.sched_getaffinity(0))
    assert "node 0 from socket 0: 16 MiB, 3 x" in shown.stderr
    told = subprocess.run([*shown.args, "--json"], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(told.stdout)
    assert all(figure["read"] for figure in found["measured"])
    # Most machines' caches hold more than that; some virtual ones do not tell.
    if held >= 16 << 20:
        assert found["proposed"] is None
        assert "may be the caches' figures" in shown.stdout
        assert "or for one policy" not in shown.stdout
    elif not held:
        assert found["proposed"]["0"] == 1
        assert "weights = { 0 = 1" in shown.stdout[shown.stdout.rindex("[kernel]") :]


def figure(node: int, socket: int, read: float | None, write: float | None) -> Figure:
    return Figure(node, socket, NONE, 1 << 30, read, write, 1.0, caches=64 << 20)


def test_weights_come_from_the_lesser_way_of_the_socket_that_reaches_a_node_best() -> None:
    machine = Machine({node: Node(node, NONE, 1 << 30) for node in range(2)})
    near, far = figure(0, 0, 256e9, 300e9), figure(0, 1, 100e9, 100e9)
    slow = figure(1, 1, 80e9, 64e9)
    assert measure.proposed(machine, [near, far, slow]) == {0: 25, 1: 6}
    assert measure.proposed(machine, [near, far]) is None, "a node without a figure"
    assert measure.proposed(machine, [near, figure(1, 1, None, None)]) is None
    cached = dataclasses.replace(slow, caches=400 << 20)
    assert measure.proposed(machine, [near, cached]) is None, "a figure of the caches"
    assert measure.proposed(machine, [near, dataclasses.replace(slow, caches=256 << 20)]) == {0: 25, 1: 6}


def test_arrays_are_larger_than_the_caches() -> None:
    assert measure.wanted(384 << 20, 512 << 20) == 2 * 4 * 384 << 20
    assert measure.wanted(0, 512 << 20) == measure.wanted(32 << 20, 512 << 20) == 512 << 20

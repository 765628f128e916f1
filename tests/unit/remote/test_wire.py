"""Requests and results survive the way between the daemon and the tracer."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote import wire
from hetmemd.remote.board import Board
from hetmemd.remote.result import Outcome, ThreadResult

nodes = st.frozensets(st.integers(0, 1023), min_size=1)
policies = st.one_of(
    st.just(DEFAULT),
    st.just(Mempolicy(Mode.LOCAL)),
    st.builds(
        Mempolicy,
        st.sampled_from([mode for mode in Mode if mode.takes_nodes]),
        nodes,
        st.sampled_from([Flag(0), Flag.STATIC_NODES, Flag.RELATIVE_NODES, Flag.STATIC_NODES | Flag.NUMA_BALANCING]),
    ),
)
numbers = st.integers(1, 2**31 - 1)
results = st.builds(
    ThreadResult,
    tid=numbers,
    outcome=st.sampled_from(Outcome),
    reason=st.text(max_size=20),
    errno=st.integers(0, 200),
    before=st.none() | policies,
    after=st.none() | policies,
    pause_ns=st.integers(0, 2**40),
    errnos=st.lists(st.integers(0, 200), max_size=3).map(tuple),
    stops=st.integers(0, 50),
)
calls = st.builds(
    wire.Call,
    name=st.sampled_from(["set_mempolicy", "mbind"]),
    arguments=st.lists(st.integers(0, 2**64 - 1), max_size=6).map(tuple),
    pointers=st.lists(st.integers(0, 5), max_size=2).map(tuple),
)
requests = st.builds(
    wire.Request,
    process=st.builds(ProcessId, numbers, st.integers(0, 2**60)),
    tids=st.lists(numbers, max_size=40).map(tuple),
    calls=st.lists(calls, max_size=3).map(tuple),
    data=st.binary(max_size=200),
    policy=st.none() | policies,
    sweep=st.booleans(),
)


@given(requests)
def test_requests(request: wire.Request) -> None:
    assert wire.unpack_request(wire.pack_request(request)) == request


@given(st.lists(results, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0, 2), numbers), max_size=6))
def test_results(some: list[ThreadResult], order: list[tuple[int, int]]) -> None:
    """Also where several that follow each other have much in common."""
    told = [some[which % len(some)]._replace(tid=tid) for which, tid in order]
    packer = wire.Packer()
    assert [wire.unpack_result(packer.pack(result)) for result in told] == told


@given(policies)
def test_the_call_that_sets_a_policy(policy: Mempolicy) -> None:
    call, data = wire.set_mempolicy(policy)
    mode, mask, maxnode = call.arguments
    assert mode == policy.mode | policy.flags
    if policy.nodes:
        assert (mask, call.pointers) == (0, (1,))
        read = int.from_bytes(data, "little") & (1 << maxnode - 1) - 1  # as get_nodes() in mm/mempolicy.c
        assert {bit for bit in range(1024) if read >> bit & 1} == policy.nodes
    else:
        assert (mask, maxnode, call.pointers, data) == (0, 0, (), b"")


@given(st.lists(results, max_size=5), numbers)
def test_the_board_keeps_what_was_put_on_it(put: list[ThreadResult], next_tid: int) -> None:
    memory = Board.create()
    tracer, daemon = Board(memory), Board(memory)
    os.close(memory)
    try:
        daemon.clear()
        tracer.clear()
        steps = {daemon.steps()}
        for result in put:
            tracer.act_on(result.tid)
            assert daemon.read()[1] == result.tid
            steps.add(daemon.steps())
            tracer.add(result)
            assert daemon.read()[1] is None
            steps.add(daemon.steps())
        assert len(steps) == 1 + 2 * len(put)
        tracer.act_on(next_tid)
        assert daemon.read() == (put, next_tid)
        daemon.clear()
        assert daemon.read() == ([], None)
    finally:
        tracer.close()
        daemon.close()

"""What runs on, runs on exactly as it was: registers, threads that come and go, children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.remote.result import Outcome
from tests.machine.daemon import eventually
from tests.machine.remote_target import ALTERNATING, INTERLEAVE, NODE0, ROOT, Acting, Target, numbers, wait_until
from tests.machine.trap import GIVEN, Trap

pytestmark = pytest.mark.root

Built = Callable[..., Path]


@pytest.mark.parametrize(
    "policy",
    [
        Mempolicy(Mode.BIND, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.INTERLEAVE, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.WEIGHTED_INTERLEAVE, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.PREFERRED, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.PREFERRED_MANY, NODE0, Flag.STATIC_NODES),
        Mempolicy(Mode.BIND, NODE0, Flag.RELATIVE_NODES),
        Mempolicy(Mode.BIND, NODE0),
        Mempolicy(Mode.LOCAL),
    ],
    ids=str,
)
def test_every_mode_is_set_read_back_and_given_up(built: Built, acting: Acting, policy: Mempolicy) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        given = acting.one(target, policy)
        assert (given.outcome, given.before, given.after) == (Outcome.APPLIED, DEFAULT, policy)
        assert given.pause_ns > 0
        assert target.policy() == policy
        again = acting.one(target, policy)
        assert (again.outcome, again.before, again.after, again.pause_ns) == (Outcome.APPLIED, policy, policy, 0)
        back = acting.one(target, DEFAULT)
        assert (back.outcome, back.before, back.after) == (Outcome.APPLIED, policy, DEFAULT)
        assert target.finish() == "alive\n"


def test_what_the_kernel_refuses_is_said(built: Built, acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        result = acting.one(target, Mempolicy(Mode.BIND, frozenset({900}), Flag.STATIC_NODES))
        assert (result.outcome, result.reason, result.errno) == (Outcome.REFUSED, "invalid argument", 22)
        assert result.after == DEFAULT
        assert target.finish() == "alive\n"


@pytest.mark.parametrize("kind", ["spin", "syscall"])
def test_registers_flags_red_zone_and_vectors(built: Built, acting: Acting, kind: str) -> None:
    with Target([built("exact"), kind]) as target:
        target.expect("ready")
        assert acting.alternate(target, 300) > 250
        os.kill(target.pid, signal.SIGTERM)
        told = numbers(target.finish())
    assert told["rounds"] > 10
    assert (told["bad"], told["short"], told["interrupted"]) == (0, 0, 0)


def test_all_of_many_threads(built: Built, acting: Acting) -> None:
    with Target([built("family"), "threads", "200"]) as target:
        target.expect("ready")
        results = acting.apply(target, INTERLEAVE)
        assert {(result.outcome, result.after) for result in results} == {(Outcome.APPLIED, INTERLEAVE)}
        assert [result.tid for result in results] == procfs.tids(ROOT, target.pid)
        assert {target.policy(tid) for tid in procfs.tids(ROOT, target.pid)} == {INTERLEAVE}
        assert target.finish() == "disturbed 0\n"


def test_threads_that_come_and_go(built: Built, acting: Acting) -> None:
    with Target([built("family"), "churn"]) as target:
        target.expect("ready")
        for turn in range(20):
            results = acting.apply(target, ALTERNATING[turn % 2])
            assert {result.outcome for result in results} <= {Outcome.APPLIED, Outcome.GONE}
            # None with the first policy may be left anywhere: not even in a thread that was made meanwhile.
            assert target.policies() <= {ALTERNATING[turn % 2]}
        told = numbers(target.finish())
    assert told["made"] > 0
    assert told["failed"] == 0


def test_new_threads_inherit(built: Built, acting: Acting) -> None:
    with Target([built("family"), "churn"]) as target:
        target.expect("ready")
        wait_until(lambda: len(procfs.tids(ROOT, target.pid)) >= 3)
        acting.apply(target, INTERLEAVE)
        seen = [result for _ in range(20) for result in acting.apply(target, INTERLEAVE)]
        living = [result for result in seen if result.outcome is not Outcome.GONE]
        assert living
        assert {(result.outcome, result.before, result.pause_ns) for result in living} == {
            (Outcome.APPLIED, INTERLEAVE, 0)
        }
        target.finish()


def test_children_that_are_made_and_waited_for(built: Built, acting: Acting) -> None:
    with Target([built("family"), "forks"]) as target:
        target.expect("ready")
        for turn in range(60):
            results = acting.apply(target, ALTERNATING[turn % 2])
            assert {result.outcome for result in results} <= {Outcome.APPLIED, Outcome.DEFERRED}
        told = numbers(target.finish())
    assert told["made"] > 0
    assert told["failed"] == 0


def test_a_thousand_threads_that_come_and_go(built: Built, trap: Trap) -> None:
    with Target([built("family"), "crowd", "1000"]) as target:
        target.expect("ready")
        trap.cgroup.take(target.pid)
        eventually("all have it", lambda: target.policies() == {GIVEN})
        # It lasts: whoever is new was made by somebody who has it.
        for _ in range(3):
            assert target.policies() == {GIVEN}
        # There may be new ones each time it looks.
        # And the last look may have begun before they had it.
        assert trap.task(target.pid)[1] in ("", "new-threads", "slow-to-read", "changed-again", "not-yet")
        eventually("the daemon finds them so", lambda: trap.policies(target.pid) == {str(GIVEN)})
        trap.cgroup.leave(target.pid)
        eventually("all give it back", lambda: target.policies() == {DEFAULT})
        told = numbers(target.finish())
    assert told["made"] > 1000
    assert told["failed"] == 0

"""A thread under a seccomp filter is called, and is never without its filter for anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote.result import Outcome
from tests.machine.remote_target import BIND, INTERLEAVE, Acting, Target

pytestmark = pytest.mark.root


def test_nothing_else_gets_past_a_filter_that_is_suspended(built: Callable[..., Path], acting: Acting) -> None:
    with Target([built("escape")]) as target:
        target.expect("ready")
        for round_number in range(300):
            result = acting.one(target, (INTERLEAVE, BIND)[round_number % 2])
            assert (result.outcome, result.reason) == (Outcome.APPLIED, "")
        escaped, tried = map(int, re.findall(r"\d+", target.finish()))
        assert tried > 1000
        assert escaped == 0


def test_a_policy_that_came_since_the_look_is_not_overwritten(built: Callable[..., Path], acting: Acting) -> None:
    with Target([built("family"), "read"]) as target:
        target.expect("ready")
        target.wait_blocked()
        assert acting.one(target, BIND).outcome is Outcome.APPLIED
        result = acting.one(target, INTERLEAVE, expected=(DEFAULT,))
        assert (result.outcome, result.reason) == (Outcome.DEFERRED, "changed")
        assert target.policy() == BIND
        assert acting.one(target, INTERLEAVE, expected=(DEFAULT, BIND)).outcome is Outcome.APPLIED

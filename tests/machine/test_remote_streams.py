"""Large writes into a pipe, which a stop makes return early: they do all that they were asked for."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.remote_target import ALTERNATING, Acting, Target, numbers, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]


def stopped_amid(acting: Acting, target: Target, times: int) -> Counter[tuple[Outcome, str]]:
    """Until it was stopped amid that many writes, and the policy was set at least once."""
    said: Counter[tuple[Outcome, str]] = Counter()
    amid = 0

    def act() -> bool:
        nonlocal amid
        result = acting.one(target, ALTERNATING[said[Outcome.APPLIED, ""] % 2])
        said[result.outcome, result.reason] += 1
        amid += result.reason == "short-io" and result.stops > 0
        return amid >= times and said[Outcome.APPLIED, ""] > 0

    wait_until(act)
    return said


def test_a_stop_amid_a_large_write_leaves_it_whole(built: Built, acting: Acting) -> None:
    # Its reader comes to it in time also where others use the processors.
    with Target(["nice", "-n", "-10", built("stream"), "quick"]) as target:
        target.expect("ready")
        said = stopped_amid(acting, target, 100)
        told = numbers(target.finish().strip())
    assert set(said) <= {(Outcome.APPLIED, ""), (Outcome.DEFERRED, "short-io")}, said
    assert told["calls"] > 0
    assert (told["bad"], told["spoilt"]) == (0, 0), (told, said)
    # On a busy machine its reader may not come to it in time, now and then.
    assert told["short"] <= said[Outcome.DEFERRED, "short-io"] // 20, (told, said)


def test_where_the_reader_is_slow_it_is_not_waited_for(built: Built, acting: Acting) -> None:
    """It may come short then, as it does after any stop; nothing is lost, and nothing written twice."""
    with Target([built("stream"), "slow"]) as target:
        target.expect("ready")
        stopped_amid(acting, target, 5)
        told = numbers(target.finish().strip())
    assert (told["bad"], told["spoilt"]) == (0, 0), told


# Steps of an act that finds a thread amid a write: seize, look, clock, interrupt, wait, get, dispatch, write, peek, set
# and resume, each before and after.
@pytest.mark.parametrize("step", range(13, 22))
def test_a_tracer_that_dies_amid_the_rest(built: Built, acting: Acting, step: int) -> None:
    with Target([built("stream"), "slow"]) as target:
        target.expect("ready")
        tracer = dying_tracer.make(step)
        with contextlib.closing(tracer):

            def has_died() -> bool:
                return acting.with_tracer(tracer).one(target, ALTERNATING[0]).reason == "tracer-died"

            wait_until(has_died)
        told = numbers(target.finish().strip())
    assert (told["bad"], told["spoilt"]) == (0, 0), told

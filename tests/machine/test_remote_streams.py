"""Large calls on pipes and sockets, which a stop makes return early: they do all that they were asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.remote.result import Outcome
from tests.machine.remote_target import ALTERNATING, Acting, Target, numbers, wait_until

pytestmark = pytest.mark.root

Built = Callable[..., Path]
STOPS = 100


@pytest.mark.parametrize("kind", ["write", "send", "receive", "sendfile"])
def test_a_stop_amid_a_large_call_leaves_it_whole(built: Built, acting: Acting, kind: str) -> None:
    with Target([built("stream"), kind]) as target:
        target.expect("ready")
        said: Counter[tuple[Outcome, str]] = Counter()
        amid = 0
        turn = 0

        def act() -> bool:
            nonlocal amid, turn
            result = acting.one(target, ALTERNATING[turn % 2])
            said[result.outcome, result.reason] += 1
            amid += result.reason == "short-io" and result.stops > 0
            turn += result.outcome is Outcome.APPLIED
            return amid >= STOPS and said[Outcome.APPLIED, ""] > 0

        wait_until(act)
        told = numbers(target.finish().strip())
    assert set(said) <= {(Outcome.APPLIED, ""), (Outcome.DEFERRED, "short-io"), (Outcome.DEFERRED, "stub")}, said
    assert told["calls"] > 0
    assert (told["short"], told["bad"], told["spoilt"]) == (0, 0, 0), (told, said)

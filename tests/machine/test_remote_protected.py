"""A program that protects its own vdso: no stub can run there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.remote import wire
from hetmemd.remote.act import Actor
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import Declined
from hetmemd.remote.target import Target as Looked
from tests.machine.remote_target import INTERLEAVE, ROOT, Acting, Target

pytestmark = pytest.mark.root

Built = Callable[..., Path]


@pytest.fixture
def target(built: Built) -> Iterator[Target]:
    with Target([built("protect")]) as target:
        target.expect("ready")
        yield target
        assert target.finish() == "alive\n"


def protect(target: Target) -> None:
    assert target.process.stdin
    target.process.stdin.write("x")
    target.process.stdin.flush()
    target.expect("protected")
    target.wait_blocked()


def test_a_vdso_that_cannot_be_executed(target: Target, acting: Acting) -> None:
    protect(target)
    result = acting.one(target, INTERLEAVE)
    assert (result.outcome, result.reason, result.stops) == (Outcome.UNSTEERABLE, "vdso", 0)
    assert target.policy() == DEFAULT


def test_protected_between_the_look_and_the_act(target: Target) -> None:
    """The stub faults: the program never learns of it."""
    call, data = wire.set_mempolicy(INTERLEAVE)
    with contextlib.closing(Looked(ROOT, target.identity)) as looked:
        assert looked.room.padding
        protect(target)
        actor = Actor(suspends_seccomp=False)
        with pytest.raises(Declined) as declined:
            actor.act(actor.lay_out(looked, target.pid, [call], data))
    assert (declined.value.outcome, declined.value.reason) == (Outcome.UNSTEERABLE, "stub-fault")
    assert actor.stops == 1
    assert target.policy() == DEFAULT
    target.wait_blocked()

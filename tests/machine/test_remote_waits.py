"""A thread that waits in the kernel goes on waiting as if nobody had stopped it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.remote.result import Outcome
from tests.machine.remote_target import BIND, INTERLEAVE, Acting, Target

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab(kernel="6.1"),
    pytest.mark.lab(kernel="newest", topology="two-sockets"),
]

SHORT = {"write_large", "send_large", "recv_whole"}
"""A stop would make these return less than was asked for: they are not stopped."""

INJECTIONS = 3


def test_every_wait_is_resumed(built: Callable[..., Path], acting: Acting) -> None:
    program = built("waits")
    names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert len(names) > 40
    # A busy machine may not manage all injections while the wait lasts: what it did not manage is done more slowly.
    left = names
    for seconds in (4, 12, 36):
        acted = survives(left, program, seconds, acting)
        left = [name for name in left if not acted[name]]
        if not left:
            return
    pytest.fail(f"never acted on often enough while they waited: {left}")


def survives(names: list[str], program: Path, seconds: int, acting: Acting) -> dict[str, bool]:
    """For each wait whether all injections fell into it; fails where one was disturbed."""
    with contextlib.ExitStack() as stack:
        targets = {name: stack.enter_context(Target([program, name, str(seconds)])) for name in names}
        for target in targets.values():
            target.expect("ready")
        acted = dict.fromkeys(names, True)
        for turn in range(INJECTIONS):
            policy = (INTERLEAVE, BIND)[turn % 2]
            for name, target in targets.items():
                target.wait_blocked()
                result = acting.one(target, policy)
                if result.outcome is Outcome.GONE:
                    acted[name] = False
                elif name in SHORT:
                    assert (result.outcome, result.reason) == (Outcome.DEFERRED, "short-io"), name
                else:
                    assert (result.outcome, result.after) == (Outcome.APPLIED, policy), (name, result)
                    assert result.pause_ns > 0, name
        lines = {name: target.finish().strip() for name, target in targets.items()}
    assert [line for line in lines.values() if not line.endswith(" complete")] == []
    return acted

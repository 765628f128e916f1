"""How the loop fares while the engine works through a backlog."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hetmemd.engine.engine import SLICE, Engine
from hetmemd.kernel.root import Root
from hetmemd.watch.hint import TaskHint


def test_a_backlog_of_forks_and_execs_is_worked_off_in_slices(tmp_path: Path) -> None:
    told: list[int] = []
    heritage = SimpleNamespace(
        forked=lambda pid, parent: told.append(pid), executed=told.append, forget=lambda pid: None
    )
    nothing = cast(Any, SimpleNamespace(heritage=heritage, any_policy=False, issued=set()))
    forks = [TaskHint(pid, pid, "fork", 1) for pid in range(1000, 2000)]
    execs = [TaskHint(pid, pid, "exec", 0) for pid in range(1000, 2000)]
    turns: list[int] = []

    async def work() -> None:
        engine = Engine(
            Root(tmp_path),
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            {},
            nothing,
            lambda: (),
            asyncio.Event(),
        )
        running = asyncio.ensure_future(engine.run())
        engine.deliver([*forks, *execs])
        while len(told) < len(forks) + len(execs):
            await asyncio.sleep(0)
            turns.append(len(told))
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(work())
    assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= 2 * SLICE

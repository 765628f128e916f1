"""How long giving back keeps the loop, on a small tree: the acts themselves are in the machine's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from hetmemd.engine.decide import Mark
from hetmemd.engine.giving import Given, Giving, Selection
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.engine.record import Record
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

PIDS = range(10, 40)


class Stub:
    """Stands for what a process is adopted by: `inherit` is given, and it has no mark of a thread to take over."""

    given_back = 0

    def __init__(self, inherit: Callable[[ProcessId], Awaitable[bool]]) -> None:
        self.inherit = inherit
        self.heritage = self

    async def adopt(self, record: Record) -> None: ...


def give_back(
    top: Path,
    seconds: float,
    inherit: Callable[[ProcessId], Awaitable[bool]],
    look: Callable[[int], Awaitable[Record | None]],
    *marked: int,
) -> Given:
    """`marked` are those of which the ledger knows something."""
    root = Root(top)
    root.path(BOOT_ID).parent.mkdir(parents=True)
    root.path(BOOT_ID).write_text("boot")
    for pid in PIDS:
        (top / f"proc/{pid}/task/{pid}").mkdir(parents=True)
        # The younger, the lower: parents come first all the same.
        (top / f"proc/{pid}/stat").write_text(f"{pid} (a) S 1 " + "0 " * 17 + f"{start(pid)} " + "0 " * 30)
        (top / f"proc/{pid}/cgroup").write_text("0::/a\n")

    async def given() -> Given:
        stub = cast(Any, Stub(inherit))
        return await Giving(root, ledger, stub, stub, look).give_back(Selection(), seconds)

    ledger = Ledger(root)
    for pid in marked:
        ledger.set_marks(ProcessId(pid, start(pid)), {pid: Mark(Mempolicy(Mode.LOCAL))})
    try:
        return asyncio.run(given())
    finally:
        ledger.close()


def start(pid: int) -> int:
    return 9000 - pid


def test_the_loop_has_its_turn_between_any_two_that_are_adopted(tmp_path: Path) -> None:
    adopted: list[int] = []
    turns: list[int] = []

    async def inherit(process: ProcessId) -> bool:
        adopted.append(process.pid)
        asyncio.get_running_loop().call_soon(lambda: turns.append(len(adopted)))
        return False

    async def look(pid: int) -> Record | None:
        return None

    give_back(tmp_path, 60.0, inherit, look)
    assert adopted == sorted(PIDS, reverse=True)
    assert turns == list(range(1, len(PIDS) + 1)), "something else ran in between"


def test_adopting_leaves_time_for_giving_back(tmp_path: Path) -> None:
    async def inherit(process: ProcessId) -> bool:
        await asyncio.Event().wait()
        return False

    looked: list[int] = []

    async def look(pid: int) -> Record | None:
        looked.append(pid)
        return None

    give_back(tmp_path, 0.5, inherit, look)
    assert set(looked) == set(PIDS)


def test_a_last_try_that_is_cut_short_does_not_hide_what_is_in_the_way(tmp_path: Path) -> None:
    looked: list[int] = []

    async def inherit(process: ProcessId) -> bool:
        return False

    async def look(pid: int) -> Record | None:
        if pid != 12:
            return None
        if looked:
            await asyncio.Event().wait()
        looked.append(pid)
        return Record(ProcessId(pid, start(pid)), "a", "/a", None, reason="frozen")

    given = give_back(tmp_path, 1.5, inherit, look, 12)
    assert looked == [12]
    assert [(left.pid, left.comm, left.reason) for left in given.left] == [(12, "a", "frozen")]

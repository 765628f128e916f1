"""When regions are read again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from hetmemd.engine import following
from hetmemd.engine.following import COST, NET, POLL, Following, State
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

PROCESS = ProcessId(7, 1)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(following.asyncio, "get_running_loop", lambda: self)  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def followed(tmp_path: Path, clock: Clock) -> Following:
    (tmp_path / "proc/7").mkdir(parents=True)
    size(tmp_path, 10)
    followed = Following(Root(str(tmp_path)))
    read(followed, clock)
    return followed


def size(folder: Path, pages: int) -> None:
    (folder / "proc/7/statm").write_text(f"{pages} 1 1 1 0 {pages} 0\n")


def read(followed: Following, clock: Clock, cost: float = 0.0) -> State:
    state = followed.of(PROCESS)
    state.sign, state.mapped_at = followed.sign(7), None
    state.began, state.read_at, state.cost = clock.now - cost, clock.now, cost
    return state


def test_nothing_new_and_nothing_to_read_until_long_after(followed: Following, clock: Clock) -> None:
    assert followed.due() == []
    clock.now += NET + 0.1
    assert followed.due() == [7]


def test_another_size_is_a_sign(followed: Following, clock: Clock, tmp_path: Path) -> None:
    size(tmp_path, 11)
    clock.now += POLL + 0.1
    assert followed.due() == [7]
    read(followed, clock, cost=0.1)
    size(tmp_path, 12)
    assert followed.due() == [], "it was dear"
    clock.now += 0.1 * COST + 0.1
    assert followed.due() == [7]


def test_what_is_told_is_read_at_once_but_not_too_often(followed: Following, clock: Clock) -> None:
    clock.now += POLL + 0.1
    assert followed.has_mapped(7, clock.now)
    assert followed.due() == [7]
    state = read(followed, clock)
    clock.now += 0.01
    assert not followed.has_mapped(7, clock.now)
    assert not followed.has_mapped(7, clock.now - 0.005), "an earlier time of another CPU's"
    assert state.mapped_at == clock.now - 0.005
    assert followed.due() == []
    clock.now += POLL
    assert followed.due() == [7], "at the next look at all"


def test_what_is_told_late_is_known(followed: Following, clock: Clock) -> None:
    state = read(followed, clock, cost=0.02)
    clock.now += 0.02 * COST + POLL
    assert not followed.has_mapped(7, state.began - 0.001), "it was read after that"
    assert state.mapped_at is None
    assert followed.has_mapped(7, state.began + 0.001), "it may have come too late for that reading"
    assert not followed.has_mapped(8, clock.now), "nobody asked"


def test_what_is_mapped_while_it_is_read_is_found_a_little_later(followed: Following, clock: Clock) -> None:
    clock.now += NET
    state = followed.of(PROCESS)
    state.began = clock.now
    clock.now += 0.01
    assert not followed.has_mapped(7, clock.now)
    assert followed.due() == [], "one reading is enough"
    state.read_at = clock.now
    clock.now += POLL + 0.1
    assert followed.due() == [7]


def test_another_process_begins_anew(followed: Following) -> None:
    first = followed.of(PROCESS)
    assert followed.of(PROCESS) is first
    other = ProcessId(7, 2)
    assert followed.known(other) is None
    assert followed.of(other) is not first
    assert followed.known(PROCESS) is None
    followed.forget(7)
    assert followed.known(other) is None


def test_one_that_ended_is_forgotten(followed: Following, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "proc/7/statm").unlink()
    clock.now += POLL + 0.1
    assert followed.due() == []
    assert followed.known(PROCESS) is None


def test_it_says_whom_it_follows(followed: Following) -> None:
    async def main() -> None:
        said: list[Collection[int]] = []
        task = asyncio.create_task(followed.run(lambda pid: None, said.append))
        while not said:
            await asyncio.sleep(0)
        task.cancel()
        assert list(said[0]) == [7]
        followed.forget(7)
        assert not said[0]

    asyncio.run(main())

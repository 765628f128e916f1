"""How an inotify source reads: at once, then no sooner than a moment later, and all that came by then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from hetmemd.watch import inotify
from hetmemd.watch.inotify import PACE, Event, InotifySource


class Source(InotifySource):
    name = "a"

    def __init__(self, folder: Path) -> None:
        super().__init__(asyncio.get_running_loop(), lambda hints: None)
        self.batches: list[list[str]] = []
        self.came = asyncio.Event()
        assert self.open()
        assert self.inotify is not None
        self.inotify.add(str(folder), inotify.IN_CREATE)

    def take(self, events: Sequence[Event], overflow: bool) -> None:
        assert not overflow
        self.batches.append([event.name for event in events])
        self.came.set()

    async def wait(self) -> None:
        async with asyncio.timeout(30):
            await self.came.wait()
        self.came.clear()


def test_what_comes_in_masses_is_taken_together(tmp_path: Path) -> None:
    async def run() -> None:
        source = Source(tmp_path)
        names = [f"{number:04}" for number in range(200)]
        began = time.monotonic()
        for name in names:
            (tmp_path / name).touch()
            await asyncio.sleep(0.001)
        while sum(map(len, source.batches)) < len(names):
            await source.wait()
        ended = time.monotonic()
        source.close()
        assert [name for batch in source.batches for name in batch] == names
        assert all(source.batches)
        assert len(source.batches) <= (ended - began) / PACE + 2
        assert source.events == len(names)

    asyncio.run(run())


def test_more_than_one_reading_holds_is_one_batch(tmp_path: Path) -> None:
    async def run() -> None:
        source = Source(tmp_path)
        names = [f"{number:04}{'x' * 200}" for number in range(1000)]  # 240 KiB of events
        for name in names:
            (tmp_path / name).touch()
        await source.wait()
        source.close()
        assert source.batches == [names]

    asyncio.run(run())


def test_what_is_closed_in_a_pause_says_nothing_more(tmp_path: Path) -> None:
    async def run() -> None:
        source = Source(tmp_path)
        (tmp_path / "a").touch()
        await source.wait()
        (tmp_path / "b").touch()
        source.close()
        await asyncio.sleep(3 * PACE)
        assert source.batches == [["a"]]
        assert not source.up

    asyncio.run(run())

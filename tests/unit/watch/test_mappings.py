"""When mappings are recorded: while somebody wants it, and not where there are too many. Real ones: tests/machine."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Coroutine, Sequence

import pytest

from hetmemd.kernel.perf import online
from hetmemd.kernel.root import Root
from hetmemd.watch import mappings
from hetmemd.watch.hint import Hint, RegionsHint
from hetmemd.watch.mappings import ASLEEP, MappingsSource

ROOT = Root()
PIDS = range(1, 10)


class Recorded:
    """Records that the test makes up."""

    opened = 0

    def __init__(self, root: Root) -> None:
        self.cpus = online(root)
        self.taken: list[tuple[dict[int, int], int, int]] = []
        self.reading = 0.0
        Recorded.opened += 1

    def tell(self, mapped: dict[int, int], lost: int = 0) -> None:
        self.taken.append((mapped, len(mapped), lost))

    def take(self) -> tuple[dict[int, int], int, int]:
        until = time.thread_time() + self.reading
        while time.thread_time() < until:
            pass
        return self.taken.pop() if self.taken else ({}, 0, 0)

    def close(self) -> None:
        Recorded.opened -= 1


def refused(code: int) -> type[Recorded]:
    class Refused(Recorded):
        def __init__(self, root: Root) -> None:
            raise OSError(code, os.strerror(code))

    return Refused


class Case:
    def __init__(self, opener: type[Recorded] = Recorded) -> None:
        self.hints: list[Hint] = []
        self.changes = 0
        self.made: list[Recorded] = []

        def open_(root: Root) -> Recorded:
            self.made.append(opener(root))
            return self.made[-1]

        self.source = MappingsSource(ROOT, asyncio.get_running_loop(), self.deliver, opener=open_)  # type: ignore[arg-type]
        self.source.start()

    def deliver(self, hints: Sequence[Hint]) -> None:
        self.hints += hints
        self.changes += not hints

    @property
    def latest(self) -> Recorded:
        return self.made[-1]

    async def tell(self, mapped: dict[int, int], lost: int = 0) -> None:
        """Until that is taken."""
        self.latest.tell(mapped, lost)
        while self.latest.taken:
            await asyncio.sleep(0.001)


def run(case: Coroutine[None, None, None]) -> None:
    before = Recorded.opened
    asyncio.run(case)
    assert Recorded.opened == before


def test_nothing_is_recorded_unless_it_is_wanted() -> None:
    async def main() -> None:
        case = Case()
        assert (case.source.up, case.source.note, Recorded.opened) == (True, ASLEEP, 0)
        case.source.want(PIDS)
        case.source.want(PIDS)
        assert (case.source.note, Recorded.opened) == ("", 1)
        await case.tell({7: 1_500_000_000, 8: 2_000_000_000, 10: 0})
        assert case.hints == [RegionsHint(7, 1.5), RegionsHint(8, 2.0)]
        assert case.source.events == 3
        assert case.changes == 1
        case.source.want(())
        assert (case.source.note, Recorded.opened, case.changes) == (ASLEEP, 0, 2)
        case.source.want(PIDS)
        await case.tell({9: 0})
        case.source.close()
        assert (case.source.up, len(case.hints)) == (False, 3)

    run(main())


@pytest.mark.parametrize(
    ("code", "note"),
    [
        (errno.EACCES, "not allowed: needs CAP_PERFMON"),
        (errno.EPERM, "not allowed: needs CAP_PERFMON"),
        (errno.ENOSYS, "perf events cannot be had: function not implemented"),
    ],
)
def test_what_cannot_be_opened_is_said_and_not_tried_again(code: int, note: str) -> None:
    async def main() -> None:
        case = Case(refused(code))
        for _ in range(2):
            assert (case.source.up, case.source.note) == (False, note)
            case.source.want(PIDS)
        assert not case.made
        case.source.close()

    run(main())


def test_where_more_is_mapped_than_can_be_followed_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "FIRST_REST", 0.05)
    monkeypatch.setattr(mappings, "LAST_REST", 0.15)

    async def main() -> None:
        case = Case()
        case.source.want(PIDS)
        rests = []
        for losses in range(1, 5):
            await case.tell({losses: 0}, lost=3)
            assert not Recorded.opened
            assert "not followed" in case.source.note
            assert case.source.losses == losses
            rests.append(case.source._rest)
            while not Recorded.opened:
                await asyncio.sleep(0.001)
            assert case.source.note == ""
        assert rests == [0.05, 0.1, 0.15, 0.15]
        # What came before is of use all the same.
        assert case.hints == [RegionsHint(pid, 0) for pid in range(1, 5)]
        await asyncio.sleep(0.2)
        await case.tell({1: 0}, lost=1)
        assert case.source._rest == 0.05, "none were lost for long"
        case.source.want(())
        case.source.want(PIDS)
        await case.tell({1: 0})
        case.source.close()

    run(main())


def test_reading_takes_its_share_of_a_core_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        case = Case()
        case.source.want(PIDS)
        case.latest.reading = 0.01
        await case.tell({1: 0})
        began = time.monotonic()
        await case.tell({2: 0})
        assert time.monotonic() - began >= 0.01 * mappings.COST
        case.source.close()

    run(main())


def test_other_processors_are_followed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "LAST_REST", 0.0)

    async def main() -> None:
        case = Case()
        case.source.want(PIDS)
        first = case.latest
        await case.tell({1: 0})
        assert case.latest is first
        monkeypatch.setattr(mappings, "online", lambda root: first.cpus | {4096})
        while case.latest is first:
            await asyncio.sleep(0.001)
        assert Recorded.opened == 1
        await case.tell({2: 0})
        assert case.hints == [RegionsHint(1, 0), RegionsHint(2, 0)]
        case.source.close()

    run(main())


def test_what_cannot_be_opened_again_is_said() -> None:
    async def main() -> None:
        case = Case()
        case.source._opener = refused(errno.EMFILE)  # type: ignore[assignment]
        case.source.want(PIDS)
        assert (case.source.up, case.source.note) == (False, "perf events cannot be had: too many open files")
        assert case.changes == 1
        case.source.want(())
        case.source.close()

    run(main())

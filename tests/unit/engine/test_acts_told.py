"""What is asked right before an act, and what the brakes are told of it: every stop, whatever came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hetmemd.engine.binding import Binder, Wish
from hetmemd.engine.braking import Permit
from hetmemd.engine.decide import UNDO, Decision, Mark, Verb, Wanted
from hetmemd.engine.following import State
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.engine.record import Record, Seen
from hetmemd.engine.regionwise import Asked, Change
from hetmemd.engine.steering import Steering, _Reading
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory.scope import scope
from hetmemd.remote.regions import RegionsResult
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.report.tally import Tally

POLICY = Mempolicy(Mode.INTERLEAVE, frozenset({1}))
WANTED = Wanted(POLICY, "/etc/hetmemd.d/a.toml:1", "key")
WISH = Wish(Asked(POLICY, scope(("anon",))), "/etc/hetmemd.d/a.toml:1", key="key")
PROCESS = ProcessId(7, 1007)
LOCAL = Mempolicy(Mode.LOCAL)


class Told:
    """Brakes that grant what they are told to, and the effect that gives these results."""

    def __init__(self, granted: int, threads: list[ThreadResult], regions: RegionsResult | None = None) -> None:
        self.granted, self.threads, self.regions = granted, threads, regions
        self.lock = asyncio.Lock()
        self.done_with: list[tuple[int, int, bool]] = []
        self.acted_on: Sequence[object] = []
        self.is_undone = False
        self.is_observing = False
        self.wanted = {"/a": WANTED, "/b": Wanted(None, "T3")}
        self.wish = {"/a": WISH, "/b": Wish(Asked(None, scope(("all",))), "T3")}
        self.is_threaded = False
        self.has_room = True
        self.root = Root(Path("/"))
        self.record = Record(PROCESS, "x", "/a", None)
        self.expected: set[Mempolicy] = set()

    def undone(self, process: ProcessId, cgroup: str) -> bool:
        return self.is_undone

    def about(self, process: ProcessId, cgroup: str, reason: str) -> str:
        return ""

    def moves_to(self, cgroup: str, *tids: int) -> None:
        """A process, or these of its threads."""
        for name in [f"task/{tid}/" for tid in tids] or ["", "task/7/", "task/8/", "task/9/"]:
            file = self.root.path(f"/proc/7/{name}cgroup")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"0::{cgroup}\n")
        self.root.path("/proc/7/stat").write_text(f"7 (x) S {' '.join(['0'] * 18)} 1007 0 0\n")

    def turn(self, process: ProcessId) -> AbstractAsyncContextManager[None]:
        return self.lock

    def permit(self, process: ProcessId, cgroup: str, policy: str, count: int) -> Permit:
        assert self.lock.locked()
        return Permit(min(self.granted, count), Outcome.DEFERRED, "stop-rate")

    def done(self, process: ProcessId, policy: str, granted: int, stops: int, ended: bool = False) -> None:
        assert self.lock.locked()
        self.done_with.append((granted, stops, ended))

    async def apply(self, process: ProcessId, policy: Mempolicy, tids: list[int], expected: set[Mempolicy]) -> Any:
        self.acted_on, self.expected = tids, expected
        return self.threads

    async def bind(self, process: ProcessId, requests: Sequence[object]) -> Any:
        self.acted_on = requests
        return self.regions


def run(tmp_path: Path, act: Callable[[Root, Ledger], Coroutine[Any, Any, Any]]) -> Any:
    root = Root(tmp_path)
    root.path(BOOT_ID).parent.mkdir(parents=True)
    root.path(BOOT_ID).write_text("one\n")

    async def acted() -> Any:
        ledger = Ledger(root)
        try:
            return await act(root, ledger)
        finally:
            ledger.close()

    return asyncio.run(acted())


def steered(tmp_path: Path, granted: int, *threads: ThreadResult) -> tuple[Told, list[ThreadResult]]:
    found: tuple[Told, list[ThreadResult]] = run(
        tmp_path, lambda root, ledger: steer(root, ledger, Told(granted, list(threads)))
    )
    return found


class Silent:
    def application(self, *said: object) -> None:
        pass


Meanwhile = Callable[[Told], None]


async def waits(told: Told, act: Coroutine[Any, Any, Any], meanwhile: Meanwhile) -> Any:
    """What comes of an act when so much happens while it waits for its turn."""
    async with told.lock:
        task = asyncio.create_task(act)
        await asyncio.sleep(0)
        meanwhile(told)
    return await task


def steering_of(root: Root, ledger: Ledger, told: Told) -> Steering:
    told.root = root
    told.moves_to("/a")
    return Steering(
        root,
        ledger,
        told,  # type: ignore[arg-type]
        lambda path: told.wanted[path],
        lambda: frozenset({0, 1}),
        lambda path: told.is_threaded,
        lambda: told.is_observing,
        told,  # type: ignore[arg-type]
        Silent(),
    )


async def steer(
    root: Root, ledger: Ledger, told: Told, meanwhile: Meanwhile = lambda told: None, asked: Wanted = WANTED
) -> Any:
    steering = steering_of(root, ledger, told)
    steering._has_room = lambda policy, allowed: told.has_room  # type: ignore[method-assign]
    record, allowed = told.record, frozenset({0, 1})
    verb = Verb.APPLY if asked.policy else Verb.RESTORE
    # Each has a policy of its own, which is replaced.
    decision = Decision(verb, asked.policy or DEFAULT, None, mark=Mark(asked.policy, LOCAL) if asked.policy else None)
    record.seen = {tid: Seen(LOCAL, LOCAL, allowed, decision, asked) for tid in (7, 8, 9)}
    try:
        act = steering._act(record, asked.policy or DEFAULT, asked, verb, dict(record.seen))
        return told, await waits(told, act, meanwhile)
    finally:
        steering.close()


async def bind(
    root: Root, ledger: Ledger, told: Told, meanwhile: Meanwhile = lambda told: None, wish: Wish = WISH
) -> Any:
    told.root = root
    told.moves_to("/a")
    binder = Binder(
        root,
        ledger,
        told,  # type: ignore[arg-type]
        lambda path: told.wish[path],
        lambda: frozenset({0, 1}),
        lambda: told.is_observing,
        told,
        lambda *said: None,
        Tally(),
    )
    change = Change(4096, 8192, POLICY, DEFAULT)
    try:
        act = binder._act(Record(PROCESS, "x", "/a", None), State(PROCESS), wish, [change])
        return told, await waits(told, act, meanwhile)
    finally:
        binder.close()


def bound(tmp_path: Path, granted: int, result: RegionsResult) -> tuple[Told, tuple[bool, tuple[Outcome, str] | None]]:
    """With whether it was bound, and what stands in the way."""
    found: tuple[Told, tuple[bool, tuple[Outcome, str] | None]] = run(
        tmp_path, lambda root, ledger: bind(root, ledger, Told(granted, [], result))
    )
    return found


def test_stops_count_whatever_came_of_them(tmp_path: Path) -> None:
    told, results = steered(
        tmp_path,
        2,
        ThreadResult(7, Outcome.DEFERRED, "signals", stops=50),
        ThreadResult(8, Outcome.APPLIED, "", pause_ns=1000, stops=1),
    )
    assert told.acted_on == [7, 8]
    assert told.done_with == [(2, 51, False)]
    assert [result.reason for result in results] == ["signals", "", "stop-rate"]


def test_a_thread_that_ended_while_it_was_held_is_told(tmp_path: Path) -> None:
    told, _ = steered(tmp_path, 1, ThreadResult(7, Outcome.GONE, "exited", stops=1))
    assert told.done_with == [(1, 1, True)]


def test_one_that_ended_before_was_not_touched(tmp_path: Path) -> None:
    told, _ = steered(tmp_path, 1, ThreadResult(7, Outcome.GONE, "exited"))
    assert told.done_with == [(1, 0, False)]


def test_binding_tells_all_of_its_stops(tmp_path: Path) -> None:
    told, result = bound(tmp_path, 1, RegionsResult(Outcome.APPLIED, "", 0, (0,), (1000, 1000), stops=12))
    assert (told.done_with, result) == ([(1, 12, False)], (True, None))


def test_binding_tells_that_its_thread_ended(tmp_path: Path) -> None:
    told, _ = bound(tmp_path, 1, RegionsResult(Outcome.GONE, "exited", 0, (), (), stops=1))
    assert told.done_with == [(1, 1, True)]


def test_binding_does_nothing_without_a_stop_granted(tmp_path: Path) -> None:
    told, result = bound(tmp_path, 0, RegionsResult(Outcome.APPLIED, "", 0, (), ()))
    assert (told.done_with, result) == ([], (False, (Outcome.DEFERRED, "stop-rate")))


# -- what happens while an act waits for its turn


def switches_off(told: Told) -> None:
    told.is_observing = True


def removes_the_policy(told: Told) -> None:
    told.wanted["/a"], told.wish["/a"] = told.wanted["/b"], told.wish["/b"]


def changes_the_policy(told: Told) -> None:
    told.wanted["/a"], told.wish["/a"] = replace(WANTED, key="another"), replace(WISH, key="another")


def undoes(told: Told) -> None:
    told.is_undone = True


def moves(told: Told) -> None:
    told.moves_to("/b")


def moves_a_thread(told: Told) -> None:
    told.is_threaded = True
    told.moves_to("/b", 9)


def fills_up(told: Told) -> None:
    told.has_room = False


def moves_a_line(told: Told) -> None:
    told.wanted["/a"], told.wish["/a"] = replace(WANTED, why="a.toml:2"), replace(WISH, why="a.toml:2")


BOTH = [
    (switches_off, "observe"),
    (removes_the_policy, "changed"),
    (changes_the_policy, "changed"),
    (undoes, "changed"),
    (moves, "changed"),
]


@pytest.mark.parametrize(("meanwhile", "reason"), [*BOTH, (moves_a_thread, "changed"), (fills_up, "headroom")])
def test_threads_that_waited_are_left_alone_when_it_is_not_wanted_any_more(
    tmp_path: Path, meanwhile: Meanwhile, reason: str
) -> None:
    told, results = run(tmp_path, lambda root, ledger: steer(root, ledger, Told(3, []), meanwhile))
    assert (told.acted_on, told.done_with) == ([], [])
    assert [result.reason for result in results] == [reason] * 3


@pytest.mark.parametrize(("meanwhile", "reason"), BOTH)
def test_regions_that_waited_are_left_alone_when_it_is_not_wanted_any_more(
    tmp_path: Path, meanwhile: Meanwhile, reason: str
) -> None:
    bound_one = RegionsResult(Outcome.APPLIED, "", 0, (0,), (), stops=1)
    told, (done, hindrance) = run(tmp_path, lambda root, ledger: bind(root, ledger, Told(1, [], bound_one), meanwhile))
    assert (told.acted_on, told.done_with, done) == ([], [], False)
    assert hindrance == (Outcome.DEFERRED, reason)


def test_what_is_wanted_still_is_done_after_the_wait(tmp_path: Path) -> None:
    results = [ThreadResult(tid, Outcome.APPLIED, "", stops=1) for tid in (7, 8, 9)]
    told, _ = run(tmp_path / "threads", lambda root, ledger: steer(root, ledger, Told(3, results), moves_a_line))
    assert told.acted_on == [7, 8, 9]
    bound_one = RegionsResult(Outcome.APPLIED, "", 0, (0,), (), stops=1)
    told, (done, _) = run(
        tmp_path / "regions", lambda root, ledger: bind(root, ledger, Told(1, [], bound_one), moves_a_line)
    )
    assert done


def test_what_is_given_back_on_demand_is_so_whatever_the_switch_says(tmp_path: Path) -> None:
    def both(told: Told) -> None:
        told.is_undone = told.is_observing = True

    results = [ThreadResult(7, Outcome.APPLIED, "", stops=1)]
    told, _ = run(tmp_path, lambda root, ledger: steer(root, ledger, Told(3, results), both, UNDO))
    assert told.acted_on == [7, 8, 9]


def test_what_is_replaced_is_remembered_also_where_the_record_is_renewed_meanwhile(tmp_path: Path) -> None:
    """An exec that is heard of late, or a cpuset that is written: it is read anew, but this act is of what was read."""
    told = Told(3, [ThreadResult(tid, Outcome.APPLIED, "", stops=1) for tid in (7, 8, 9)])

    async def act(root: Root, ledger: Ledger) -> Any:
        await steer(root, ledger, told, lambda told: told.record.renew())
        return ledger.marks(PROCESS)

    marks = run(tmp_path, act)
    assert {tid: mark.replaced for tid, mark in marks.items()} == dict.fromkeys((7, 8, 9), LOCAL)
    assert told.expected == {LOCAL}, "nor is another written over"


def test_a_policy_of_its_own_is_known_also_where_the_record_is_renewed_amid_the_reading(tmp_path: Path) -> None:
    """Or its regions would be bound."""
    told = Told(0, [])
    decision = Decision(Verb.LEAVE, LOCAL, Outcome.FOREIGN, "own-local")
    own = {7: Seen(LOCAL, LOCAL, frozenset({0, 1}), decision, WANTED)}

    def read(record: Record) -> _Reading:
        record.renew()
        return _Reading(own, frozenset({7}), 1, False, "", "")

    async def act(root: Root, ledger: Ledger) -> None:
        steering = steering_of(root, ledger, told)
        steering._read = read  # type: ignore[method-assign,assignment]
        try:
            await steering.look(told.record)
        finally:
            steering.close()

    run(tmp_path, act)
    assert told.record.own == LOCAL
    assert not told.record.seen, "all is to be read anew"

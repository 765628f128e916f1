"""`bind` is issued only where its nodes have room to spare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from pathlib import Path

import pytest

from hetmemd.engine.binding import Binder, Wish
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.engine.record import Record
from hetmemd.engine.regionwise import Asked, Change
from hetmemd.engine.steering import Steering
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory.headroom import BIND_RESERVE
from hetmemd.memory.scope import scope
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

MANAGED, HIGH = 640000, 4000
RESERVED = HIGH + MANAGED // 64
"""Pages that moving leaves alone as well."""
EVERY = frozenset(range(8))

HasRoom = Callable[..., bool]


@pytest.fixture
def with_free(tmp_path: Path) -> Callable[..., HasRoom]:
    """`with_free(PAGES of node 0, ...)` gives: whether a policy of this mode on these nodes may be issued."""

    def made(*free: int) -> HasRoom:
        zone = "Node {}, zone   Normal\n  pages free     1\n        high     {}\n        managed  {}\n"
        zones = "".join(zone.format(node, HIGH, MANAGED) for node in range(len(free)))
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/zoneinfo").write_text(zones)
        for node, pages in enumerate(free):
            folder = tmp_path / f"sys/devices/system/node/node{node}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "vmstat").write_text(f"nr_free_pages {pages}\nnr_inactive_file 0\nnr_dirty 0\nnr_writeback 0\n")

        def has_room(mode: Mode, *allowed: Set[int], nodes: Set[int] = EVERY, flag: Flag = Flag.STATIC_NODES) -> bool:
            """For threads with these cpusets; without, for one that may use all nodes."""
            policy = Mempolicy(mode, frozenset(nodes & set(range(len(free)))), flag)
            return asyncio.run(_asked(Root(tmp_path), policy, [frozenset(each) for each in allowed or [EVERY]]))

        return has_room

    return made


async def _asked(root: Root, policy: Mempolicy, allowed: list[frozenset[int]]) -> bool:
    unused: Callable[..., None] = lambda *_: None  # noqa: E731
    steering = Steering(root, *[unused] * 8)  # type: ignore[arg-type]
    try:
        return steering._has_room(policy, allowed)
    finally:
        steering.close()


def test_L7_bind_needs_headroom_above_the_reserve(with_free: Callable[..., HasRoom]) -> None:
    enough = RESERVED + BIND_RESERVE
    assert with_free(enough)(Mode.BIND)
    assert not with_free(enough - 1)(Mode.BIND)
    assert with_free(0, enough)(Mode.BIND), "the room of all its nodes counts"


def test_L7_modes_that_fall_back_need_none(with_free: Callable[..., HasRoom]) -> None:
    for mode in (Mode.PREFERRED_MANY, Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE):
        assert with_free(0)(mode)


def test_L7_only_the_nodes_that_the_cpuset_leaves_count(with_free: Callable[..., HasRoom]) -> None:
    """cpuset.mems = 1-2 and a bind to 0-1: all goes to node 1."""
    enough = RESERVED + BIND_RESERVE
    has_room = with_free(enough, 0, enough)
    assert not has_room(Mode.BIND, {1, 2}, nodes={0, 1})
    assert has_room(Mode.BIND, {0, 2}, nodes={0, 1})
    assert not has_room(Mode.BIND, {0, 1}, {1, 2}, nodes={0, 1}), "one of its threads"


def test_L7_relative_nodes_are_folded_first(with_free: Callable[..., HasRoom]) -> None:
    enough = RESERVED + BIND_RESERVE
    has_room = with_free(enough, 0, enough)
    assert not has_room(Mode.BIND, {1, 2}, nodes={0}, flag=Flag.RELATIVE_NODES)
    assert has_room(Mode.BIND, {1, 2}, nodes={1}, flag=Flag.RELATIVE_NODES)


# -- regions

BIND = Mempolicy(Mode.BIND, frozenset({0, 1}), Flag.STATIC_NODES)
THEIRS = Mempolicy(Mode.BIND, frozenset({1}))
GIVEN = Change(0, 4096, BIND, DEFAULT)
GIVEN_BACK = Change(8192, 12288, THEIRS, THEIRS, undoes=True)
TAKEN_AWAY = Change(16384, 20480, DEFAULT, DEFAULT, undoes=True)


async def _possible(top: Path, allowed: frozenset[int], wish: Wish, todo: list[Change]) -> object:
    root = Root(top)
    root.path(BOOT_ID).parent.mkdir(parents=True, exist_ok=True)
    root.path(BOOT_ID).write_text("boot")
    ledger = Ledger(root)
    unused: Callable[..., None] = lambda *_: None  # noqa: E731
    binder = Binder(root, ledger, *[unused] * 6, Tally())  # type: ignore[call-arg, arg-type]
    record = Record(ProcessId(10, int(1e9)), "a", "/a", None, allowed=allowed)
    try:
        return binder._possible(record, wish, todo)
    finally:
        binder.close()
        ledger.close()


def possible(top: Path, allowed: frozenset[int], *todo: Change, min_age: float = -1e12) -> object:
    wish = Wish(Asked(BIND, scope(("anon",))), "", min_age)
    return asyncio.run(_possible(top, allowed, wish, list(todo)))


REFUSED = (Outcome.REFUSED, "headroom")


def test_L7_regions_are_given_back_to_a_full_node_and_not_bound_to_one(
    tmp_path: Path, with_free: Callable[..., HasRoom]
) -> None:
    with_free(RESERVED + BIND_RESERVE, 0)
    both, full = frozenset({0, 1}), frozenset({1})
    assert possible(tmp_path, both, GIVEN, GIVEN_BACK, TAKEN_AWAY) == ([GIVEN, GIVEN_BACK, TAKEN_AWAY], None)
    # Of the policy's nodes the cpuset leaves the full one. What is given back waits for nothing.
    assert possible(tmp_path, full, GIVEN, GIVEN_BACK, TAKEN_AWAY) == ([GIVEN_BACK, TAKEN_AWAY], REFUSED)
    assert possible(tmp_path, full, GIVEN_BACK) == ([GIVEN_BACK], None)


def test_a_young_process_is_given_back_what_it_had(tmp_path: Path, with_free: Callable[..., HasRoom]) -> None:
    with_free(RESERVED + BIND_RESERVE, 0)
    young = (Outcome.DEFERRED, "young")
    assert possible(tmp_path, frozenset({0}), GIVEN, GIVEN_BACK, min_age=1e12) == ([GIVEN_BACK], young)
    assert possible(tmp_path, frozenset({0}), GIVEN_BACK, min_age=1e12) == ([GIVEN_BACK], None)

"""What becomes of folios that are to be moved, whatever the kernel says, before a kernel that is told what to say."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetmemd.kernel import pages
from hetmemd.memory.moving import (
    CALL_SECONDS,
    FIRST_RETRY,
    MOST_WAITING,
    STALE,
    TRIES,
    Batch,
    Lanes,
    Mover,
    Pace,
    _Called,
)

MUCH = 1 << 30
SECONDS = 1.0


@dataclass
class Kernel:
    """Memory of one process as move_pages(2) shows it (do_pages_move() in mm/migrate.c), and the time that it is."""

    nodes: dict[int, int] = field(default_factory=dict)
    """Of each folio that is there, by address."""
    pinned: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    fails: dict[int, int] = field(default_factory=dict)
    """By destination: the errno at which a call breaks off,"""
    before: int = 0
    """once so many were moved."""
    now: float = 100.0
    calls: list[list[int]] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    moves: Counter[int] = field(default_factory=Counter)
    """How often each was moved."""
    queries: int = 0

    def clock(self) -> float:
        return self.now

    def query(self, tid: int, addresses: pages.Addresses) -> pages.Statuses:
        self.queries += 1
        return np.array([self.nodes.get(each, -errno.ENOENT) for each in addresses.tolist()], dtype=np.int32)

    def move(self, tid: int, addresses: pages.Addresses, destination: int, flags: int = 0) -> pages.MoveCall:
        wanted = addresses.tolist()
        self.calls.append(wanted)
        self.flags.append(flags)
        statuses = np.full(len(wanted), pages.UNWRITTEN, dtype=np.int32)
        gathered: list[int] = []
        moved = 0
        for place, address in enumerate(wanted):
            if destination in self.fails and moved + len(gathered) == self.before:
                self._migrate(gathered, destination)
                return pages.MoveCall(-self.fails[destination], statuses)
            why = 0
            if address not in self.nodes:
                why = -errno.ENOENT
            elif address in self.shared and flags != pages.MPOL_MF_MOVE_ALL:
                why = -errno.EACCES
            if not why:
                gathered.append(address)
                continue
            # One that cannot be gathered: what was gathered is moved first, and where that fails nothing more is tried.
            statuses[place] = why
            left = self._migrate(gathered, destination)
            moved += len(gathered) - left
            if left:
                return pages.MoveCall(left + len(wanted) - place - 1, statuses)
            statuses[place - len(gathered) : place] = destination
            gathered = []
        left = self._migrate(gathered, destination)
        if not left:
            statuses[len(wanted) - len(gathered) :] = destination
        return pages.MoveCall(left, statuses)

    def _migrate(self, gathered: list[int], destination: int) -> int:
        """How many did not move."""
        going = [address for address in gathered if address not in self.pinned]
        for address in going:
            self.nodes[address] = destination
            self.moves[address] += 1
        return len(gathered) - len(going)


@dataclass
class Plenty:
    """Room on each node."""

    pages: dict[int, int] = field(default_factory=dict)

    def room(self, node: int, folio: int = 1) -> int:
        return self.pages.get(node, MUCH)


@dataclass
class Agreed:
    addresses: set[int]

    def agree(self, tid: int, addresses: pages.Addresses, sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.array([each in self.addresses for each in addresses.tolist()], dtype=bool)


def memory(count: int, node: int = 0) -> Kernel:
    return Kernel(dict.fromkeys(at(range(count)), node))


def at(places: Iterable[int]) -> list[int]:
    return [place * 4096 for place in places]


def batch(kernel: Kernel, places: Iterable[int], destination: int = 1, size: int = 1) -> Batch:
    addresses = at(places)
    return Batch(
        destination,
        size > 1,
        np.array(addresses, dtype=np.int64),
        np.full(len(addresses), size, dtype=np.int32),
        np.array([kernel.nodes[each] for each in addresses], dtype=np.int16),
        kernel.now,
    )


def mover(kernel: Kernel, room: Plenty | None = None, agreed: Agreed | None = None, lanes: int = 1) -> Mover:
    return Mover(room or Plenty(), Pace(), agreed, kernel, kernel.clock, Lanes(lanes, map))


def go_on(moving: Mover, kernel: Kernel, until: Callable[[], bool] = lambda: False) -> None:
    """Until nothing is left to be done; time passes while pages wait."""
    for _ in range(10_000):
        while moving.has_moves:
            moving.call(7, MUCH, SECONDS)
        wait = moving.retry()
        if wait < 0 or until():
            return
        kernel.now += wait
    raise AssertionError("no end")


def test_all_move() -> None:
    kernel = memory(3000)
    moving = mover(kernel)
    moving.put(batch(kernel, range(3000)))
    go_on(moving, kernel)
    done = moving.take()
    assert set(kernel.nodes.values()) == {1}
    assert (done.pages, done.moved, +done.failed) == (3000, {(0, 1): 3000}, {})
    assert not kernel.queries, "the kernel has said so of all"
    assert moving.take().pages == 0


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOMEM, "no-memory"), (errno.ENODEV, "other"), (errno.EACCES, "cpuset")]
)
@pytest.mark.parametrize("before", [0, 3])
def test_a_call_that_breaks_off_has_moved_some_and_its_node_takes_no_more(
    number: int, reason: str, before: int
) -> None:
    kernel = memory(30)
    kernel.fails, kernel.before = {1: number}, before
    moving = mover(kernel)
    for places, node in ((range(10), 1), (range(10, 20), 2), (range(20, 30), 1)):
        moving.put(batch(kernel, places, node))
    go_on(moving, kernel)
    done = moving.take()
    assert +done.failed == {reason: 20 - before}
    assert +done.moved == +Counter({(0, 1): before, (0, 2): 10})
    assert moving.refused == {1: reason}
    assert len(kernel.calls) == 2, "nothing more is asked of that node"


def test_a_busy_page_that_is_let_go_moves_later() -> None:
    kernel = memory(10)
    kernel.pinned = set(at([4]))
    moving = mover(kernel)
    moving.put(batch(kernel, range(10)))
    begin = kernel.now
    moving.call(7, MUCH, SECONDS)
    assert moving.take().pages == 9
    assert moving.retry() == pytest.approx(FIRST_RETRY)
    assert not moving.has_moves
    kernel.now += FIRST_RETRY
    assert moving.retry() == 0
    moving.call(7, MUCH, SECONDS)
    assert moving.retry() == pytest.approx(4 * FIRST_RETRY)
    kernel.pinned.clear()
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (1, {})
    assert kernel.now - begin == pytest.approx(5 * FIRST_RETRY)
    assert kernel.calls[1:] == [at([4])] * 2


def test_a_page_that_stays_busy_is_given_up() -> None:
    kernel = memory(10)
    kernel.pinned = set(at([4]))
    moving = mover(kernel)
    moving.put(batch(kernel, range(10)))
    go_on(moving, kernel)
    assert +moving.take().failed == {"busy": 1}
    assert sum(at([4])[0] in call for call in kernel.calls) == TRIES
    assert moving.refused == {}


def test_no_more_wait_than_are_remembered() -> None:
    size = 512
    kernel = Kernel(dict.fromkeys(at(range(0, 200 * size, size)), 0))
    kernel.pinned = set(kernel.nodes)
    moving = mover(kernel)
    moving.put(batch(kernel, range(0, 200 * size, size), size=size))
    while moving.has_moves:
        moving.call(7, MUCH, SECONDS)
    given_up = moving.take().failed["busy"]
    assert 200 * size - MOST_WAITING <= given_up < 200 * size - MOST_WAITING + Pace.MOST
    kernel.pinned.clear()
    go_on(moving, kernel)
    assert moving.take().pages == 200 * size - given_up


def test_what_lies_behind_a_stop_is_resumed() -> None:
    """Where a gathered page does not move, the kernel stops at the next that it cannot gather."""
    kernel = memory(20)
    moving = mover(kernel)
    moving.put(batch(kernel, range(20)))
    kernel.pinned = set(at([2]))
    del kernel.nodes[at([5])[0]]
    moving.call(7, MUCH, SECONDS)
    assert moving.take().pages == 4
    assert moving.has_moves
    moving.call(7, MUCH, SECONDS)
    assert kernel.calls[1] == at(range(6, 20))
    kernel.pinned.clear()
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (15, {})
    assert set(kernel.nodes.values()) == {1}


def test_a_plan_that_waited_is_held_against_the_kernel() -> None:
    kernel = memory(10)
    moving = mover(kernel)
    moving.put(batch(kernel, range(10)))
    kernel.now += STALE * 1.1
    kernel.nodes[at([3])[0]] = 2
    del kernel.nodes[at([4])[0]]
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (8, {"other": 1, "not-present": 1})
    assert kernel.nodes[at([3])[0]] == 2


def test_no_more_than_is_allowed_but_one_folio() -> None:
    kernel = Kernel(dict.fromkeys(at(range(0, 8 * 512, 512)), 0))
    moving = mover(kernel)
    moving.put(batch(kernel, range(0, 8 * 512, 512), size=512))
    moving.call(7, 3 * 512 + 5, SECONDS)
    assert moving.take().pages == 3 * 512
    moving.call(7, 1, SECONDS)
    assert moving.take().pages == 512
    assert moving.needs == 512


@pytest.mark.parametrize(
    ("folios", "lanes", "calls"), [(8, 1, [8]), (8, 2, [4, 4]), (7, 3, [2, 2, 3]), (2, 3, [1, 1]), (1, 2, [1])]
)
def test_lanes_share_out_what_one_call_would_move(folios: int, lanes: int, calls: list[int]) -> None:
    kernel = memory(10)
    moving = mover(kernel, lanes=lanes)
    moving.put(batch(kernel, range(10), size=Pace.FEWEST))
    for _ in range(5):
        moving._pace.learn(True, 16 * Pace.FEWEST, CALL_SECONDS)
    moving.call(7, folios * Pace.FEWEST, SECONDS)
    assert moving.take().pages == folios * Pace.FEWEST
    assert [len(call) for call in kernel.calls] == calls
    assert [*itertools.chain(*kernel.calls)] == at(range(folios))


def test_lanes_have_as_many_pages_each_whatever_the_folios() -> None:
    kernel = memory(516)
    moving = mover(kernel, lanes=2)
    mixed = batch(kernel, range(516), size=2)
    mixed.sizes[512:] = 512
    parts = moving._shared_out(mixed)
    assert [*itertools.chain(*(part.addresses.tolist() for part in parts))] == at(range(516))
    assert max(part.pages for part in parts) <= mixed.pages / 2 + 512


@pytest.mark.parametrize("arrives", [True, False])
def test_a_folio_that_another_lane_moves_is_not_taken_for_absent(arrives: bool) -> None:
    """It lies in two parts, and is nowhere for the first while the second moves it."""
    kernel = memory(2 * Pace.FEWEST)
    (on_its_way,) = at([Pace.FEWEST - 1])

    def beside(called: Callable[[Batch], _Called], parts: Iterable[Batch]) -> Iterable[_Called]:
        first, *others = parts
        node = kernel.nodes.pop(on_its_way) if others else 0
        yield called(first)
        if others:
            kernel.nodes[on_its_way] = 1 if arrives else node
        yield from map(called, others)

    moving = Mover(Plenty(), Pace(), None, kernel, kernel.clock, Lanes(2, beside))
    moving.put(batch(kernel, range(2 * Pace.FEWEST)))
    moving.call(7, MUCH, SECONDS)
    assert not +moving.done.failed
    assert moving.done.pages == 2 * Pace.FEWEST - (not arrives)
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (2 * Pace.FEWEST, {})


def test_a_lane_that_finds_the_process_gone_does_not_take_the_others_account_away() -> None:
    kernel = memory(2 * Pace.FEWEST)
    moving = mover(kernel, lanes=2)
    moving.put(batch(kernel, range(2 * Pace.FEWEST)))
    move = kernel.move

    def until_it_ends(tid: int, addresses: pages.Addresses, *rest: int) -> pages.MoveCall:
        if addresses[0] == 0:
            raise ProcessLookupError(errno.ESRCH, "")
        return move(tid, addresses, *rest)

    kernel.move = until_it_ends  # type: ignore[method-assign, assignment]
    with pytest.raises(ProcessLookupError):
        moving.call(7, MUCH, SECONDS)
    moving.give_up("gone")
    done = moving.take()
    assert (done.pages, done.failed) == (Pace.FEWEST, {"gone": Pace.FEWEST})


def test_a_small_call_is_not_shared_out() -> None:
    kernel = memory(2 * Pace.FEWEST - 1)
    moving = mover(kernel, lanes=2)
    moving.put(batch(kernel, range(2 * Pace.FEWEST - 1)))
    moving.call(7, MUCH, SECONDS)
    assert len(kernel.calls) == 1


@dataclass
class InPieces(Plenty):
    """Free blocks are of so many pages at most."""

    largest: int = 1

    def room(self, node: int, folio: int = 1) -> int:
        return MUCH if folio <= self.largest else 0


def test_a_node_that_is_in_pieces_takes_what_fits() -> None:
    kernel = memory(40)
    moving = mover(kernel, InPieces(largest=16))
    mixed = batch(kernel, range(20), size=16)
    mixed.sizes[::2] = 512
    moving.put(mixed)
    moving.put(batch(kernel, range(20, 40)))
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (10 * 16 + 20, {"node-full": 10 * 512})
    assert not moving.refused


@pytest.mark.parametrize("room", [0, 100])
def test_a_full_node_takes_what_it_has_room_for(room: int) -> None:
    kernel = memory(300)
    plenty = Plenty({1: room})
    moving = mover(kernel, plenty)
    moving.put(batch(kernel, range(300)))
    while moving.has_moves:
        before = len(kernel.moves)
        moving.call(7, MUCH, SECONDS)
        plenty.pages[1] -= len(kernel.moves) - before
    done = moving.take()
    assert (done.pages, +done.failed) == (room, {"node-full": 300 - room})
    assert moving.refused == {1: "node-full"}


def test_shared_pages_move_where_all_agree() -> None:
    kernel = memory(10)
    kernel.shared = set(at([2, 3, 4]))
    moving = mover(kernel, agreed=Agreed(set(at([2, 3]))))
    moving.put(batch(kernel, range(10)))
    go_on(moving, kernel)
    done = moving.take()
    assert (done.pages, +done.failed) == (9, {"shared": 1})
    assert kernel.flags == [pages.MPOL_MF_MOVE, pages.MPOL_MF_MOVE_ALL]
    assert kernel.calls[1] == at([2, 3])


def test_giving_up_counts_what_waits_too() -> None:
    kernel = memory(10)
    kernel.pinned = set(at([1]))
    moving = mover(kernel)
    moving.put(batch(kernel, range(5)))
    moving.call(7, MUCH, SECONDS)
    moving.put(batch(kernel, range(5, 10)))
    moving.give_up("gone")
    assert +moving.take().failed == {"gone": 6}
    assert moving.retry() < 0


fates = st.sampled_from(["", "", "", "pinned", "freed", "shared", "agreed", "moved-by-others"])


@given(
    st.lists(st.tuples(st.integers(1, 3), fates), max_size=60),
    st.dictionaries(st.integers(1, 3), st.sampled_from([errno.ENOMEM, errno.ENODEV, errno.EACCES]), max_size=1),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([7, MUCH]),
    st.sampled_from([1, Pace.FEWEST]),
    st.integers(1, 3),
)
def test_each_folio_is_moved_once_or_its_reason_is_told(
    folios: list[tuple[int, str]],
    fails: dict[int, int],
    before: int,
    is_late: bool,
    allowed: int,
    size: int,
    lanes: int,
) -> None:
    kernel = memory(len(folios))
    kernel.fails, kernel.before = fails, before
    by_fate = {fate: set(at(place for place, (_, each) in enumerate(folios) if each == fate)) for _, fate in folios}
    kernel.shared = by_fate.get("shared", set()) | by_fate.get("agreed", set())
    kernel.pinned = by_fate.get("pinned", set())
    moving = mover(kernel, agreed=Agreed(by_fate.get("agreed", set())), lanes=lanes)
    for node in (1, 2, 3):
        moving.put(batch(kernel, [place for place, (to, _) in enumerate(folios) if to == node], node, size))
    for address in by_fate.get("freed", ()):
        del kernel.nodes[address]
    for address in by_fate.get("moved-by-others", ()):
        kernel.nodes[address] = 4
    kernel.now += 2 * STALE * is_late
    calls = 0
    while (wait := moving.retry()) >= 0:
        kernel.now += wait
        if moving.has_moves:
            moving.call(7, allowed, SECONDS)
        calls += 1
        assert calls < 1000
    done = moving.take()
    assert done.pages + done.failed.total() == size * len(folios)
    assert done.pages == sum(done.moved.values()) == size * sum(kernel.moves.values())
    assert not kernel.moves or max(kernel.moves.values()) == 1
    assert not kernel.pinned & kernel.moves.keys()
    if is_late:
        assert not by_fate.get("moved-by-others", set()) & kernel.moves.keys()


def test_a_first_call_takes_no_more_than_a_huge_page() -> None:
    """Whatever is learned, a call that has to be short comes down to what cannot be divided."""
    pace = Pace()
    pace.learn(False, Pace.FEWEST, 100 * CALL_SECONDS)
    assert pace.pages(False, CALL_SECONDS) == Pace.FEWEST == 512

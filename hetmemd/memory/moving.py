"""Moving folios to where they belong, one bounded call at a time, and knowing what became of each.

One call has one destination: the kernel starts anew at every change of it. Where it says of all pages that they are
there, they are: it writes the node of none before all that it has gathered have moved (do_pages_move() in
mm/migrate.c; of larger folios, 6.3 to 6.6 said so also where these were split and the parts stayed). Where it says
anything else, its statuses tell why a page did not move, and whether it did is asked. A page that is pinned or under
I/O is tried again, later and later, and given up after `TRIES`; a node that is full takes nothing more in this pass.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import pages
from hetmemd.memory.budget import Clock

CALL_SECONDS = 0.02
"""What one call, and one step, may take: the kernel holds back faults on the pages that it is moving."""
STALE = 1.0
"""Seconds after which a plan that waited for its budget is held against the kernel once more."""
TRIES = 4
"""Times that a busy page is tried,"""
FIRST_RETRY = 0.05
"""seconds before the second time, four times as long before each further one: most I/O is over by then."""
MOST_WAITING = 65536
"""Pages that wait to be tried again; what comes on top is given up for this pass."""

REASONS = ("busy", "shared", "not-present", "node-full", "no-memory", "cpuset", "gone", "other")
"""Why a page was not moved. busy: pinned or under I/O. shared: mapped by another process too. not-present: freed or
swapped out meanwhile. node-full: the reserve of the node was reached, or it is in pieces too small. no-memory: the
kernel found none there. cpuset: the task may not use that node. gone: the process ended. other: a node went offline,
or somebody else moved the page."""

_OF_STATUS = {-errno.EACCES: "shared", -errno.EBUSY: "busy", -errno.ENOENT: "not-present", -errno.EFAULT: "not-present"}
_OF_CALL = {errno.ENOMEM: "no-memory", errno.EACCES: "cpuset"}


@dataclass(slots=True)
class Batch:
    """Moves to one node, of folios of like size."""

    destination: int
    huge: bool
    """Folios of more than one page."""
    addresses: pages.Addresses
    sizes: NDArray[np.int32]
    sources: NDArray[np.int16]
    since: float
    """When it was planned."""
    tries: int = 0
    """Calls that left it busy."""
    due: float = 0.0
    """When it may be tried again."""
    is_together: bool = False
    """All who map these pages agree: they are moved for all of them."""

    def part(self, chosen: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Batch:
        return replace(self, addresses=self.addresses[chosen], sizes=self.sizes[chosen], sources=self.sources[chosen])

    @property
    def pages(self) -> int:
        return int(self.sizes.sum())


class Pace:
    """How many pages a call can move in its time; what was learned for one process serves for the next."""

    # A huge folio is moved whole, so a call can take what 512 pages take, whatever it should: longer than its time only
    # where moving is slower than 100 MB/s. With fewer, the fixed cost of a call is nearly all of it: it would take as
    # long, and do nothing. The kernel empties the LRU caches of all CPUs first, and keeps them off until the end: few
    # large calls cost the others less than many small ones (lru_cache_disable() in mm/swap.c).
    FEWEST, MOST = 512, 16384

    def __init__(self) -> None:
        self._pages = {False: self.FEWEST, True: self.FEWEST}
        self._seconds = {False: CALL_SECONDS, True: CALL_SECONDS}

    def pages(self, huge: bool, seconds: float) -> int:
        expected = self._pages[huge] * seconds / self._seconds[huge]
        return int(min(max(expected, self.FEWEST), self.MOST))

    def learn(self, huge: bool, moved: int, seconds: float) -> None:
        """A call of `moved` pages took `seconds`. The estimate at most doubles each time: a call has a fixed cost."""
        if not moved:
            return
        seconds = max(seconds, 1e-6)
        fastest = 2 * max(self._pages[huge], self.FEWEST) / self._seconds[huge]
        rate = min(moved / seconds, fastest)
        self._pages[huge], self._seconds[huge] = max(int(rate * CALL_SECONDS), 1), CALL_SECONDS


class Calls(Protocol):
    """What is asked of the kernel: `hetmemd.kernel.pages`."""

    def query(self, tid: int, addresses: pages.Addresses) -> pages.Statuses: ...

    def move(self, tid: int, addresses: pages.Addresses, destination: int, flags: int = ...) -> pages.MoveCall: ...


class Room(Protocol):
    """`Headroom`."""

    def room(self, node: int, folio: int = ...) -> int: ...


class Agreement(Protocol):
    """`Sharers`."""

    def agree(self, tid: int, addresses: pages.Addresses, sizes: NDArray[np.int32]) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True)
class Lanes:
    """How many calls are made beside one another for the pages of one process.

    Each has its own pages, and the bound on its time. The kernel shares out the address space to all who read it, so
    two lanes take 0.55 to 0.6 of the time of one (6.12, two processors, 256 MiB of small pages), and two processors;
    what a call costs before its first page is paid twice.
    """

    count: int
    map: Callable[[Callable[[Batch], _Called], Iterable[Batch]], Iterable[_Called]]
    """`map`, or that of an executor."""


class _Called(NamedTuple):
    batch: Batch
    call: pages.MoveCall | OSError
    """`OSError`: the process was out of reach, and nothing of the batch was tried."""
    seconds: float


ONE_LANE = Lanes(1, map)


@contextlib.contextmanager
def beside_one_another(count: int) -> Generator[Lanes, None, None]:
    """Lanes in threads of their own, for the time of the block."""
    with ThreadPoolExecutor(count, "lane") as threads:
        yield Lanes(count, threads.map)


@dataclass(slots=True)
class Done:
    """What came of it, since it was last taken."""

    moved: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pages by (from, to)."""
    failed: Counter[str] = field(default_factory=Counter)
    """Pages that were given up, by REASONS."""
    pages: int = 0
    """That were moved."""
    longest: float = 0.0
    """Seconds of the longest call."""


class Mover:
    """The moves of one pass over one process."""

    def __init__(
        self,
        headroom: Room,
        pace: Pace,
        sharers: Agreement | None = None,
        calls: Calls = pages,
        clock: Clock = time.monotonic,
        lanes: Lanes = ONE_LANE,
    ) -> None:
        """`sharers` knows which pages may be moved for all who map them; None where none may."""
        self._headroom = headroom
        self._pace = pace
        self._sharers = sharers
        self._calls = calls
        self._clock = clock
        self._lanes = lanes
        self._batches: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._waiting_pages = 0
        self.refused: dict[int, str] = {}
        """Nodes that take nothing more in this pass, and why."""
        self.done = Done()

    def put(self, batch: Batch) -> None:
        if len(batch.addresses):
            self._batches.append(batch)

    def take(self) -> Done:
        taken, self.done = self.done, Done()
        return taken

    @property
    def has_moves(self) -> bool:
        """There is something to be moved now."""
        return bool(self._batches)

    @property
    def needs(self) -> int:
        """Pages without which the next call can do nothing; 0 where it needs none."""
        return int(self._batches[0].sizes[0]) if self._batches else 0

    def give_up(self, reason: str) -> None:
        for batch in (*self._batches, *self._waiting):
            self.done.failed[reason] += batch.pages
        self._batches.clear()
        self._waiting.clear()
        self._waiting_pages = 0

    def retry(self) -> float:
        """Take up what waits and is due. Seconds until the next is due; 0 where something is to be moved now, negative
        where nothing waits."""
        now = self._clock()
        while self._waiting and self._waiting[0].due <= now:
            batch = self._waiting.popleft()
            self._waiting_pages -= batch.pages
            self._batches.append(batch)
        if self._batches:
            return 0.0
        return self._waiting[0].due - now if self._waiting else -1.0

    def call(self, tid: int, most_pages: int, seconds: float) -> None:
        """One call in each lane for a part of the first batch: at most so many pages in all (one folio at least), for
        about `seconds`."""
        batch = self._batches.popleft()
        if reason := self.refused.get(batch.destination):
            self.done.failed[reason] += batch.pages
            return
        largest = int(batch.sizes.max())
        room = self._headroom.room(batch.destination, largest)
        if room < largest:
            self._does_not_fit(batch, largest)
            return
        most = min(self._pace.pages(batch.huge, seconds) * self._lanes.count, most_pages, room)
        count = max(int(np.searchsorted(np.cumsum(batch.sizes), most, side="right")), 1)
        if count < len(batch.addresses):
            self._batches.appendleft(batch.part(slice(count, None)))
            batch = batch.part(slice(count))
        if self._clock() - batch.since > STALE or batch.tries:
            batch = self._still_misplaced(tid, batch)
        if not len(batch.addresses):
            return
        # All have come back before it is asked where pages are: a folio that was not known as one may lie in two parts,
        # and while one lane moves it, it is nowhere for the other.
        failure: OSError | None = None
        for part, call, took in [*self._lanes.map(lambda part: self._called(tid, part), self._shared_out(batch))]:
            self.done.longest = max(self.done.longest, took)
            if isinstance(call, OSError):
                self._batches.appendleft(part)
                failure = call
            else:
                self._account(tid, part, call, took)
        if failure:
            raise failure

    def _shared_out(self, batch: Batch) -> list[Batch]:
        """A part for each lane, of so many pages at least that the fixed cost of a call is not most of it."""
        upto = np.cumsum(batch.sizes)
        lanes = min(self._lanes.count, max(batch.pages // Pace.FEWEST, 1))
        ends = np.searchsorted(upto, upto[-1] * np.arange(lanes + 1) / lanes, side="right").tolist()
        return [batch.part(slice(begin, end)) for begin, end in itertools.pairwise(ends) if begin < end]

    def _called(self, tid: int, batch: Batch) -> _Called:
        flags = pages.MPOL_MF_MOVE_ALL if batch.is_together else pages.MPOL_MF_MOVE
        begin = self._clock()
        call: pages.MoveCall | OSError
        try:
            call = self._calls.move(tid, batch.addresses, batch.destination, flags)
        except OSError as error:
            call = error  # what another lane has moved is accounted for all the same
        return _Called(batch, call, self._clock() - begin)

    def _still_misplaced(self, tid: int, batch: Batch) -> Batch:
        """What of a batch that waited is where it was."""
        nodes = self._calls.query(tid, batch.addresses)
        self.done.failed["not-present"] += int(batch.sizes[nodes < 0].sum())
        self.done.failed["other"] += int(batch.sizes[(nodes >= 0) & (nodes != batch.sources)].sum())
        return batch.part(nodes == batch.sources)

    def _account(self, tid: int, batch: Batch, call: pages.MoveCall, took: float) -> None:
        """What became of each folio."""
        now = call.statuses
        moved = now == batch.destination
        if batch.huge or call.result or not moved.all():
            now = self._calls.query(tid, batch.addresses)
            moved = now == batch.destination
        left = ~moved
        by_source = np.bincount(batch.sources, weights=batch.sizes * moved).astype(np.int64)
        count = int(by_source.sum())
        self.done.pages += count
        self._pace.learn(batch.huge, count, took)
        for source in np.flatnonzero(by_source).tolist():
            self.done.moved[source, batch.destination] += int(by_source[source])
        if not left.any():
            return
        absent = left & (now < 0)
        self.done.failed["not-present"] += int(batch.sizes[absent].sum())
        left &= ~absent
        # The kernel came to these, and said why not.
        said = left & (call.statuses != pages.UNWRITTEN)
        for status in np.unique(call.statuses[said]).tolist():
            reason = _OF_STATUS.get(status, "other")
            theirs = batch.part(said & (call.statuses == status))
            if reason == "busy" or status == -errno.ENOENT:
                # It was not there and is: somebody else was moving it, another lane or compaction.
                self._later(theirs)
            elif reason == "shared" and self._sharers and not batch.is_together:
                self._together(tid, theirs)
            else:
                self.done.failed[reason] += theirs.pages
        left &= ~said
        if not left.any():
            return
        rest = batch.part(left)
        if call.result < 0:
            self._refuse(rest, _OF_CALL.get(-call.result, "other"))
            return
        largest = int(rest.sizes.max())
        if self._headroom.room(batch.destination, largest) < rest.pages:
            self._does_not_fit(rest, rest.pages)
            return
        # Where a page of those that it has gathered would not move, the kernel stops at the next that it cannot gather,
        # whose status it writes: those behind were not tried (do_pages_move() in mm/migrate.c).
        written = np.flatnonzero(call.statuses != pages.UNWRITTEN)
        behind = left.copy()
        behind[: int(written[-1]) if len(written) else len(left)] = False
        if behind.any():
            self._batches.append(batch.part(behind))
        if (left & ~behind).any():
            self._later(batch.part(left & ~behind))

    def _later(self, batch: Batch) -> None:
        """Busy: tried again after a while, if it was not too often already."""
        if batch.tries + 1 >= TRIES or self._waiting_pages + batch.pages > MOST_WAITING:
            self.done.failed["busy"] += batch.pages
            return
        due = self._clock() + FIRST_RETRY * 4**batch.tries
        later = replace(batch, tries=batch.tries + 1, due=due)
        self._waiting_pages += later.pages
        place = next((at for at, other in enumerate(self._waiting) if other.due > due), len(self._waiting))
        self._waiting.insert(place, later)

    def _together(self, tid: int, batch: Batch) -> None:
        """Mapped by others too: moved for all of them where they all agree."""
        assert self._sharers is not None
        agreed = self._sharers.agree(tid, batch.addresses, batch.sizes)
        self.done.failed["shared"] += batch.part(~agreed).pages
        if agreed.any():
            self._batches.append(replace(batch.part(agreed), is_together=True))

    def _does_not_fit(self, batch: Batch, needed: int) -> None:
        """There is no room for its largest folios. Where as many pages are free, in pieces, smaller ones may move."""
        if self._headroom.room(batch.destination) < needed:
            self._refuse(batch, "node-full")
            return
        is_largest = batch.sizes == batch.sizes.max()
        self.done.failed["node-full"] += batch.part(is_largest).pages
        if not is_largest.all():
            self._batches.appendleft(batch.part(~is_largest))

    def _refuse(self, batch: Batch, reason: str) -> None:
        """The batch and all else that was to go to this node is given up."""
        self.done.failed[reason] += batch.pages
        self.refused[batch.destination] = reason

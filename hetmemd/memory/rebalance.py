"""One pass over a process: find what is in the wrong place, chunk by chunk, and move it, step by step.

Each step blocks for about 20 ms at most and moves no more than it is allowed, so that one thread can go round-robin
over processes and pay for what was moved. Nothing here grows with the process's memory: a chunk is 16,384 pages.

What is guaranteed: a page that is in place is not touched; no page is moved twice in a pass; one that cannot be moved
is given up in that pass; a pass over a process that is as it should be moves nothing; a node is never filled up.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import folios, libc, pages, procfs
from hetmemd.kernel.pagemap import HUGE_PAGES, Pagemap, Presence
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import plan, regions
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.plan import Phase, Target, Within
from hetmemd.memory.regions import ACTED_ON

CHUNK = 16384
"""Pages that are looked at and planned at once: 64 MiB."""
CALL_SECONDS = 0.02
"""What one call, and one step, may take: the kernel holds back faults on the pages that it is moving."""
STALE = 1.0
"""Seconds after which a plan that waited for its budget is held against the kernel once more."""

REASONS = ("busy", "shared", "not-present", "node-full", "no-memory", "cpuset", "gone", "other")
"""Why a page was not moved. busy: pinned or under I/O. shared: mapped by another process too. not-present: freed or
swapped out meanwhile. node-full: the reserve of the node was reached. no-memory: the kernel found none there. cpuset:
the task may not use that node. gone: the process ended. other: a node went offline, or somebody else moved the page."""

_OF_STATUS = {-errno.EACCES: "shared", -errno.EBUSY: "busy", -errno.ENOENT: "not-present", -errno.EFAULT: "not-present"}
_OF_CALL = {errno.ENOMEM: "no-memory", errno.EACCES: "cpuset"}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. Pages are of 4 KiB: a huge page counts 512."""

    moved: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """By (from, to): pages, bytes."""
    bytes_moved: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    """Pages that were given up, by REASONS."""
    examined: int = 0
    """Pages whose node was asked for."""
    planned: int = 0
    """Pages that the plans of this step would move."""
    seconds: float = 0.0
    call_seconds: float = 0.0
    """The longest call that moved."""
    needs: int = 0
    """Bytes without which the next step can do nothing; 0 where it needs none."""
    done: bool = False
    """The pass is over."""
    gone: bool = False
    """It is over since the process is gone, or has no memory any more."""


@dataclass(slots=True)
class _Batch:
    """Moves to one node, of folios of like size."""

    destination: int
    huge: bool
    addresses: pages.Addresses
    sizes: NDArray[np.int32]
    sources: NDArray[np.int16]
    since: float
    tries: int = 0
    """Calls that moved less than half of it."""

    def part(self, chosen: slice | NDArray[np.bool_] | NDArray[np.int64]) -> _Batch:
        return replace(self, addresses=self.addresses[chosen], sizes=self.sizes[chosen], sources=self.sources[chosen])

    @property
    def pages(self) -> int:
        return int(self.sizes.sum())


class Pace:
    """How many pages a call can move in its time; what was learned for one process serves for the next."""

    # With fewer, the fixed cost of a call is nearly all of it: it would take as long, and do nothing.
    FEWEST, MOST = 256, 16384

    def __init__(self) -> None:
        self._pages = {False: 512, True: 512}
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


class ProcessPass:
    """A pass over one process, from its lowest address to its highest. Not thread-safe; one per process at a time."""

    def __init__(
        self,
        root: Root,
        process: ProcessId,
        target: Target,
        kinds: frozenset[str] = ACTED_ON,
        headroom: Headroom | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Reads nothing yet. The target's nodes are those that the process may use, cut by the caller (I6)."""
        if not root.is_live:
            raise ValueError("pages can be moved on the running system only")
        self._root = root
        self.process = process
        self._target = target
        self._kinds = kinds
        self._headroom = headroom
        self._pace = pace or Pace()
        self._tid = process.pid
        self._spans: deque[tuple[int, int]] | None = None
        self._phase: Phase = plan.START
        self._batches: deque[_Batch] = deque()
        self._refused: dict[int, str] = {}
        self._begin_step(0.0)
        self._over = False

    def step(self, allow_bytes: int, seconds: float = CALL_SECONDS) -> StepResult:
        """Look at the next chunks and move of them what is allowed, for about `seconds`.

        At most `allow_bytes` are moved, or one folio where that is larger; nothing for 0 or less, though chunks with
        nothing to move are still gone through. The first step reads the regions, which takes what numa_maps takes.
        `OSError`: EPERM or EACCES where the right is missing. A process that is gone is a result, not an error.
        """
        self._begin_step(time.monotonic())
        try:
            gone = self._over or not self._is_there()
            while not gone and not self._over:
                left = self._began + seconds - time.monotonic()
                if self._batches:
                    if allow_bytes <= self._bytes_moved or left < seconds / 4:
                        break
                    self._move(allow_bytes - self._bytes_moved, left)
                elif left < seconds / 4 and self._examined:
                    break
                else:
                    self._look_at_next()
        except OSError as error:
            if not (libc.is_gone(error) or error.errno == errno.EINVAL):
                raise
            gone = True  # EINVAL: a zombie
        if gone and not self._over:
            self._give_up(self._batches, "gone")
            self._over = True
        return self._end_step(gone)

    # -- one step

    def _begin_step(self, now: float) -> None:
        self._began = now
        self._moved: Counter[tuple[int, int]] = Counter()
        self._bytes_moved = 0
        self._failed: Counter[str] = Counter()
        self._examined = 0
        self._planned = 0
        self._longest = 0.0

    def _end_step(self, gone: bool) -> StepResult:
        return StepResult(
            moved={nodes: (count, count * pages.PAGE_SIZE) for nodes, count in self._moved.items()},
            bytes_moved=self._bytes_moved,
            failed={reason: count for reason, count in self._failed.items() if count},
            examined=self._examined,
            planned=self._planned,
            seconds=time.monotonic() - self._began,
            call_seconds=self._longest,
            needs=int(self._batches[0].sizes[0]) * pages.PAGE_SIZE if self._batches else 0,
            done=self._over,
            gone=gone,
        )

    def _is_there(self) -> bool:
        """The pid is still the same process, and `_tid` one of its threads that has memory."""
        pid = self.process.pid
        stat = procfs.stat(self._root, pid)
        if stat.start != self.process.start:
            return False
        if stat.state in "ZX" or self._tid != pid:
            living = regions.living_thread(self._root, pid)
            if living is None:
                return False
            self._tid = living
        return True

    def _give_up(self, batches: deque[_Batch], reason: str) -> None:
        while batches:
            self._failed[reason] += batches.popleft().pages

    # -- looking

    def _look_at_next(self) -> None:
        """Take the next chunk: its folios, their nodes, the plan."""
        if self._spans is None:
            found = regions.read(self._root, self.process.pid, self._tid)
            self._spans = deque(spans(found, self._kinds))
            self._headroom = self._headroom or Headroom(self._root)
        if not self._spans or self._is_stuck():
            self._over = True
            return
        addresses, sizes, _ = self._present(self._spans)
        if not len(addresses):
            return
        nodes = pages.query(self._tid, addresses).astype(np.int16)
        self._examined += int(sizes.sum())
        moves = plan.plan(nodes, sizes, self._target, self._phase)
        self._phase = moves.phase
        # Parts of a folio may lie apart, with something else between them: moved with one, the other is in place. Such
        # plans are held against the kernel before each call.
        since = -STALE if bool(((sizes > 1) & (sizes != HUGE_PAGES)).any()) else time.monotonic()
        for destination in np.unique(moves.destination).tolist():
            index = moves.index[moves.destination == destination]
            for huge in (False, True):
                chosen = index[(sizes[index] > 1) == huge]
                if len(chosen):
                    batch = _Batch(destination, huge, addresses[chosen], sizes[chosen], nodes[chosen], since)
                    self._planned += batch.pages
                    self._batches.append(batch)

    def _is_stuck(self) -> bool:
        """There is no node left to which anything could be moved."""
        nodes = self._target.nodes if isinstance(self._target, Within) else [node for node, _ in self._target.weights]
        return all(node in self._refused for node in nodes)

    def _present(self, spans: deque[tuple[int, int]]) -> Presence:
        """Folios of the next spans, about a chunk of them."""
        addresses: list[pages.Addresses] = []
        sizes: list[NDArray[np.int32]] = []
        count = 0
        with Pagemap(self._root, self.process.pid, self._tid) as pagemap, _frames(self._root) as known:
            while spans and count < CHUNK:
                start, end = spans.popleft()
                found = pagemap.present(start, end, CHUNK - count)
                if found.next < end:
                    spans.appendleft((found.next, end))
                addresses.append(found.addresses)
                sizes.append(found.sizes)
                # Address space with nothing in it costs a little as well.
                count += int(found.sizes.sum()) + 8
            chunk = Presence(np.concatenate(addresses), np.concatenate(sizes), found.next)
            return chunk if known is None else folios.gather(pagemap, known, chunk)

    # -- moving

    def _move(self, allow_bytes: int, seconds: float) -> None:
        """One call for a part of the first batch."""
        batch = self._batches.popleft()
        if reason := self._refused.get(batch.destination):
            self._failed[reason] += batch.pages
            return
        if time.monotonic() - batch.since > STALE:
            batch = self._still_misplaced(batch)
        assert self._headroom is not None
        room = self._headroom.room(batch.destination, batch.huge)
        if room < (int(batch.sizes[0]) if len(batch.sizes) else 0):
            self._refuse(batch, "node-full")
            return
        most = min(self._pace.pages(batch.huge, seconds), allow_bytes // pages.PAGE_SIZE, room)
        count = max(int(np.searchsorted(np.cumsum(batch.sizes), most, side="right")), 1)
        if count < len(batch.addresses):
            self._batches.appendleft(batch.part(slice(count, None)))
            batch = batch.part(slice(count))
        if not len(batch.addresses):
            return
        begin = time.monotonic()
        call = pages.move(self._tid, batch.addresses, batch.destination)
        took = time.monotonic() - begin
        self._longest = max(self._longest, took)
        self._account(batch, call, took)

    def _still_misplaced(self, batch: _Batch) -> _Batch:
        """What of a batch that waited is where it was."""
        nodes = pages.query(self._tid, batch.addresses)
        self._failed["not-present"] += int(batch.sizes[nodes < 0].sum())
        self._failed["other"] += int(batch.sizes[(nodes >= 0) & (nodes != batch.sources)].sum())
        return batch.part(nodes == batch.sources)

    def _account(self, batch: _Batch, call: pages.MoveCall, took: float) -> None:
        """What became of each folio: where it is now decides, the statuses only say why not."""
        now = pages.query(self._tid, batch.addresses)
        moved = now == batch.destination
        count = int(batch.sizes[moved].sum())
        self._bytes_moved += count * pages.PAGE_SIZE
        self._pace.learn(batch.huge, count, took)
        for source in np.unique(batch.sources[moved]).tolist():
            self._moved[source, batch.destination] += int(batch.sizes[moved & (batch.sources == source)].sum())
        if moved.all():
            return
        left = ~moved
        absent = left & (now < 0)
        self._failed["not-present"] += int(batch.sizes[absent].sum())
        left &= ~absent
        # The kernel came to these, and said why not.
        said = left & (call.statuses != pages.UNWRITTEN)
        for status in np.unique(call.statuses[said]).tolist():
            reason = _OF_STATUS.get(status, "other")
            self._failed[reason] += int(batch.sizes[said & (call.statuses == status)].sum())
        left &= ~said
        if not left.any():
            return
        rest = batch.part(left)
        if call.result < 0:
            self._refuse(rest, _OF_CALL.get(-call.result, "other"))
        elif (moved | absent | said).any() and rest.tries < 2:
            # It stopped at a page that would not move; those behind it were not tried.
            rest.tries += count * 2 < batch.pages
            self._batches.append(rest)
        else:
            assert self._headroom is not None
            if self._headroom.room(batch.destination, batch.huge) < rest.pages:
                self._refuse(rest, "node-full")
            else:
                self._failed["busy"] += rest.pages

    def _refuse(self, batch: _Batch, reason: str) -> None:
        """This node takes nothing more in this pass: the batch and all else that was to go there is given up."""
        self._failed[reason] += batch.pages
        self._refused[batch.destination] = reason
        if isinstance(self._target, Within):
            self._target = replace(self._target, full=frozenset(self._refused))


@contextlib.contextmanager
def _frames(root: Root) -> Generator[folios.Frames | None, None, None]:
    """None without the right, or in a kernel without them: folios that are mapped page by page go unnoticed then."""
    try:
        known = folios.Frames(root)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
            raise
        yield None
        return
    try:
        yield known
    finally:
        known.close()


def spans(found: list[regions.Region], kinds: frozenset[str]) -> list[tuple[int, int]]:
    """Address ranges that are acted on, ascending, neighbours joined."""
    spans: list[tuple[int, int]] = []
    for region in found:
        if region.kind not in kinds or region.left_out or not region.pages:
            continue
        if spans and spans[-1][1] == region.start:
            spans[-1] = (spans[-1][0], region.end)
        else:
            spans.append((region.start, region.end))
    return spans

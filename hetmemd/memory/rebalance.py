"""One pass over a process: find what is in the wrong place, chunk by chunk, and move it, step by step.

Each step blocks for about 20 ms at most and moves no more than it is allowed, so that one thread can go round-robin
over processes and pay for what was moved. Nothing here grows with the process's memory: a chunk is 16,384 pages, and
what is kept of one for the next is less than a window of each size of folio.

What is guaranteed: a page that is in place is not touched; no page is moved twice in a pass; one that cannot be moved
is given up in that pass; a pass over a process that is as it should be moves nothing; a node is never filled up.

Of an anonymous folio of which a part was unmapped the kernel moves all pages, and splits it as it does (6.10; pages of
it that are all zeros it gives back, 6.12). As small pages they have windows of their own, so that a later pass, if one
begins, has something to even out though the whole is right. Measured on 64 MiB of folios of 64 KiB without one page
each: 3:1 to the page after the first pass, and each further one would move 0.39, 0.29, 0.22, 0.17 of all pages.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import folios, libc, pages, procfs
from hetmemd.kernel.pagemap import HUGE, HUGE_PAGES, Pagemap, Presence
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import plan, regions, targets
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.moving import CALL_SECONDS, ONE_LANE, STALE, Batch, Lanes, Mover, Pace
from hetmemd.memory.plan import Target, Within
from hetmemd.memory.sharers import Sharers
from hetmemd.memory.targets import Share, Span

CHUNK = 16384
"""Pages that are looked at and planned at once: 64 MiB."""


_NOTHING = Presence(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), 0)


class _Rest(NamedTuple):
    """Folios of windows that are not complete yet."""

    target: Target
    addresses: pages.Addresses
    sizes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. Pages are of 4 KiB: a huge page counts 512."""

    moved: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """By (from, to): pages, bytes."""
    bytes_moved: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    """Pages that were given up, by moving.REASONS."""
    examined: int = 0
    """Pages whose node was asked for."""
    planned: int = 0
    """Pages that the plans of this step would move."""
    seconds: float = 0.0
    call_seconds: float = 0.0
    """The longest call that moved."""
    needs: int = 0
    """Bytes without which the next step can do nothing; 0 where it needs none."""
    wait: float = 0.0
    """Seconds for which the next step could do nothing: pages that were busy are to be tried again then."""
    done: bool = False
    """The pass is over."""
    gone: bool = False
    """It is over since the process is gone, or has no memory any more."""

    def rest(self, share: float) -> float:
        """Seconds for which the process is to be left alone before the next step: so steps take no more than `share` of
        its time, and slow it down by about that."""
        return max(self.wait, self.seconds * (1 / share - 1))


class ProcessPass:
    """A pass over one process, from its lowest address to its highest. Not thread-safe; one per process at a time."""

    def __init__(
        self,
        root: Root,
        process: ProcessId,
        share: Share,
        headroom: Headroom | None = None,
        pace: Pace | None = None,
        sharers: Sharers | None = None,
        within: tuple[int, int] | None = None,
        known: Iterable[Span] | None = None,
        lanes: Lanes = ONE_LANE,
    ) -> None:
        """Reads nothing yet. The targets' nodes are those that the process may use, cut by the caller (I6).

        `known`: the spans, where they were just read in order to measure; or else the first step reads the regions.
        `within`: the addresses that it is about, all where None.
        `sharers`: who else may map what is moved; without, pages that others map too stay.
        """
        if not root.is_live:
            raise ValueError("pages can be moved on the running system only")
        self._root = root
        self.process = process
        self._share = share
        self._within = within
        self._mover = Mover(headroom or Headroom(root), pace or Pace(), sharers, lanes=lanes)
        self._tid = process.pid
        self._spans = None if known is None else deque(targets.cut(known, within))
        self._rests: dict[int, _Rest] = {}
        """By the identity of the target: each has windows of its own."""
        self._begin_step(0.0)
        self._over = False

    def step(self, allow_bytes: int, seconds: float = CALL_SECONDS) -> StepResult:
        """Look at the next chunks and move of them what is allowed, for about `seconds`.

        At most `allow_bytes` are moved, or one folio where that is larger; nothing for 0 or less, though chunks with
        nothing to move are still gone through. The first step reads the regions, which takes what numa_maps takes.
        `OSError`: EPERM or EACCES where the right is missing. A process that is gone is a result, not an error.
        """
        self._begin_step(time.monotonic())
        wait = 0.0
        try:
            gone = self._over or not self._is_there()
            while not gone and not self._over:
                left = self._began + seconds - time.monotonic()
                if self._mover.has_moves:
                    allowed = allow_bytes // pages.PAGE_SIZE - self._mover.done.pages
                    if allowed <= 0 or left < seconds / 4:
                        break
                    self._mover.call(self._tid, allowed, left)
                elif left < seconds / 4 and self._examined:
                    break
                elif not self._look_at_next():
                    wait = self._mover.retry()
                    self._over = wait < 0
                    if wait > 0:
                        break
        except OSError as error:
            if not (libc.is_gone(error) or error.errno == errno.EINVAL):
                raise
            gone = True  # EINVAL: a zombie
        if gone and not self._over:
            self._mover.give_up("gone")
            self._over = True
        return self._end_step(gone, max(wait, 0.0))

    # -- one step

    def _begin_step(self, now: float) -> None:
        self._began = now
        self._examined = 0
        self._planned = 0

    def _end_step(self, gone: bool, wait: float) -> StepResult:
        done = self._mover.take()
        return StepResult(
            moved={nodes: (count, count * pages.PAGE_SIZE) for nodes, count in done.moved.items()},
            bytes_moved=done.pages * pages.PAGE_SIZE,
            failed={reason: count for reason, count in done.failed.items() if count},
            examined=self._examined,
            planned=self._planned,
            seconds=time.monotonic() - self._began,
            call_seconds=done.longest,
            needs=self._mover.needs * pages.PAGE_SIZE,
            wait=wait,
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
            living = procfs.living_thread(self._root, pid)
            if living is None:
                return False
            self._tid = living
        return True

    # -- looking

    def _look_at_next(self) -> bool:
        """Take the next chunk: its folios, their nodes, the plan. False where there is none left."""
        if self._spans is None:
            found = regions.read(self._root, self.process.pid, self._tid)
            self._spans = deque(targets.cut(targets.spans(found, self._share), self._within))
        while self._spans and self._takes_nothing(self._spans[0].target):
            self._spans.popleft()
        if self._spans:
            target = self._spans[0].target
            addresses, sizes, _ = self._present(self._spans)
            self._plan(target, addresses, sizes)
            return True
        # All was seen: what still waits for a window to become complete is planned as it is.
        for rest in self._rests.values():
            self._plan(rest.target, is_last=True)
        self._rests.clear()
        return self._mover.has_moves

    def _plan(
        self,
        target: Target,
        addresses: pages.Addresses = _NOTHING.addresses,
        sizes: NDArray[np.int32] = _NOTHING.sizes,
        is_last: bool = False,
    ) -> None:
        """The next piece of what is held against a target, behind what waits of the pieces before."""
        if rest := self._rests.get(id(target)):
            addresses, sizes = np.concatenate([rest.addresses, addresses]), np.concatenate([rest.sizes, sizes])
        if not len(addresses):
            return
        nodes = pages.query(self._tid, addresses).astype(np.int16)
        aim = replace(target, full=frozenset(self._mover.refused)) if isinstance(target, Within) else target
        moves = plan.plan(nodes, sizes, aim, is_last)
        self._rests[id(target)] = _Rest(target, addresses[moves.rest], sizes[moves.rest])
        # Parts of a folio may lie apart, with something else between them: moved with one, the other is in place. Such
        # plans are held against the kernel before each call.
        is_whole = (sizes == 1) | ((sizes == HUGE_PAGES) & (addresses % HUGE == 0))
        since = time.monotonic() if bool(is_whole.all()) else -STALE
        for destination in np.unique(moves.destination).tolist():
            index = moves.index[moves.destination == destination]
            for huge in (False, True):
                chosen = index[(sizes[index] > 1) == huge]
                if len(chosen):
                    batch = Batch(destination, huge, addresses[chosen], sizes[chosen], nodes[chosen], since)
                    self._planned += batch.pages
                    self._mover.put(batch)

    def _takes_nothing(self, target: Target) -> bool:
        """There is no node left to which anything could be moved."""
        nodes = target.nodes if isinstance(target, Within) else [node for node, _ in target.weights]
        return all(node in self._mover.refused for node in nodes)

    def _present(self, spans: deque[Span]) -> Presence:
        """Folios of the next spans of one target, about a chunk of them."""
        addresses: list[pages.Addresses] = []
        sizes: list[NDArray[np.int32]] = []
        count, target = 0, spans[0].target
        with Pagemap(self._root, self.process.pid, self._tid) as pagemap, _frames(self._root) as known:
            while spans and count < CHUNK and spans[0].target is target:
                span = spans.popleft()
                found = pagemap.present(span.start, span.end, CHUNK - count)
                if found.next < span.end:
                    spans.appendleft(span._replace(start=found.next))
                addresses.append(found.addresses)
                sizes.append(found.sizes)
                self._examined += int(found.sizes.sum())
                # Address space with nothing in it costs a little as well.
                count += int(found.sizes.sum()) + 8
            chunk = Presence(np.concatenate(addresses), np.concatenate(sizes), found.next)
            return chunk if known is None else folios.gather(pagemap, known, chunk)


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

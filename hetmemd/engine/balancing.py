"""Where pages are, and moving them: one bounded step of one process at a time, round-robin, within the budgets.

Reading and moving happen in threads of their own. The loop hands out one step after the other, and waits for each as
long as it should take; what takes longer (the figures of a large process, a call that is stuck) goes on beside, so that
it keeps nothing else waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping

import numpy as np

from hetmemd.engine import limits, measuring
from hetmemd.engine.offloop import OffLoop, StuckError, patience, priced
from hetmemd.engine.passes import LEAST, Pass, longest_pass
from hetmemd.engine.record import Record
from hetmemd.kernel import libc, procfs, zoneinfo
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine.topology import Machine
from hetmemd.memory.budget import Budgets
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.moving import Pace
from hetmemd.memory.rebalance import ProcessPass, StepResult
from hetmemd.memory.sample import Settled
from hetmemd.memory.sharers import Sharers
from hetmemd.memory.targets import Share, Span
from hetmemd.policy.effective import Effective, Placement
from hetmemd.remote import kin
from hetmemd.remote.result import Outcome
from hetmemd.report import journal
from hetmemd.report.tally import Tally

log = logging.getLogger(__name__)

GLOBAL = "global"
"""The key of the bucket in which every move pays."""
MOST = 64 << 20
"""Bytes that one step may be allowed: what bounds its time is the mover itself."""
READERS = 16
"""One works at a time: the others are there for figures that take long, and for reads that are stuck."""
MOVERS = 4
"""Likewise. Not more: where a processor is kept from the kernel (a real-time task, before 6.12), a move waits for it
and keeps the LRU caches of all processors off meanwhile, and the next ones would wait for the same."""
STEP_SECONDS = 10.0
AT_ONCE = 16
"""Processes measured between two rounds of steps: a start on a full machine must not hold the moves up."""
IN_TURN = 0.1
"""Seconds that others wait for one, five times what a step should take."""
BESIDE = 6
"""Processes that are measured beside the others, with so many nothing more is measured until one is done."""
SAMPLES = 5
"""Samples between two exact measurements of a process that is as it should be, and whose figures take long."""
LONGEST_BACKOFF = 600.0
STRIKES = 3
"""Passes in a row whose work was undone by somebody else, before the next ones are held back."""
HEALED = 12
"""Intervals that a process stays as it should be before what was undone is forgotten."""
MOVING_ONLY = frozenset(limits.MOVING_ONLY) | {"seccomp", "vdso", "io-worker"}
"""Reasons, of the machine and of the task, for which it cannot be called though its pages can be moved (L5)."""


class Balancer:
    """Measures every process that a placement reaches, and moves what lies wrong."""

    def __init__(
        self,
        root: Root,
        records: Mapping[int, Record],
        effective: Callable[[str], Effective | None],
        machine: Callable[[], Machine],
        budgets: Budgets,
        tally: Tally,
        observing: Callable[[], bool],
        changed: asyncio.Event,
    ) -> None:
        """`effective` takes a cgroup's path, `observing` asks the kill switch, `changed` is set by a new figure."""
        self._root = root
        self._records = records
        self._effective = effective
        self._machine = machine
        self._budgets = budgets
        self._tally = tally
        self._observing = observing
        self._changed = changed
        self._readers = OffLoop("measurer", READERS, STEP_SECONDS)
        self._movers = OffLoop("mover", MOVERS, STEP_SECONDS)
        self._passes: dict[int, Pass] = {}
        self._measuring: set[ProcessId] = set()
        self._moving: set[ProcessId] = set()
        """Processes of which a step, or what comes behind the last one, is under way."""
        self._headroom = Headroom(root)
        self._pace = Pace()
        self._wake = asyncio.Event()
        self.interval = 10.0
        """Seconds between two measurements of one process."""
        self.moving_share = 0.06
        """Of a process's time, in which its pages may be looked at and moved."""
        self.measuring_share = 0.01
        """Of it, and so of one core, in which they may be counted."""
        self.sampled_from = 0.1
        """Seconds: a process whose exact measurement takes longer is sampled in between."""
        self._chance = np.random.default_rng()

    def notice(self, record: Record) -> None:
        """The process was looked at: it may be due."""
        if record.measure_at <= asyncio.get_running_loop().time():
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for record in self._due()[:AT_ONCE]:
                    if len(self._measuring) < BESIDE:
                        await self._in_turn(group, self._measuring, record, self._look(record))
                for pid, active in list(self._passes.items()):
                    # While the others had their turn it may have ended.
                    if self._passes.get(pid) is active and active.record.process not in self._moving:
                        await self._in_turn(group, self._moving, active.record, self._step(active))
                try:
                    async with asyncio.timeout(self._pause()):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _in_turn(
        self, group: asyncio.TaskGroup, under_way: set[ProcessId], record: Record, work: Coroutine[None, None, None]
    ) -> None:
        """Have it done, and wait for it as long as it should take; it goes on beside if it takes longer."""
        under_way.add(record.process)

        async def alone() -> None:
            try:
                await self._alone(record, work)
            finally:
                under_way.discard(record.process)

        task = group.create_task(alone())
        await asyncio.wait({task}, timeout=IN_TURN)
        if not task.done():
            task.add_done_callback(lambda _: self._wake.set())

    async def _alone(self, record: Record, work: Awaitable[None]) -> None:
        """A failure concerns its process: whatever it is, the others go on."""
        try:
            await work
        except Exception as error:
            if isinstance(error, OSError) and libc.is_gone(error):
                return
            self._passes.pop(record.process.pid, None)
            record.idle_passes += 1
            record.measure_at = asyncio.get_running_loop().time() + self._backoff(record)
            why = "a call waits for its mmap lock, or a processor" if isinstance(error, StuckError) else str(error)
            record.acted = f"moving pages: {why}"
            if isinstance(error, (OSError, StuckError)):
                log.warning("moving pages of %s[%d]: %s", record.comm, record.process.pid, why)
            else:
                log.exception("moving pages of %s[%d] failed", record.comm, record.process.pid)

    def close(self) -> None:
        """A step that is under way ends by itself within the bound of one call, or is stuck."""
        self._passes.clear()
        self._readers.close()
        self._movers.close()

    @property
    def stuck(self) -> int:
        """Calls that wait for a target's mmap lock, or for a processor."""
        return self._readers.stuck + self._movers.stuck

    # -- measuring

    def _may_be_measured(self) -> list[Record]:
        return [
            record
            for pid, record in self._records.items()
            if record.placement is not None
            and pid not in self._passes
            and record.process not in self._measuring
            and record.process not in self._moving
        ]

    def _due(self) -> list[Record]:
        now = asyncio.get_running_loop().time()
        return [record for record in self._may_be_measured() if record.measure_at <= now]

    def _pause(self) -> float:
        """Seconds until something is to be done, unless something that is under way ends sooner."""
        now = asyncio.get_running_loop().time()
        waits = [
            max(self._budgets.wait(active.keys, active.needs), active.due - now)
            for active in self._passes.values()
            if active.record.process not in self._moving
        ]
        if len(self._measuring) < BESIDE:
            waits += [max(record.measure_at - now, 0.0) for record in self._may_be_measured()]
        return min(waits, default=self.interval)

    async def _look(self, record: Record) -> None:
        """Measure one process, and begin a pass where its pages lie wrong."""
        now = asyncio.get_running_loop().time()
        record.measure_at = now + self.interval
        placement, effective = record.placement, self._effective(record.cgroup)
        if placement is None or effective is None:
            record.distance = None
            return
        if await self._is_settled(record, effective.handling.tolerance):
            return
        found = await self._measure(record, placement, effective)
        if found is None or record.distance is None:
            return
        if record.distance > effective.handling.tolerance:
            record.settled = record.settled_since = None
            if not self._holds(record, record.distance):
                self._begin(record, placement, effective, *found)
        else:
            record.idle_passes = 0
            record.has_settled = True
            record.settled_since = record.settled_since or now
            if now - record.settled_since > HEALED * self.interval:
                # Others may take longer than a look to move pages back: one that finds them in place says little.
                record.went_back = 0
            if _may_move(record):
                record.settled_for = placement

    async def _is_settled(self, record: Record, tolerance: float) -> bool:
        """Whether a sample says so, of a process whose exact figures take long: it was as it should be, and is still.

        Where a sample cannot tell, and after some of them, the exact figures are had: a sample knows of no new region.
        """
        settled = record.settled
        if settled is None or settled.times >= SAMPLES:
            return False
        settled.times += 1
        told = await self._readers.call(
            record.process, lambda: measuring.estimate(self._root, record.process.pid, settled, self._chance)
        )
        is_settled = told.is_within(settled.spans[0].target, tolerance) is True
        if is_settled:
            record.measured_at = time.time()
            self._changed.set()
        return is_settled

    def _holds(self, record: Record, distance: float) -> bool:
        """Whether somebody else moves pages back as fast as they are moved (L6): then later, and later again."""
        total = sum(record.bytes_by_node.values())
        if record.left_misplaced is not None and record.last_moved:
            # What came new in between can lie wrong as well, and was moved by nobody.
            back = distance * total - record.left_misplaced - max(total - record.last_total, 0)
            # Memory that was given back and taken anew was moved by nobody either: no more than the kernel has moved.
            back = min(back, (self._migrated() - record.migrated) * 4096)
            # A little that went back is a little less to be moved: only a rest within the tolerance makes good again.
            record.went_back += back >= record.last_moved / 2 > 0
            record.left_misplaced = None
            if record.went_back >= STRIKES:
                record.measure_at = asyncio.get_running_loop().time() + self._later(record.went_back)
                record.acted = f"held: pages were moved back after {record.went_back} passes (L6)"
                log.warning("%s[%d]: %s", record.comm, record.process.pid, record.acted)
                return record.went_back % STRIKES != 0
        return False

    def _migrated(self) -> int:
        """Pages that were moved on the machine since its boot, by whomever: no more of them were moved by others."""
        return zoneinfo.vmstat(self._root).get("pgmigrate_success", 0)

    def _begin(
        self, record: Record, placement: Placement, effective: Effective, share: Share, spans: tuple[Span, ...]
    ) -> None:
        handling = effective.handling
        if self._observing() or not _may_move(record):
            return
        if handling.min_age > procfs.age(record.process):
            return
        if handling.existing == "leave" or (handling.existing == "once" and record.settled_for == placement):
            return
        for bucket in effective.buckets:
            self._budgets.configure(bucket.key, bucket.rate, bucket.burst)
        keys = (*(bucket.key for bucket in effective.buckets), GLOBAL)
        source = effective.own or effective.inherited_from
        sharers = Sharers(self._root, self._agreeing(record)) if handling.shared == "move" else None
        mover = ProcessPass(self._root, record.process, share, self._headroom, self._pace, sharers, known=spans)
        why = f"{source.file}:{source.line}" if source else ""
        until = asyncio.get_running_loop().time() + longest_pass(sum(record.bytes_by_node.values()))
        basis = self._basis(record)
        self._passes[record.process.pid] = Pass(record, mover, keys, why, record.distance or 0.0, basis, until)

    def _basis(self, record: Record) -> tuple[object, ...]:
        effective = self._effective(record.cgroup)
        settled = (effective.handling, effective.buckets) if effective else None
        return (record.generation, record.placement, record.allowed, settled)

    # -- moving

    async def _step(self, active: Pass) -> None:
        record, pid = active.record, active.record.process.pid
        if self._records.get(pid) is not record or not _may_move(record) or self._observing():
            del self._passes[pid]
            return
        if self._basis(record) != active.basis or asyncio.get_running_loop().time() > active.until:
            # The next one is planned on what holds now, and on the regions that there are now.
            del self._passes[pid]
            record.measure_at = 0.0
            return
        now = asyncio.get_running_loop().time()
        if active.due > now or self._budgets.wait(active.keys, active.needs) > 0:
            return
        allowed = self._budgets.allowance(active.keys, MOST)
        result = await self._paid(active, allowed)
        if result is None:
            self._passes.pop(pid, None)
            return
        active.moved += result.bytes_moved
        active.needs = max(result.needs, LEAST)
        active.due = asyncio.get_running_loop().time() + result.rest(self.moving_share)
        self._tally.cgroup_moved(record.cgroup, "holding" if record.has_settled else "converging", result.bytes_moved)
        for (source, target), (pages, size) in result.moved.items():
            self._tally.pages_moved(source, target, pages, size)
        for reason, pages in result.failed.items():
            active.failed[reason] += pages
            self._tally.pages_failed(reason, pages)
        if result.done:
            self._passes.pop(pid, None)
            await self._finish(active)

    async def _paid(self, active: Pass, allowed: int) -> StepResult | None:
        """One step. Paid before, so that two that are under way do not spend the same; what was not moved is given
        back, unless the step does not come back itself."""
        self._budgets.pay(active.keys, allowed)
        moved = allowed
        try:
            result = await self._movers.call(active.record.process, lambda: self._move(active, allowed))
            moved = result.bytes_moved if result else 0
        except OSError:
            moved = 0
            raise
        finally:
            self._budgets.pay(active.keys, moved - allowed)
        return result

    def _move(self, active: Pass, allowed: int) -> StepResult | None:
        """In the mover's thread. None where the address space is shared: the pages may be another process's (T5)."""
        pid = active.record.process.pid
        try:
            tid = procfs.living_thread(self._root, pid)
            if tid is None or kin.shares_memory(self._root, pid, tid):
                return None
        except OSError:
            return None
        return active.mover.step(allowed)

    async def _finish(self, active: Pass) -> None:
        record = active.record
        placement, effective = record.placement, self._effective(record.cgroup)
        record.left_misplaced = None
        await self._look_after(record)
        total = sum(record.bytes_by_node.values())
        distance = record.distance if record.distance is not None else active.before
        # A pass that brought little for what it moved is not worth repeating soon.
        gained = (active.before - distance) * total
        record.idle_passes = 0 if active.moved and gained >= active.moved / 4 else record.idle_passes + 1
        self._again(record, self._backoff(record))
        record.left_misplaced, record.last_total = distance * total, total
        if active.moved:
            # A pass that found nothing to be moved says nothing of what became of the one before.
            record.last_moved, record.migrated = active.moved, self._migrated()
        if effective and distance <= effective.handling.tolerance:
            # Not before: right after its exec a process has next to nothing that could be moved.
            record.settled_for = placement
        record.has_settled = True
        if active.moved or active.failed:
            now = record.distance if record.distance is not None else active.before
            journal.pages_moved(
                record.cgroup, record.comm, record.process, active.moved, active.failed, active.before, now, active.why
            )

    async def _look_after(self, record: Record) -> None:
        """The figure after a pass, without beginning another: that is for the next measurement, later and later where
        passes move nothing."""
        effective = self._effective(record.cgroup)
        if record.placement and effective:
            await self._measure(record, record.placement, effective)

    def _again(self, record: Record, seconds: float) -> None:
        """When to measure next, unless that was asked for at once meanwhile (0)."""
        if record.measure_at:
            record.measure_at = asyncio.get_running_loop().time() + seconds

    def _backoff(self, record: Record) -> float:
        return self._later(record.idle_passes)

    def _later(self, times: int) -> float:
        return float(min(self.interval * 2 ** min(times, 10), LONGEST_BACKOFF))

    async def _measure(
        self, record: Record, placement: Placement, effective: Effective
    ) -> tuple[Share, tuple[Span, ...]] | None:
        """What is held against which target, with the figures written into the record; None where there is no target
        or the figures could not be had."""
        mappers = len(self._agreeing(record)) + 1 if effective.handling.shared == "move" else 0
        smallest = effective.handling.min_region
        try:
            measured, spent = await self._readers.call(
                record.process,
                priced(lambda: measuring.figures(self._root, record, placement, self._machine(), mappers, smallest)),
                patience(self._root, record.process.pid),
            )
        except OSError as error:
            if not libc.is_gone(error):
                record.acted = str(error)
            return None
        if measured is None:
            record.distance = None
            return None
        share, found = measured
        record.bytes_by_node = found.bytes_by_node
        record.left_out = {why: sum(by_node.values()) for why, by_node in found.left_out.items()}
        if found.swapped:
            record.left_out["swapped"] = found.swapped
        record.distance = found.distance
        record.measured_at = time.time()
        self._again(record, max(self.interval, spent / self.measuring_share))
        by_target = {id(span.target) for span in found.spans}
        record.settled = Settled(found.spans) if spent > self.sampled_from and len(by_target) == 1 else None
        self._changed.set()
        return share, found.spans

    def _agreeing(self, record: Record) -> frozenset[int]:
        """The other processes of the same placement whose pages may be moved together with this one's."""
        return frozenset(
            pid
            for pid, other in self._records.items()
            if other is not record
            and other.placement == record.placement
            and _may_move(other)
            and (effective := self._effective(other.cgroup))
            and effective.handling.shared == "move"
        )


def _may_move(record: Record) -> bool:
    """Pages follow where the policy holds in all threads, or where only the policy cannot be set (L5)."""
    if record.outcomes & {Outcome.FOREIGN, Outcome.CONTESTED, Outcome.DEFERRED}:
        return False
    if Outcome.REFUSED in record.outcomes:
        return record.reasons <= MOVING_ONLY
    return bool(record.outcomes & {Outcome.APPLIED, Outcome.UNSTEERABLE})

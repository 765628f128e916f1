"""The loop: hints come in, state is compared with state, and what differs is looked at, in order of urgency.

Level, not edge: whatever woke it, the engine reads what is and compares it with what should be. A hint that was lost
costs time until the next scan, never correctness. Looks at processes run side by side, so that a process of a thousand
threads does not keep a small one waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from typing import TypeVar

from hetmemd.engine.balancing import Balancer
from hetmemd.engine.binding import Binder
from hetmemd.engine.braking import Brakes
from hetmemd.engine.ledger import Ledger
from hetmemd.engine.offloop import StuckError
from hetmemd.engine.pending import Pending
from hetmemd.engine.record import Record
from hetmemd.engine.steering import Steering
from hetmemd.engine.world import World
from hetmemd.kernel import libc, procfs
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.root import Root
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally
from hetmemd.tasks import scan
from hetmemd.tasks.tree import Cgroup
from hetmemd.watch.hint import Hint

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY, LAST_RETRY = 0.2, 30.0
"""Seconds between looks at a process whose act was deferred; doubled each time, the scan goes on after that."""
YOUNG = 1.0
"""Seconds after which a child that has its parent's policy already (T2) is taken up: most do not live so long."""
MAPPED = 8
"""Looks that are under way, of all kinds, for one more to be begun at once where memory was mapped."""
SLICE = 64
"""Processes looked at, or heard of, before the loop serves everything else again."""
QUIET = frozenset({"observe", "no-allowed-node", "broken-file", "trial"})
"""Reasons that a further look does not mend: what ends them is a hint of its own."""


async def _in_slices(all_of_them: Iterable[T]) -> AsyncIterator[T]:
    """Each of them, and the loop's turn now and then: after a burst there are tens of thousands."""
    for number, each in enumerate(all_of_them, 1):
        yield each
        if number % SLICE == 0:
            await asyncio.sleep(0)


class Engine:
    def __init__(
        self,
        root: Root,
        world: World,
        ledger: Ledger,
        steering: Steering,
        binder: Binder,
        brakes: Brakes,
        balancer: Balancer,
        records: dict[int, Record],
        tally: Tally,
        spared: Callable[[], Iterable[int]],
        changed: asyncio.Event,
    ) -> None:
        """`spared` gives the pids that are never touched besides init's: the daemon's own and its tracers' (T5).
        `changed` is set when there is something new to publish."""
        self._root = root
        self._world = world
        self._ledger = ledger
        self._steering = steering
        self._binder = binder
        self._brakes = brakes
        self._balancer = balancer
        self.records = records
        self._tally = tally
        self._spared = spared
        self._pending = Pending()
        self._wake = asyncio.Event()
        self._first = asyncio.Event()
        self._looks: dict[int, asyncio.Task[Record | None]] = {}
        self._again: dict[int, float | None] = {}
        """Processes that are to be looked at once more, and when that was hinted at."""
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._attempts: dict[int, tuple[Record, int]] = {}
        """Deferred looks in a row, by pid: each waits longer than the one before. With the record, which is nowhere
        else where no policy reaches the process: without what was read so far, each look would begin anew."""
        self._clear: dict[int, tuple[int, str]] = {}
        """Processes that no policy reaches and that carry nothing of ours, by pid: their start, and the cgroup then."""
        self._young: set[int] = set()
        self._young_timer: asyncio.TimerHandle | None = None
        self.changed = changed
        self.scans = 0
        self.last_scan = 0.0
        self.busy_since: float | None = None
        """When the round that runs now began, in the loop's time; None between rounds."""

    def deliver(self, hints: Sequence[Hint]) -> None:
        self._pending.add(hints, self._now())
        self._wake.set()

    def rescan(self) -> None:
        self._pending.everything = True
        self._wake.set()

    def look_again(self, pid: int) -> None:
        """What stood in the way of this process is over."""
        self._look(pid)

    def reload(self) -> None:
        """The policy files, the settings or the kill switch may have changed."""
        self._pending.files = True
        self._wake.set()

    async def follow_regions(self, want: Callable[[Collection[int]], None]) -> None:
        """Until cancelled: looks at processes whose regions may be others than they were.

        `want` is told which are followed: of those, hints of what is mapped are of use.
        """
        await self._first.wait()
        await self._binder.following.run(self._look, want)

    async def run(self) -> None:
        """Until cancelled. The first round scans everything."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self.busy_since = self._now()
            pending, self._pending = self._pending, Pending()
            try:
                await self._round(pending)
            except OSError as error:
                # A failure concerns its task or file. What comes to here concerns a reading of the whole; the next scan
                # repeats it.
                log.error("a round was cut short: %s", error)
            except Exception:
                log.exception("a round was cut short")
            finally:
                self.busy_since = None
            self._first.set()
            if not pending.is_all_mapped:  # what comes of that is told by the looks
                self.changed.set()

    async def settle(self, seconds: float) -> None:
        """Wait for the first scan and the looks that it began, at most so long: what is slow goes on."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
                await asyncio.gather(*self._looks.values(), return_exceptions=True)
        except TimeoutError:
            log.warning("the first scan goes on: some processes are slow to be read or to stop")

    async def close(self) -> None:
        if self._young_timer:
            self._young_timer.cancel()
        for timer in self._retries.values():
            timer.cancel()
        for look in list(self._looks.values()):
            look.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)
        self._steering.close()
        self._binder.close()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # -- rounds

    async def _round(self, pending: Pending) -> None:
        at = self._now()
        for pid in pending.ended:
            self._binder.heritage.forget(pid)
        async for pid, parent in _in_slices(pending.forked.items()):
            self._binder.heritage.forked(pid, parent)
        async for pid in _in_slices(pending.executed):
            self._binder.heritage.executed(pid)
        if pending.files:
            await self._cgroups(self._world.read_files(), at)
        for path, hinted in pending.cpusets.items():
            await self._cgroups(self._world.read_cpusets(path), hinted, all_of_them=True)
        for path in pending.gone:
            self._world.look(path)
        for path, hinted in pending.cgroups.items():
            await self._cgroups([path, *self._world.look(path)], hinted)
        async for pid, hinted in _in_slices(pending.executed.items()):
            self._executed(pid, hinted)
        async for pid, parent in _in_slices(pending.forked.items()):
            self._child(pid, parent, at)
        for pid in pending.ended:
            if pid in self.records or pid in self._looks or pid in self._clear:
                self._look(pid)
        async for pid, mapped in _in_slices(pending.mapped.items()):
            if self._binder.following.has_mapped(pid, mapped) and len(self._looks) < MAPPED:
                self._look(pid)
        if pending.everything:
            await self._scan()

    async def _scan(self) -> None:
        begin = time.monotonic()
        async for path in _in_slices(list(self._world.tree.by_path)):
            self._world.read_cpuset(path)
        self._world.read_machine()
        self._world.read_files()
        self._world.look("/")
        known = {process.pid for process in self._ledger.processes()} | set(self.records)
        seen = await self._cgroups(list(self._world.tree.by_path))
        for pid in (known | set(self._clear)) - seen:
            self._look(pid)
        self.scans += 1
        self.last_scan = time.monotonic() - begin
        self._tally.scan(self.last_scan)

    async def _cgroups(self, paths: Iterable[str], hinted: float | None = None, all_of_them: bool = False) -> set[int]:
        """Look at what sits in these cgroups. Gives the pids."""
        seen: set[int] = set()
        for path in dict.fromkeys(paths):
            cgroup = self._world.tree.by_path.get(path)
            if cgroup is None or not (all_of_them or self._concerns(path)):
                continue
            async for pid in _in_slices(self._processes(cgroup)):
                seen.add(pid)
                if all_of_them and (record := self.records.get(pid)):
                    record.renew()
                self._look(pid, hinted)
        return seen

    def _concerns(self, path: str) -> bool:
        """Whether a task in this cgroup may need anything: a policy, or to be rid of one (T3)."""
        return self._world.reached(path) or bool(self._ledger.issued)

    def _processes(self, cgroup: Cgroup) -> list[int]:
        try:
            return scan.processes(self._root, cgroup)
        except OSError as error:
            log.warning("the tasks of %s cannot be listed: %s", cgroup.path, error)
            return []

    # -- processes

    def _child(self, pid: int, parent: int, at: float) -> None:
        """A fork: the child of a parent that was verified has the policy already, in the same cgroup (T2)."""
        if not self._world.any_policy and not self._ledger.issued:
            return
        try:
            path = procfs.process_cgroup(self._root, pid)
        except OSError:
            return  # it ended, as most children do before anybody looks
        known = self.records.get(parent)
        if known and known.cgroup == path and known.outcome is Outcome.APPLIED and not self._bequeaths(known):
            self._young.add(pid)
            if self._young_timer is None:
                self._young_timer = asyncio.get_running_loop().call_later(YOUNG, self._take_up)
        elif path and self._concerns(path):
            self._look(pid, at)

    def _bequeaths(self, parent: Record) -> bool:
        """Whether a child has something to get back (T3): that has to be known before its parent is gone."""
        return any(mark.replaced != DEFAULT for mark in self._ledger.marks(parent.process).values())

    def _executed(self, pid: int, at: float) -> None:
        """An exec: the task's policy stays, its address space is another."""
        if record := self.records.get(pid):
            record.renew()
        if record or self._world.any_policy or self._ledger.issued:
            self._look(pid, at)

    def _take_up(self) -> None:
        self._young_timer = None
        for pid in self._young:
            self._look(pid)
        self._young.clear()

    def _look(self, pid: int, hinted: float | None = None) -> None:
        """Look at a process, now or, where a look is under way, once more after it."""
        if pid in self._looks:
            self._again[pid] = _first(self._again.get(pid), hinted)
            return
        self._looks[pid] = asyncio.get_running_loop().create_task(self._looked(pid, hinted))

    async def look_at(self, pid: int) -> Record | None:
        """A look from now on, and what was found; None where the process is gone or nobody's business."""
        self._look(pid)
        record = None
        while (look := self._looks.get(pid)) is not None:
            record = await asyncio.shield(look)
        return record

    async def _looked(self, pid: int, hinted: float | None) -> Record | None:
        record = self.records.get(pid)
        try:
            record = self._record(pid)
            if record is not None:
                changed = await self._steering.look(record)
                changed = await self._binder.look(record) or changed
                if changed and record.outcome is Outcome.APPLIED and hinted is not None:
                    self._tally.cgroup_move(self._now() - hinted)
                    hinted = None
                self._after(record)
        except StuckError:
            if record is not None:
                self._know_nothing(record, Outcome.DEFERRED, "mmap-lock")
                self._after(record)
        except OSError as error:
            if libc.is_gone(error):
                self._forget(pid)
            elif record is not None:
                self._know_nothing(record, Outcome.REFUSED, "unreadable")
                record.acted = str(error)
        except Exception:
            # A failure concerns its task: the rest of the machine is still served.
            log.exception("looking at process %d failed", pid)
            if record is not None:
                self._know_nothing(record, Outcome.REFUSED, "internal-error")
        finally:
            self._looks.pop(pid, None)
            self.changed.set()
        if pid in self._again:
            self._look(pid, _first(hinted, self._again.pop(pid)))
        return record

    def _know_nothing(self, record: Record, outcome: Outcome, reason: str) -> None:
        """A look came to nothing: what an earlier one found does not hold on, or pages would be moved by it."""
        record.outcome, record.reason = outcome, reason
        record.outcomes, record.reasons = frozenset({outcome}), frozenset({reason})
        self._tally.application(outcome, reason)

    def _record(self, pid: int) -> Record | None:
        """The record of a process that concerns us, made or brought up to date; None for one that does not."""
        if pid == 1 or pid in self._spared():
            return None
        stat = procfs.stat(self._root, pid)
        process = procfs.ProcessId(pid, stat.start)
        path = None if stat.flags & procfs.PF_KTHREAD else procfs.process_cgroup(self._root, pid)
        if path is None:
            self._forget(pid)
            return None
        if path not in self._world.tree.by_path:
            self._world.look(path)
        placement = None if self._brakes.undone(process, path) else self._world.placement(path)
        reached = self._is_reached(pid, path)
        record = self.records.get(pid)
        if record is None and pid in self._attempts:
            record = self._attempts[pid][0]
        if record is None or record.process != process:
            if not reached and self._clear.get(pid) == (process.start, path):
                return None
            record = Record(process, stat.comm, path, placement)
        record.comm = stat.comm
        if (record.placement, record.cgroup) != (placement, path):
            record.placement, record.cgroup = placement, path
            record.renew()
        self._clear.pop(pid, None)
        if reached:
            self.records[pid] = record
        else:
            self.records.pop(pid, None)
        return record

    def _is_reached(self, pid: int, path: str) -> bool:
        """Whether a policy reaches a process in this cgroup, or a thread of its in another (T1)."""
        if self._world.reached(path):
            return True
        if not self._world.any_policy:
            return False
        others = set(scan.elsewhere(self._root, pid, path).values())
        for other in others - self._world.tree.by_path.keys():
            self._world.look(other)
        return any(self._world.reached(other) for other in others)

    def _after(self, record: Record) -> None:
        pid = record.process.pid
        if Outcome.DEFERRED in record.outcomes and not record.reasons <= QUIET:
            self._retry_later(record)
        else:
            self._attempts.pop(pid, None)
            carries = self._ledger.marks(record.process) or self._ledger.regions(record.process)
            if pid not in self.records and not record.outcomes and not carries:
                self._clear[pid] = (record.process.start, record.cgroup)
        if pid in self.records:
            self._balancer.notice(record)

    def _retry_later(self, record: Record) -> None:
        pid = record.process.pid
        earlier, attempts = self._attempts.get(pid, (record, 0))
        if earlier.process != record.process:
            attempts = 0
        self._attempts[pid] = (record, min(attempts + 1, 16))
        if previous := self._retries.pop(pid, None):
            previous.cancel()
        delay = min(FIRST_RETRY * 2**attempts, LAST_RETRY)
        self._retries[pid] = asyncio.get_running_loop().call_later(delay, self._retry, pid)

    def _retry(self, pid: int) -> None:
        del self._retries[pid]
        self._look(pid)

    def _forget(self, pid: int) -> None:
        record = self.records.pop(pid, None)
        self._young.discard(pid)
        self._attempts.pop(pid, None)
        self._clear.pop(pid, None)
        self._binder.forget(pid)
        if record:
            self._ledger.forget([record.process])
        else:
            self._ledger.forget([process for process in self._ledger.processes() if process.pid == pid])


def _first(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)

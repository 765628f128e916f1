"""Giving back what was given: everywhere, in a cgroup, or in one process. By the service (`hetmemctl undo`, and its own
stop, L2), and by hetmemctl itself when there is no service: the same code, with a tracer of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hetmemd import settings
from hetmemd.engine.binding import Binder, Wish
from hetmemd.engine.braking import Brakes
from hetmemd.engine.decide import UNDO, Wanted
from hetmemd.engine.holds import is_below
from hetmemd.engine.kernel_table import KernelTable
from hetmemd.engine.ledger import Ledger
from hetmemd.engine.offloop import StuckError
from hetmemd.engine.record import Record
from hetmemd.engine.regionwise import Asked
from hetmemd.engine.steering import Steering, Witness
from hetmemd.kernel import libc, procfs
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory.scope import scope
from hetmemd.remote.client import Tracer
from hetmemd.report import journal
from hetmemd.report.tally import Tally
from hetmemd.tasks import scan

AGAIN = 0.2
"""Seconds until what could not be given back is tried once more."""
AT_ONCE = 64
"""Processes looked at side by side."""
NO_TIME = "no-time"
"""Why a process was left that was not looked at to the end."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A cgroup with all below it, or one process."""

    cgroup: str = "/"
    process: ProcessId | None = None

    def includes(self, process: ProcessId, cgroup: str) -> bool:
        return self.process == process if self.process else is_below(cgroup, self.cgroup)

    def covers(self, cgroup: str) -> bool:
        """Whether it is about a thread in this cgroup, of a process that it is about."""
        return self.process is not None or is_below(cgroup, self.cgroup)


@dataclass(frozen=True, slots=True)
class Left:
    """A process that still carries something of hetmemd's."""

    pid: int
    comm: str
    cgroup: str
    reason: str
    note: str = ""
    """What more there is to say of it."""
    is_refused: bool = False
    """It is never touched, however often that is tried."""


@dataclass(frozen=True, slots=True)
class Given:
    """What came of it. What is left stays in the ledger."""

    threads: int
    regions: int
    """Ranges of memory."""
    left: tuple[Left, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done to the threads, or regions, of one process that carry the same."""

    pid: int
    comm: str
    cgroup: str
    kind: str
    """`threads` or `regions`, and how many:"""
    count: int
    now: str
    then: str


Look = Callable[[int], Awaitable[Record | None]]
"""Brings one process, by its pid, to what it should be; None where it is gone or nobody's business."""


class Giving:
    def __init__(self, root: Root, ledger: Ledger, steering: Steering, binder: Binder, look: Look) -> None:
        self._root = root
        self._ledger = ledger
        self._steering = steering
        self._binder = binder
        self._heritage = binder.heritage
        self._look = look

    async def give_back(self, selection: Selection, seconds: float) -> Given:
        """Until nothing is left of it, or the time is over. Nothing may be wanted for the selection any more."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        before = self._steering.given_back, self._binder.given_back
        await self._adopt(selection, loop.time() + seconds / 2)
        reasons: dict[int, Left] = {}
        while True:
            # A try that the limit cut short says less than the one before.
            tried = await self._once(selection, until)
            left = [reasons.get(each.pid, each) if each.reason == NO_TIME else each for each in tried]
            reasons = {each.pid: each for each in left}
            if all(each.is_refused for each in left) or loop.time() + AGAIN >= until:
                threads, regions = self._steering.given_back - before[0], self._binder.given_back - before[1]
                return Given(threads, regions, tuple(left))
            await asyncio.sleep(AGAIN)

    async def _adopt(self, selection: Selection, until: float) -> None:
        """Who was forked while there was no service has no marks of its own; parents first.

        Who there is no time for is looked at all the same, and taken up then, as long as there is somebody to tell.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                found = await self._found(selection)
                for process, path in sorted(found, key=lambda each: each[0].start):
                    await asyncio.sleep(0)  # neither the watchdog nor the limit waits for all of them
                    with contextlib.suppress(OSError, StuckError):
                        await self._heritage.inherit(process)
                        await self._steering.adopt(Record(process, "", path, None))

    async def _once(self, selection: Selection, until: float) -> list[Left]:
        found = await self._found(selection)
        left: list[Left] = []
        for begin in range(0, len(found), AT_ONCE):
            some = found[begin : begin + AT_ONCE]
            looks = [asyncio.ensure_future(self._look(process.pid)) for process, _ in some]
            await asyncio.wait(looks, timeout=max(until - asyncio.get_running_loop().time(), 0.0))
            for (process, path), look in zip(some, looks, strict=True):
                record = look.result() if look.done() and not look.exception() else None
                if not look.done():
                    look.cancel()
                if (record and record.carrying) or self._carries(process, path, selection):
                    if not self._is_alive(process):
                        continue
                    if record is None:
                        left.append(Left(process.pid, "", path, NO_TIME))
                        continue
                    refused = bool(record.refusal)
                    left.append(Left(process.pid, record.comm, path, record.reason, record.note, refused))
        return left

    def _carries(self, process: ProcessId, path: str, selection: Selection) -> bool:
        """Whether the ledger has something of the selection left. What belongs to the address space is its leader's."""
        marks = self._ledger.marks(process)
        try:
            others = scan.elsewhere(self._root, process.pid, path) if marks else {}
        except OSError:
            others = {}
        covered = selection.covers(path)
        return (covered and bool(self._ledger.regions(process))) or any(
            selection.covers(others[tid]) if tid in others else covered for tid in marks
        )

    async def preview(self, selection: Selection) -> list[Plan]:
        """What `give_back` would do now."""
        plans: list[Plan] = []
        for process, path in await self._found(selection):
            try:
                comm = procfs.stat(self._root, process.pid).comm
                await self._heritage.inherit(process)
                found = await self._steering.preview(Record(process, comm, path, None))
            except (OSError, StuckError):
                continue
            counts = Counter(("threads", str(now), str(then)) for now, then in found)
            regions = self._ledger.regions(process).values()
            counts.update(("regions", str(mark.issued), str(mark.replaced)) for mark in regions)
            plans += [
                Plan(process.pid, comm, path, kind, count, now, then)
                for (kind, now, then), count in sorted(counts.items(), reverse=True)
            ]
        return plans

    async def _found(self, selection: Selection) -> list[tuple[ProcessId, str]]:
        """User processes of the selection: whatever the ledger says, a child may carry what its parent was given."""
        found: list[tuple[ProcessId, str]] = []
        for number, pid in enumerate(procfs.pids(self._root), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                stat = procfs.stat(self._root, pid)
                path = None if stat.flags & procfs.PF_KTHREAD else procfs.cgroup_path(self._root, pid)
                others = {} if path is None else scan.elsewhere(self._root, pid, path)
            except OSError:
                continue
            process = ProcessId(pid, stat.start)
            if (
                pid != 1
                and path is not None
                and any(selection.includes(process, each) for each in {path, *others.values()})
            ):
                found.append((process, path))
        return found

    def _is_alive(self, process: ProcessId) -> bool:
        try:
            return procfs.identify(self._root, process.pid) == process
        except OSError:
            return False


async def alone(
    root: Root, selection: Selection, seconds: float, witness: Witness, dry_run: bool, force: bool
) -> Given | list[Plan]:
    """Without the service, whose lock the caller holds. `OSError`, `sqlite3.Error`, `SettingsError`."""
    ledger = Ledger(root)
    tracer = Tracer(root)
    brakes = Brakes(root, ledger, settings.load(root).brakes, lambda: None, lambda pid: None)
    nodes = topology.read(root).memory_nodes
    steering = Steering(
        root,
        ledger,
        tracer,
        lambda path: UNDO if selection.covers(path) else Wanted(None, UNDO.why, holds=True),
        lambda: nodes,
        lambda path: scan.is_threaded(root, path),
        lambda: False,
        brakes,
        witness,
    )
    nothing = Wish(Asked(None, scope(("all",))), UNDO.why)
    binder = Binder(
        root, ledger, tracer, lambda path: nothing, lambda: nodes, lambda: False, brakes, journal.regions_bound, Tally()
    )

    async def look(pid: int) -> Record | None:
        if pid == os.getpid() or pid in tracer.pids:
            return None
        try:
            stat = procfs.stat(root, pid)
            path = procfs.cgroup_path(root, pid)
            record = Record(ProcessId(pid, stat.start), stat.comm, path or "", None)
            await steering.look(record)
            await binder.look(record)
        except StuckError:
            record.reason = "mmap-lock"
        except OSError as error:
            if libc.is_gone(error):
                return None
            record = Record(ProcessId(pid, 0), "", "", None, reason="unreadable")
        return record

    try:
        giving = Giving(root, ledger, steering, binder, look)
        with brakes.insisting(selection.includes) if force else contextlib.nullcontext():
            if dry_run:
                return await giving.preview(selection)
            given = await giving.give_back(selection, seconds)
        if selection == Selection():
            KernelTable(root, lambda: False).give_back()
        return given
    finally:
        steering.close()
        binder.close()
        brakes.close()
        tracer.close()
        ledger.close()

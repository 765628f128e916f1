"""The regions of processes: reads them, decides, and has them bound.

A policy that an `mbind` gave holds for a range as it is mapped then. What is mapped later, and a heap that grows, has
none: `following` says when a process is to be looked at again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from hetmemd.engine.braking import Permit
from hetmemd.engine.clearance import Clearance
from hetmemd.engine.decide import FIRST_WAIT, FORGIVEN, STRIKES, UNDO, Mark, nodes_within
from hetmemd.engine.following import Following, State
from hetmemd.engine.heritage import Heritage
from hetmemd.engine.ledger import Ledger, Span
from hetmemd.engine.offloop import OffLoop, patience, priced
from hetmemd.engine.record import Record, worst
from hetmemd.engine.regionwise import (
    Asked,
    Change,
    RegionMark,
    Regionwise,
    decide_regions,
    followed,
    intended,
    settled,
    without,
)
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import regions
from hetmemd.memory.headroom import Headroom
from hetmemd.memory.scope import scope
from hetmemd.remote.regions import HomeNode, RegionCall, RegionsResult
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

READERS = 4
READ_SECONDS = 10.0
ROUNDS = 4
"""How often regions are read again while there is something to bind; the next look goes on."""
SLICE = 256
"""Calls between two looks at the kill switch."""
RETRY = 60.0
"""Seconds after which a call that the kernel refused is tried again."""


class Acts(Protocol):
    """The effect: `remote.client.Tracer`."""

    async def bind(
        self, process: ProcessId, requests: Sequence[RegionCall], tids: Sequence[int] | None = None
    ) -> RegionsResult: ...


class Brakes(Protocol):
    """Who is asked before every act: `braking.Brakes`."""

    def undone(self, process: ProcessId, cgroup: str) -> bool: ...

    def turn(self, process: ProcessId) -> AbstractAsyncContextManager[None]: ...

    def permit(self, process: ProcessId, cgroup: str, policy: str, count: int) -> Permit: ...

    def done(self, process: ProcessId, policy: str, granted: int, stops: int, ended: bool = False) -> None: ...


Witness = Callable[[str, str, ProcessId, str, int, int, Mapping[str, int]], None]
"""Who is told of what was bound: `report.journal.regions_bound`."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a cgroup's policy asks of the regions of its processes, and where that stands."""

    asked: Asked
    why: str
    """`file:line`, or the rule that takes it away."""
    min_age: float = 0.0
    """Seconds of a process's life before its regions are bound."""
    holds: bool = False
    """Where nothing is asked: what is bound stays all the same (F2)."""
    key: str = ""
    """Which policy that is, to be tried and held as one (`braking.policy_key`)."""


_UNDO = Wish(Asked(None, scope(("all",))), UNDO.why)


class Binder:
    def __init__(
        self,
        root: Root,
        ledger: Ledger,
        acts: Acts,
        wish: Callable[[str], Wish],
        memory_nodes: Callable[[], frozenset[int]],
        observing: Callable[[], bool],
        brakes: Brakes,
        witness: Witness,
        tally: Tally,
    ) -> None:
        """`wish` takes a cgroup's path; the rest as for `Steering`."""
        self._root = root
        self._ledger = ledger
        self._acts = acts
        self._wish = wish
        self._memory_nodes = memory_nodes
        self._observing = observing
        self._brakes = brakes
        self._witness = witness
        self._tally = tally
        self.given_back = 0
        """Ranges that were undone."""
        self._headroom = Headroom(root)
        self.heritage = Heritage(root, ledger)
        self._readers = OffLoop("regions", READERS, READ_SECONDS)
        self._clearance = Clearance(root, lambda path: wish(path).asked)
        self.following = Following(root)

    def close(self) -> None:
        self.heritage.keep()
        self._readers.close()

    @property
    def stuck(self) -> int:
        """Reads that wait for a target's mmap lock."""
        return self._readers.stuck

    def forget(self, pid: int) -> None:
        """It has ended."""
        self.following.forget(pid)
        self.heritage.forget(pid)

    # -- one look

    async def look(self, record: Record) -> bool:
        """Bring the regions of one process to what its cgroup's policy says, after its threads. True if any was bound.

        Updates the record. Raises as `Steering.look` does.
        """
        if record.refusal:
            return False
        is_unknown = await self.heritage.inherit(record.process)
        wish = _UNDO if self._brakes.undone(record.process, record.cgroup) else self._wish(record.cgroup)
        if not wish.asked.is_regional and not is_unknown and not self._ledger.regions(record.process):
            self.following.forget(record.process.pid)
            return False
        state = self.following.of(record.process)
        changed = False
        result: tuple[Outcome, str] | None = None
        for _ in range(ROUNDS):
            decision = await self._decide(record, state, wish)
            todo = self._todo(state, decision)
            if not todo or result:
                break
            possible, result = self._possible(record, wish, todo)
            if possible:
                done, hindrance = await self._act(record, state, wish, possible)
                result, changed = hindrance or result, changed or done
        self._conclude(record, state, wish, result)
        if not wish.asked.is_regional and not self._ledger.regions(record.process):
            self.following.forget(record.process.pid)
        if changed:
            # What fell in between lies where it should not. Not before: whether it may be moved is known only now.
            record.measure_at = 0.0
        return changed

    async def _decide(self, record: Record, state: State, wish: Wish) -> Regionwise:
        mapped_at = state.mapped_at
        earlier = mapped_at or state.read_at
        state.mapped_at, state.began = None, asyncio.get_running_loop().time()
        try:
            (decision, marks), state.cost = await self._readers.call(
                record.process,
                priced(lambda: self._read(record, state, wish.asked)),
                patience(self._root, record.process.pid),
            )
        except BaseException:
            state.mapped_at = mapped_at or state.began  # it is to be read again all the same
            raise
        state.read_at = asyncio.get_running_loop().time()
        self._tally.region_read(state.cost)
        if state.decision is not None and earlier:
            self._late(decision, state.decision, state.read_at - earlier)
        self._keep(record.process, state, marks)
        self.heritage.settle(record.process)
        state.decision = decision
        return decision

    def _read(self, record: Record, state: State, asked: Asked) -> tuple[Regionwise, tuple[RegionMark, ...]]:
        """In a reader's thread: thousands of regions take tens of milliseconds."""
        pid = record.process.pid
        # Before the regions: what changes while they are read is seen as a change afterwards.
        state.sign = self.following.sign(pid)
        tid = procfs.living_thread(self._root, pid)
        found = regions.read(self._root, pid, tid, state.stacks) if tid is not None else []
        state.stacks = regions.stacks_in(found)
        allowed = record.allowed or self._memory_nodes()
        marks = followed(self._marks(record.process), found, allowed)
        decision = decide_regions(
            found,
            asked,
            allowed,
            marks,
            self._ledger.issued,
            is_foreign=record.own is not None,
            cleared=self._clearance.cleared(found, asked, allowed),
        )
        return decision, settled(decision.verdicts, marks)

    def _late(self, decision: Regionwise, before: Regionwise, seconds: float) -> None:
        """Regions that were not there at the last reading, and wait for so long at the most."""
        known = {verdict.region.start for verdict in before.verdicts}
        if any(verdict.state == "change" and verdict.region.start not in known for verdict in decision.verdicts):
            self._tally.region_delay(seconds)

    def _todo(self, state: State, decision: Regionwise) -> list[Change]:
        now = asyncio.get_running_loop().time()
        state.failed = {key: at for key, at in state.failed.items() if at > now}
        state.contested = False
        return [
            change
            for change in decision.changes
            if (change.start, change.end, change.policy) not in state.failed and not self._is_fought(state, change, now)
        ]

    def _is_fought(self, state: State, change: Change, now: float) -> bool:
        """Whether the application has set its own policy again, so that it is left to it, for now or altogether."""
        if not change.overrides or change.start not in state.fought:
            return False
        strikes, at = state.fought[change.start]
        if now - at > FORGIVEN:
            del state.fought[change.start]
            return False
        state.contested = state.contested or strikes > STRIKES
        return strikes > STRIKES or now - at < FIRST_WAIT * 2 ** (strikes - 1)

    def _possible(
        self, record: Record, wish: Wish, todo: list[Change]
    ) -> tuple[list[Change], tuple[Outcome, str] | None]:
        """What of it may be done now, and why not the rest. What was replaced is given back whatever it is."""
        if self._observing() and wish is not _UNDO:
            return [], (Outcome.DEFERRED, "observe")
        if wish.asked.policy is None and wish.holds:
            return [], (Outcome.DEFERRED, "broken-file")
        given = [change for change in todo if not change.undoes]
        if given and procfs.age(record.process) < wish.min_age:
            return [change for change in todo if change.undoes], (Outcome.DEFERRED, "young")
        allowed = record.allowed or self._memory_nodes()
        binds = {change.policy for change in given if change.policy.mode is Mode.BIND}
        full = {policy for policy in binds if not self._headroom.bears(nodes_within(policy, allowed))}
        possible = [change for change in todo if change.undoes or change.policy not in full]
        return possible, (Outcome.REFUSED, "headroom") if full else None

    # -- acting

    async def _act(
        self, record: Record, state: State, wish: Wish, todo: Sequence[Change]
    ) -> tuple[bool, tuple[Outcome, str] | None]:
        """Have the changes made: whether any was, and what stands in the way of the rest."""
        calls = [(call, change) for change in todo for call in change.calls]
        failed: Counter[str] = Counter()
        bound = undone = 0
        hindrance: tuple[Outcome, str] | None = None
        self._intend(record.process, state, todo)
        for begin in range(0, len(calls), SLICE):
            some = calls[begin : begin + SLICE]
            key = "" if all(change.undoes for _, change in some) else wish.key
            result = await self._bind(record, wish, key, [call for call, _ in some])
            for pause in result.pauses_ns:
                self._tally.pause(pause / 1e9)
            done = [pair for pair, code in zip(some, result.errnos, strict=False) if not code]
            self._refused(state, some, result.errnos, failed)
            self._took_place(record.process, state, done)
            at = asyncio.get_running_loop().time()
            for change in {change for _, change in done if change.overrides}:
                state.fought[change.start] = (state.fought.get(change.start, (0, 0.0))[0] + 1, at)
            bound += sum(not change.undoes for call, change in done if not isinstance(call, HomeNode))
            undone += sum(change.undoes for _, change in done)
            if result.outcome is not Outcome.APPLIED:
                hindrance = (result.outcome, result.reason)
                break
        if hindrance:
            failed[hindrance[1]] += 1
        self.given_back += undone
        self._tally.regions_bound(bound, undone, failed)
        record.acted = _sentence(bound, undone, failed)
        record.acted_at = time.time()
        self._witness(record.cgroup, record.comm, record.process, wish.why, bound, undone, failed)
        return bool(bound or undone), hindrance

    async def _bind(self, record: Record, wish: Wish, key: str, calls: Sequence[RegionCall]) -> RegionsResult:
        """As far as the brakes allow it: how many stops it takes is known, and paid for, afterwards."""
        process = record.process
        async with self._brakes.turn(process):
            # Not before: thousands may have had their turn since the regions were read.
            if self._observing() and wish is not _UNDO:
                return RegionsResult(Outcome.DEFERRED, "observe", 0, (), ())
            if not self._is_still(wish, record):
                return RegionsResult(Outcome.DEFERRED, "changed", 0, (), ())
            permit = self._brakes.permit(process, record.cgroup, key, 1)
            if not permit.granted:
                return RegionsResult(permit.outcome, permit.reason, 0, (), ())
            stops, ended = 1, False  # whoever is cancelled in between may have stopped one
            try:
                result = await self._acts.bind(process, calls)
                stops, ended = result.stops, bool(result.stops and result.outcome is Outcome.GONE)
            finally:
                self._brakes.done(process, key, 1, stops, ended)
            return result

    def _is_still(self, wish: Wish, record: Record) -> bool:
        """Whether the same is wanted of the process now, in the cgroup that it is in now."""
        try:
            path = procfs.process_cgroup(self._root, record.process.pid) or record.cgroup
        except OSError:
            path = record.cgroup  # it ended, which the act finds as well
        now = _UNDO if self._brakes.undone(record.process, path) else self._wish(path)
        return (now.asked, now.key, now.holds) == (wish.asked, wish.key, wish.holds)

    def _intend(self, process: ProcessId, state: State, changes: Sequence[Change]) -> None:
        """In the ledger before the act: a daemon that dies in between still knows its own."""
        self.heritage.bound(process)
        marks = self._marks(process)
        if without(marks, [(change.start, change.end) for change in changes]) != marks:
            self.heritage.bequeath(process)
        for policy in {change.policy for change in changes if not change.undoes}:
            self._ledger.will_issue(policy)
        self._keep(process, state, intended(marks, changes))

    def _refused(
        self,
        state: State,
        some: Sequence[tuple[RegionCall, Change]],
        errnos: Sequence[int],
        failed: Counter[str],
    ) -> None:
        retry = asyncio.get_running_loop().time() + RETRY
        for (_, change), code in zip(some, errnos, strict=False):
            if code == errno.EFAULT:
                continue  # it is mapped otherwise by now: the next reading shows how
            if code:
                state.failed[change.start, change.end, change.policy] = retry
                failed[os.strerror(code).lower()] += 1

    def _took_place(self, process: ProcessId, state: State, done: Sequence[tuple[RegionCall, Change]]) -> None:
        for call, change in done:
            if isinstance(call, HomeNode):
                state.homes[change.start, change.end] = call.node
        undone = [(change.start, change.end) for _, change in done if change.undoes]
        if undone or any(mark.earlier for mark in self._ledger.regions(process).values()):
            self.heritage.bequeath(process)  # to those that were forked meanwhile
        if undone:
            self._keep(process, state, without(self._marks(process), undone))

    # -- the ledger

    def _marks(self, process: ProcessId) -> tuple[RegionMark, ...]:
        state = self.following.known(process)
        homes = state.homes if state else {}
        return tuple(
            RegionMark(span.start, span.end, mark.issued, mark.replaced, mark.earlier, homes.get(span))
            for span, mark in sorted(self._ledger.regions(process).items())
        )

    def _keep(self, process: ProcessId, state: State, marks: Sequence[RegionMark]) -> None:
        """Write down what is another than before."""
        before = self._ledger.regions(process)
        now = {Span(mark.start, mark.end): Mark(mark.issued, mark.replaced, mark.earlier) for mark in marks}
        state.homes = {(mark.start, mark.end): mark.home for mark in marks if mark.home is not None}
        changes: dict[Span, Mark | None] = {span: None for span in before if span not in now}
        changes |= {span: mark for span, mark in now.items() if before.get(span) != mark}
        self._ledger.set_regions(process, changes)

    # -- what came of it

    def _conclude(self, record: Record, state: State, wish: Wish, result: tuple[Outcome, str] | None) -> None:
        """The regions' part of what `status` says of the process."""
        if wish.asked.policy is None:
            return
        said: list[tuple[Outcome, str]] = []
        if wish.asked.scope.is_inclusive:
            # Of threads nothing is asked, so that they had nothing to say.
            own = record.own
            said.append((Outcome.FOREIGN, f"own-{own.mode.word}") if own else (Outcome.APPLIED, ""))
        else:
            said.append((record.outcome, record.reason))
        if result:
            said.append(result)
        elif state.contested:
            said.append((Outcome.CONTESTED, "set-again"))
        elif state.failed:
            said.append((Outcome.REFUSED, "mbind"))
        elif state.decision and state.decision.changes:
            said.append((Outcome.DEFERRED, "new-regions"))
        record.outcome, record.reason = worst(said)
        if wish.asked.scope.is_inclusive:
            record.outcomes, record.reasons = frozenset(), frozenset()
        record.outcomes |= {outcome for outcome, _ in said}
        record.reasons |= {reason for _, reason in said if reason}


def _sentence(bound: int, undone: int, failed: Counter[str]) -> str:
    """`regions: 12 bound, 1 undone; 2 not (cannot allocate memory)`."""
    parts = [f"{number} {word}" for number, word in ((bound, "bound"), (undone, "undone")) if number]
    parts += [f"{number} not ({reason})" for reason, number in sorted(failed.items())]
    return "regions: " + (", ".join(parts) or "nothing done")

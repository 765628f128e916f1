"""From a decision to the deed: reads a process's threads, decides, has the act done, writes down what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from hetmemd.engine import clearance
from hetmemd.engine.braking import Permit
from hetmemd.engine.decide import (
    UNDO,
    Decision,
    Mark,
    Verb,
    Wanted,
    carries,
    decide,
    inherited,
    nodes_within,
    seen_applied,
)
from hetmemd.engine.ledger import Ledger
from hetmemd.engine.offloop import OffLoop, patience
from hetmemd.engine.record import Record, Seen, worst
from hetmemd.kernel import libc, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import regions
from hetmemd.memory.headroom import Headroom
from hetmemd.remote.result import Outcome, ThreadResult

READERS = 16
READ_SECONDS = 10.0
BUDGET = 0.1
"""Seconds that one look spends on reading threads: each reading walks the target's first region under its mmap lock,
which is nothing for a program's text and a millisecond for a gigabyte of heap. The next look reads what is left."""
AGAIN = 4
"""Threads that were right and are read again at each look: an application can set its own policy at any time."""
SLICE = 32
"""Threads between two looks at the kill switch, and at what is wanted."""
ROUNDS = 8
"""How often the threads of one process are read again while new ones keep coming; the next hint or scan goes on."""


class Acts(Protocol):
    """The effect: `remote.client.Tracer`."""

    async def apply(
        self,
        process: ProcessId,
        policy: Mempolicy,
        tids: Sequence[int] | None = None,
        expected: Iterable[Mempolicy] = (),
    ) -> list[ThreadResult]: ...


class Brakes(Protocol):
    """Who is asked before every act: `braking.Brakes`."""

    def refusal(self, process: ProcessId, cgroup: str) -> str: ...

    def undone(self, process: ProcessId, cgroup: str) -> bool: ...

    def about(self, process: ProcessId, cgroup: str, reason: str) -> str: ...

    def turn(self, process: ProcessId) -> AbstractAsyncContextManager[None]: ...

    def permit(self, process: ProcessId, cgroup: str, policy: str, count: int) -> Permit: ...

    def done(self, process: ProcessId, policy: str, granted: int, stops: int, ended: bool = False) -> None: ...


class Witness(Protocol):
    """Who is told of every application: counters and the journal."""

    def application(
        self, cgroup: str, comm: str, process: ProcessId, policy: Mempolicy, why: str, results: Sequence[ThreadResult]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Reading:
    """All that one look found."""

    threads: Mapping[int, Seen]
    tids: frozenset[int]
    """All that there are, those that were not read among them."""
    ppid: int
    partial: bool
    """The budget was spent before all were read."""
    refusal: str
    """Why nothing may be done to it, whatever was found."""
    idle: str
    """The word for `status` where nothing is wanted; empty where that is as it should be."""


class Steering:
    def __init__(
        self,
        root: Root,
        ledger: Ledger,
        acts: Acts,
        wanted: Callable[[str], Wanted],
        memory_nodes: Callable[[], frozenset[int]],
        is_threaded: Callable[[str], bool],
        observing: Callable[[], bool],
        brakes: Brakes,
        witness: Witness,
    ) -> None:
        """`wanted` and `is_threaded` take a cgroup's path. `memory_nodes` are the nodes online with memory.
        `observing` asks the kill switch.

        The first three, and the brakes for a refusal, are called in a reader's thread, and so only read.
        """
        self._root = root
        self._ledger = ledger
        self._acts = acts
        self._wanted = wanted
        self._memory_nodes = memory_nodes
        self._is_threaded = is_threaded
        self._observing = observing
        self._brakes = brakes
        self._witness = witness
        self._headroom = Headroom(root)
        self._readers = OffLoop("reader", READERS, READ_SECONDS)
        self.given_back = 0
        """Threads that got back what was replaced in them, since the start."""

    def close(self) -> None:
        self._readers.close()

    @property
    def stuck(self) -> int:
        """Reads that wait for a target's mmap lock."""
        return self._readers.stuck

    async def look(self, record: Record) -> bool:
        """Bring one process to what its cgroup's policy says. True if anything was changed.

        Updates the record. Raises `OSError` only where the process is gone or may not be read, `StuckError` where its
        numa_maps cannot be read now.
        """
        changed = False
        tried: dict[int, ThreadResult] = {}
        reading = await self._reading(record)
        for _ in range(ROUNDS):
            todo: dict[tuple[Mempolicy, Wanted, Verb], dict[int, Seen]] = {}
            for tid, seen in reading.threads.items():
                if seen.decision.verb in (Verb.APPLY, Verb.RESTORE) and tid not in tried:
                    key = (seen.decision.policy, seen.asked, seen.decision.verb)
                    todo.setdefault(key, {})[tid] = seen
            if not todo or reading.refusal:
                break
            for (policy, asked, verb), threads in todo.items():
                results = await self._act(record, policy, asked, verb, threads)
                tried.update((result.tid, result) for result in results)
                changed = changed or any(result.outcome is Outcome.APPLIED for result in results)
            reading = await self._reading(record)
        self._conclude(record, reading, tried)
        return changed

    async def preview(self, record: Record) -> list[tuple[Mempolicy, Mempolicy]]:
        """What giving everything back would do now: (policy, policy then) of each thread. As `look`, without acts."""
        reading = await self._readers.call(record.process, lambda: self._read(record, UNDO))
        restored = [seen for seen in reading.threads.values() if seen.decision.verb is Verb.RESTORE]
        return [] if reading.refusal else [(seen.now, seen.decision.policy) for seen in restored]

    async def adopt(self, record: Record) -> None:
        """Mark what a process inherited while nobody looked, before its parent's marks go. Raises as `look` does."""
        maker = self._maker({}, record.process.pid, procfs.stat(self._root, record.process.pid).ppid)
        if maker and not self._ledger.marks(record.process):
            reading = await self._readers.call(record.process, lambda: self._read(record, UNDO))
            marks = {tid: inherited(seen.now, seen.allowed, maker) for tid, seen in reading.threads.items()}
            self._ledger.set_marks(record.process, {tid: mark for tid, mark in marks.items() if mark})

    # -- reading

    async def _reading(self, record: Record) -> _Reading:
        generation = record.generation
        reading = await self._readers.call(record.process, lambda: self._read(record))
        # Renewed meanwhile: all of it is read again at the next look.
        record.seen = dict(reading.threads) if record.generation == generation else {}
        self._keep_marks(record, reading)
        return reading

    def _read(self, record: Record, instead: Wanted | None = None) -> _Reading:
        """In a reader's thread. Threads that were settled are taken from the record, a few of them read again."""
        process, began = record.process, time.monotonic()
        stat = procfs.stat(self._root, process.pid)
        if stat.start != process.start:
            raise ProcessLookupError(0, "another process has this pid now", f"/proc/{process.pid}")
        marks = self._ledger.marks(process)
        maker = self._maker(marks, process.pid, stat.ppid)
        threaded = self._is_threaded(record.cgroup)
        refusal = self._brakes.refusal(process, record.cgroup)
        wanted = instead or self._wanted_in(record.cgroup, process)
        idle = "" if wanted.leaves_task else wanted.reason
        tids = frozenset(procfs.tids(self._root, process.pid))
        # Of a copy, and into one: the loop may renew the record meanwhile.
        threads = {tid: seen for tid, seen in dict(record.seen).items() if tid in tids}
        again = set(list(threads)[:AGAIN])
        allowed = self._allowed(process.pid, procfs.living_thread(self._root, process.pid) or process.pid)
        record.allowed = allowed
        partial = False
        # New ones first: of what was right before, none is lost if the budget ends.
        for tid in sorted(tids, key=lambda each: (each in threads, each)):
            known = threads.get(tid)
            if (
                known
                and tid not in again
                and not threaded
                and (known.wanted, known.allowed) == (wanted.policy, allowed)
            ):
                continue
            if time.monotonic() - began > BUDGET and len(threads) > len(again):
                partial = True
                break
            try:
                now = procfs.thread_policy(self._root, process.pid, tid)
                if now is None:
                    threads.pop(tid, None)
                    continue  # a zombie, a dead leader or a kernel thread: it has no memory
                if threaded:
                    path = procfs.cgroup_path(self._root, process.pid, tid)
                    wanted = instead or (self._wanted_in(path, process) if path else Wanted(None, ""))
                    allowed = self._allowed(process.pid, tid)
                seen = self._seen(record, tid, now, allowed, marks.get(tid), maker, wanted)
            except OSError as error:
                if libc.is_gone(error):
                    threads.pop(tid, None)
                    continue
                raise
            threads.pop(tid, None)
            threads[tid] = seen  # behind those that were read longer ago
        return _Reading(threads, tids, stat.ppid, partial, refusal, idle)

    def _wanted_in(self, cgroup: str, process: ProcessId) -> Wanted:
        return UNDO if self._brakes.undone(process, cgroup) else self._wanted(cgroup)

    def _allowed(self, pid: int, tid: int) -> frozenset[int]:
        return procfs.mems_allowed(procfs.status(self._root, pid, tid)) & self._memory_nodes()

    def _seen(
        self,
        record: Record,
        tid: int,
        now: Mempolicy,
        allowed: frozenset[int],
        own: Mark | None,
        maker: Mark | None,
        wanted: Wanted,
    ) -> Seen:
        shown, mark = now, own or inherited(now, allowed, maker)
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        decision = decide(now, wanted.policy, allowed, mark, self._ledger.issued, wanted.overrides, at)
        ours = carries(now, allowed, mark, self._ledger.issued)
        hidden = not ours or bool(self._ledger.regions(record.process))
        if now != DEFAULT and hidden and decision.outcome is not Outcome.APPLIED:
            # Foreign, or nobody's business: but the first region may be bound, and hide the thread's own policy.
            exact = regions.task_policy(self._root, record.process.pid, tid)
            if exact is not None and exact != now:
                now, mark = exact, own or inherited(exact, allowed, maker)
                decision = decide(now, wanted.policy, allowed, mark, self._ledger.issued, wanted.overrides, at)
        if wanted.holds and decision.verb is Verb.RESTORE:
            decision = Decision(Verb.NOTHING, now, Outcome.DEFERRED, "broken-file")
        return Seen(shown, now, allowed, decision, wanted)

    def _keep_marks(self, record: Record, reading: _Reading) -> None:
        """Marks follow what the kernel shows: of threads that are gone or carry nothing of ours they go, and what was
        inherited is marked."""
        marks = self._ledger.marks(record.process)
        changes: dict[int, Mark | None] = {tid: None for tid in marks if tid not in reading.tids}
        maker = self._maker(marks, record.process.pid, reading.ppid)
        replaced = maker.replaced if maker else None
        for tid, seen in reading.threads.items():
            mark = marks.get(tid)
            if seen.decision.outcome is Outcome.APPLIED and seen.wanted is not None:
                heritage = replaced if seen.wanted == DEFAULT or seen.wanted in self._ledger.issued else None
                changes[tid] = seen_applied(seen.wanted, mark, heritage)
            elif (
                mark
                and mark.arrived
                and seen.wanted is None
                and not carries(seen.now, seen.allowed, mark, self._ledger.issued)
            ):
                changes[tid] = None
            elif mark is None and seen.decision.verb is Verb.RESTORE:
                # Known before the act: what it has made itself has to get back the same.
                changes[tid] = inherited(seen.now, seen.allowed, maker)
        changes = {tid: mark for tid, mark in changes.items() if mark != marks.get(tid)}
        if changes:
            self._ledger.set_marks(record.process, changes)

    def _maker(self, marks: Mapping[int, Mark], pid: int, ppid: int) -> Mark | None:
        """The mark of the thread that made a new one, as far as can be told: of its process's first."""
        if not marks:
            try:
                pid, marks = ppid, self._ledger.marks(procfs.identify(self._root, ppid))
            except OSError:
                return None
        return marks.get(pid) or next(iter(marks.values()), None)

    # -- acting

    async def _act(
        self, record: Record, policy: Mempolicy, asked: Wanted, verb: Verb, threads: Mapping[int, Seen]
    ) -> list[ThreadResult]:
        """`threads` are as the decision about them was taken: the record may come to know nothing of them meanwhile, by
        an exec that is heard of late or a cpuset that was written."""
        results: list[ThreadResult] = []
        if verb is Verb.APPLY and not await self._bears_huge_pages(record, policy, threads):
            results, threads = [ThreadResult(tid, Outcome.REFUSED, "no-huge-pages") for tid in threads], {}
        pairs = list(threads.items())
        for begin in range(0, len(pairs), SLICE):
            results += await self._permitted(record, policy, asked, verb, dict(pairs[begin : begin + SLICE]))
        record.acted = _sentence(policy, results)
        record.acted_at = time.time()
        self._witness.application(record.cgroup, record.comm, record.process, policy, asked.why, results)
        return results

    async def _permitted(
        self, record: Record, policy: Mempolicy, asked: Wanted, verb: Verb, threads: Mapping[int, Seen]
    ) -> list[ThreadResult]:
        """The act on as many of the threads as the brakes allow."""
        results: list[ThreadResult] = []
        tids = list(threads)
        key = asked.key if verb is Verb.APPLY else ""
        async with self._brakes.turn(record.process):
            # Not before: thousands may have had their turn since the threads were read.
            if hindrance := self._hindrance(record, policy, asked, verb, threads):
                return [ThreadResult(tid, *hindrance) for tid in tids]
            permit = self._brakes.permit(record.process, record.cgroup, key, len(tids))
            if permit.granted:
                stops, ended = permit.granted, False  # whoever is cancelled in between may have stopped them
                try:
                    granted = {tid: threads[tid] for tid in tids[: permit.granted]}
                    results = await self._write(record, policy, verb, granted)
                    stops = sum(result.stops for result in results)
                    ended = any(result.stops and result.outcome is Outcome.GONE for result in results)
                finally:
                    self._brakes.done(record.process, key, permit.granted, stops, ended)
        return results + [ThreadResult(tid, permit.outcome, permit.reason) for tid in tids[permit.granted :]]

    def _hindrance(
        self, record: Record, policy: Mempolicy, asked: Wanted, verb: Verb, threads: Mapping[int, Seen]
    ) -> tuple[Outcome, str] | None:
        """What has come up against it by now."""
        if self._observing() and asked is not UNDO:
            return Outcome.DEFERRED, "observe"
        if not self._is_still(asked, record, list(threads)):
            return Outcome.DEFERRED, "changed"
        if verb is Verb.APPLY and not self._has_room(policy, _allowed(threads)):
            return Outcome.REFUSED, "headroom"
        return None

    def _is_still(self, asked: Wanted, record: Record, tids: Sequence[int]) -> bool:
        """Whether the same is wanted of these threads now, in the cgroups that they are in now."""
        threaded = self._is_threaded(record.cgroup)
        for tid in tids if threaded else tids[:1]:
            try:
                path = procfs.cgroup_path(self._root, record.process.pid, tid)
            except OSError:
                path = None  # it ended, which the act finds as well
            if path is None and threaded:
                continue
            now = self._wanted_in(path or record.cgroup, record.process)
            if (now.policy, now.key, now.overrides, now.holds) != (
                asked.policy,
                asked.key,
                asked.overrides,
                asked.holds,
            ):
                return False
        return True

    async def _write(
        self, record: Record, policy: Mempolicy, verb: Verb, threads: Mapping[int, Seen]
    ) -> list[ThreadResult]:
        """The act itself, with the ledger before and after: a daemon that dies in between still knows its own."""
        before = {tid: self._ledger.marks(record.process).get(tid) for tid in threads}
        intents: dict[int, Mark | None] = {}
        if verb is Verb.APPLY:
            self._ledger.will_issue(policy)
            intents = {tid: seen.decision.mark for tid, seen in threads.items()}
            self._ledger.set_marks(record.process, intents)
        elif any(mark and mark.replaced != DEFAULT for mark in before.values()):
            self._bequeath(record.process.pid, before)
        # What was looked at may be some time ago by then: an application's own policy, set since, is not overwritten.
        shown = {seen.shown for seen in threads.values()}
        results = await self._acts.apply(record.process, policy, list(threads), shown)
        marks: dict[int, Mark | None] = {}
        for result in results:
            record.forget_threads({result.tid})
            # What reads back as another was there and was replaced at once: that counts as set again (T4).
            if result.outcome is Outcome.APPLIED or (verb is Verb.APPLY and result.reason == "readback"):
                intent = intents.get(result.tid)
                marks[result.tid] = seen_applied(policy, intent, None) if intent else None
            elif result.outcome is not Outcome.DEFERRED:
                marks[result.tid] = before.get(result.tid)
            # Deferred may mean that the tracer was killed over it: the intent stays until the kernel is read again.
        self._ledger.set_marks(record.process, marks)
        if verb is Verb.RESTORE:
            self.given_back += sum(result.outcome is Outcome.APPLIED for result in results)
        return results

    def _bequeath(self, pid: int, marks: Mapping[int, Mark | None]) -> None:
        """Children that nobody has looked at yet have to get back the same (T3): after this it would not be known.

        It had arrived, for it is given back: of a child that carries something else the mark goes when that is seen.
        """
        heritage = replace(marks.get(pid) or next(mark for mark in marks.values() if mark), arrived=True)
        for child in self._children(pid):
            try:
                process = procfs.identify(self._root, child)
                tids = procfs.tids(self._root, child)
            except OSError:
                continue
            if not self._ledger.marks(process):
                self._ledger.set_marks(process, dict.fromkeys(tids, heritage))
                self._bequeath(child, {child: heritage})

    def _children(self, pid: int) -> set[int]:
        try:
            return procfs.children(self._root, pid)
        except OSError:
            return set()  # it ended, or this kernel does not say

    def _has_room(self, policy: Mempolicy, allowed: Iterable[frozenset[int]]) -> bool:
        """L7, of the nodes that the cpuset of each thread leaves of the policy's: what is not allowed takes nothing."""
        if policy.mode is not Mode.BIND:
            return True
        return all(self._headroom.bears(nodes_within(policy, nodes)) for nodes in allowed)

    async def _bears_huge_pages(self, record: Record, policy: Mempolicy, threads: Mapping[int, Seen]) -> bool:
        if policy.mode is not Mode.BIND:
            return True  # and nothing is read for it
        pid, allowed = record.process.pid, _allowed(threads)
        return await self._readers.call(
            record.process, lambda: clearance.bears(self._root, pid, policy, allowed), patience(self._root, pid)
        )

    # -- what came of it

    def _conclude(self, record: Record, reading: _Reading, tried: Mapping[int, ThreadResult]) -> None:
        """What `status` shows: the kernel's word, and where it is not what was wanted, what became of the try."""
        outcomes: list[tuple[Outcome, str]] = []
        for tid, seen in reading.threads.items():
            if seen.decision.outcome is not None:
                outcomes.append((seen.decision.outcome, seen.decision.reason))
            elif seen.decision.verb in (Verb.APPLY, Verb.RESTORE):
                result = tried.get(tid)
                if result is None or result.outcome is Outcome.APPLIED:
                    # Not tried yet (threads come faster than rounds), or the application undid it at once.
                    outcomes.append((Outcome.DEFERRED, "new-threads" if result is None else "changed-again"))
                else:
                    outcomes.append((result.outcome, result.reason))
        self._tell_contested(record, reading)
        record.refusal = reading.refusal
        if reading.refusal:
            outcomes.append((Outcome.REFUSED, reading.refusal))
        if reading.partial:
            outcomes.append((Outcome.DEFERRED, "slow-to-read"))
        record.outcome, record.reason = worst(outcomes)
        record.outcomes = frozenset(outcome for outcome, _ in outcomes)
        record.reasons = frozenset(reason for _, reason in outcomes if reason)
        record.threads = len(reading.tids)
        record.carrying = sum(seen.decision.verb is Verb.RESTORE for seen in reading.threads.values())
        if reading.threads and not outcomes and reading.idle:
            # Shown only where a policy reaches the cgroup, and is blocked there or undone.
            record.outcome, record.reason = Outcome.DEFERRED, reading.idle
        record.note = self._brakes.about(record.process, record.cgroup, record.reason)
        if reading.threads:
            leader = reading.threads.get(record.process.pid) or next(iter(reading.threads.values()))
            record.now = leader.now
        settled = {tid: seen for tid, seen in reading.threads.items() if _is_settled(seen.decision)}
        record.own = next((seen.now for seen in settled.values() if _is_own(seen)), None)
        # Only what is settled need not be read again.
        record.forget_threads(reading.threads.keys() - settled.keys())

    def _tell_contested(self, record: Record, reading: _Reading) -> None:
        """Said once, when it has come to that."""
        contested = {tid: seen for tid, seen in reading.threads.items() if seen.decision.outcome is Outcome.CONTESTED}
        fresh = contested.keys() - record.contested
        record.contested = frozenset(contested)
        for policy, why in {(contested[tid].wanted, contested[tid].asked.why) for tid in fresh}:
            results = [
                ThreadResult(tid, Outcome.CONTESTED, contested[tid].decision.reason, before=contested[tid].now)
                for tid in sorted(fresh)
                if contested[tid].wanted == policy
            ]
            if policy is not None:
                self._witness.application(record.cgroup, record.comm, record.process, policy, why, results)


def _allowed(threads: Mapping[int, Seen]) -> set[frozenset[int]]:
    """What the cpusets of these threads leave."""
    return {seen.allowed for seen in threads.values()}


def _is_own(seen: Seen) -> bool:
    """Whether it carries a policy of the application's own (T4)."""
    outcome = seen.decision.outcome
    return outcome in (Outcome.FOREIGN, Outcome.CONTESTED) or (outcome is None and seen.now != DEFAULT)


def _is_settled(decision: Decision) -> bool:
    return decision.verb in (Verb.NOTHING, Verb.LEAVE) and decision.outcome is not Outcome.DEFERRED


def _sentence(policy: Mempolicy, results: Sequence[ThreadResult]) -> str:
    """`weighted interleave=static:0-1: 3 applied; 1 deferred (frozen)`."""
    counts = Counter((result.outcome, result.reason, result.errno) for result in results)
    parts = []
    for (outcome, reason, errno), number in sorted(counts.items()):
        detail = ", ".join(filter(None, [reason, f"errno {errno}" if errno else ""]))
        parts.append(f"{number} {outcome.value}" + (f" ({detail})" if detail else ""))
    return f"{policy}: " + "; ".join(parts)

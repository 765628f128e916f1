"""From a decision to the deed: reads a process's threads, decides, has the act done, writes down what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetmemd.engine.decide import Decision, Mark, Verb, decide
from hetmemd.engine.ledger import Ledger
from hetmemd.engine.offloop import OffLoop
from hetmemd.engine.record import Record, worst
from hetmemd.kernel import libc, mempolicy, procfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote.result import Outcome, ThreadResult

READERS = 16
READ_SECONDS = 2.0
ROUNDS = 8
"""How often the threads of one process are read again while new ones keep coming; the next hint or scan goes on."""


class Acts(Protocol):
    """The effect: `remote.client.Tracer`, or `Observing`."""

    async def apply(
        self, process: ProcessId, policy: Mempolicy, tids: Sequence[int] | None = None
    ) -> list[ThreadResult]: ...


class Observing:
    """The kill switch: says what would be done, and does nothing."""

    async def apply(
        self, process: ProcessId, policy: Mempolicy, tids: Sequence[int] | None = None
    ) -> list[ThreadResult]:
        return [ThreadResult(tid, Outcome.DEFERRED, "observe") for tid in tids or [process.pid]]


class Witness(Protocol):
    """Who is told of every application: counters and the journal."""

    def application(
        self, cgroup: str, comm: str, process: ProcessId, policy: Mempolicy, why: str, results: Sequence[ThreadResult]
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should hold for a thread, by its cgroup: the value to issue (None: nothing) and why."""

    policy: Mempolicy | None
    why: str
    """`file:line` of the table, or the rule that takes it away."""
    holds: bool = False
    """Where nothing is wanted: what is there stays all the same (F2)."""


@dataclass(frozen=True, slots=True)
class ThreadView:
    tid: int
    now: Mempolicy
    allowed: frozenset[int]
    decision: Decision
    why: str


class Steering:
    def __init__(
        self,
        root: Root,
        ledger: Ledger,
        acts: Acts,
        wanted: Callable[[str], Wanted],
        memory_nodes: Callable[[], frozenset[int]],
        is_threaded: Callable[[str], bool],
        witness: Witness,
    ) -> None:
        """`wanted` and `is_threaded` take a cgroup's path. `memory_nodes` are the nodes online with memory.

        Both are called in a reader's thread, and so only read.
        """
        self._root = root
        self._ledger = ledger
        self.acts = acts
        self._wanted = wanted
        self._memory_nodes = memory_nodes
        self._is_threaded = is_threaded
        self._witness = witness
        self._readers = OffLoop("reader", READERS, READ_SECONDS)

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
        threads: list[ThreadView] = []
        for _ in range(ROUNDS):
            threads = await self._readers.call(record.process, lambda: self._read(record))
            todo: dict[tuple[Mempolicy, str, Verb], list[ThreadView]] = {}
            for thread in threads:
                if thread.decision.verb in (Verb.APPLY, Verb.RESTORE) and thread.tid not in tried:
                    key = (thread.decision.policy, thread.why, thread.decision.verb)
                    todo.setdefault(key, []).append(thread)
            if not todo:
                break
            for (policy, why, verb), views in todo.items():
                results = await self._act(record, policy, why, verb, views)
                tried.update((result.tid, result) for result in results)
                changed = changed or any(result.outcome is Outcome.APPLIED for result in results)
        if tried:
            threads = await self._readers.call(record.process, lambda: self._read(record))
        self._conclude(record, threads, tried)
        return changed

    def _read(self, record: Record) -> list[ThreadView]:
        process = record.process
        if procfs.stat(self._root, process.pid).start != process.start:
            raise ProcessLookupError(0, "another process has this pid now", f"/proc/{process.pid}")
        marks = self._ledger.marks(process)
        threaded = self._is_threaded(record.cgroup)
        wanted = self._wanted(record.cgroup)
        allowed: frozenset[int] | None = None
        views: list[ThreadView] = []
        for tid in procfs.tids(self._root, process.pid):
            try:
                now = procfs.thread_policy(self._root, process.pid, tid)
                if now is None:
                    continue  # a zombie, a dead leader or a kernel thread: it has no memory
                if threaded:
                    path = procfs.cgroup_path(self._root, process.pid, tid)
                    wanted = self._wanted(path) if path else Wanted(None, "")
                if threaded or allowed is None:
                    fields = procfs.status(self._root, process.pid, tid)
                    allowed = procfs.mems_allowed(fields) & self._memory_nodes()
            except OSError as error:
                if libc.is_gone(error):
                    continue
                raise
            decision = decide(now, wanted.policy, allowed, marks.get(tid), self._ledger.issued)
            if wanted.holds and decision.verb is Verb.RESTORE:
                decision = Decision(Verb.NOTHING, now, Outcome.DEFERRED, "broken-file")
            views.append(ThreadView(tid, now, allowed, decision, wanted.why))
        return views

    async def _act(
        self, record: Record, policy: Mempolicy, why: str, verb: Verb, views: Sequence[ThreadView]
    ) -> list[ThreadResult]:
        self._ledger.will_issue(policy)
        results = await self.acts.apply(record.process, policy, [view.tid for view in views])
        marks: dict[int, Mark | None] = {}
        held = self._ledger.marks(record.process)
        for result in results:
            if result.outcome is Outcome.APPLIED:
                before = held.get(result.tid)
                replaced = before.replaced if before else mempolicy.DEFAULT
                marks[result.tid] = Mark(policy, replaced) if verb is Verb.APPLY else None
        self._ledger.set_marks(record.process, marks)
        record.acted = _sentence(policy, results)
        record.acted_at = time.time()
        self._witness.application(record.cgroup, record.comm, record.process, policy, why, results)
        return results

    def _conclude(self, record: Record, threads: Sequence[ThreadView], tried: Mapping[int, ThreadResult]) -> None:
        """What `status` shows: the kernel's word, and where it is not what was wanted, what became of the try."""
        outcomes: list[tuple[Outcome, str]] = []
        for thread in threads:
            if thread.decision.outcome is not None:
                outcomes.append((thread.decision.outcome, thread.decision.reason))
            elif thread.decision.verb in (Verb.APPLY, Verb.RESTORE):
                result = tried.get(thread.tid)
                if result is None or result.outcome is Outcome.APPLIED:
                    # Not tried yet (threads come faster than rounds), or the application undid it at once.
                    outcomes.append((Outcome.DEFERRED, "new-threads" if result is None else "changed-again"))
                else:
                    outcomes.append((result.outcome, result.reason))
        record.outcome, record.reason = worst(outcomes)
        record.threads = len(threads)
        if threads:
            leader = threads[0]
            record.now, record.allowed = leader.now, leader.allowed


def _sentence(policy: Mempolicy, results: Sequence[ThreadResult]) -> str:
    """`weighted interleave=static:0-1 in 3 threads; 1 deferred (frozen)`."""
    counts = Counter((result.outcome, result.reason, result.errno) for result in results)
    parts = []
    for (outcome, reason, errno), number in sorted(counts.items()):
        detail = ", ".join(filter(None, [reason, f"errno {errno}" if errno else ""]))
        parts.append(f"{number} {outcome.value}" + (f" ({detail})" if detail else ""))
    return f"{policy}: " + "; ".join(parts)

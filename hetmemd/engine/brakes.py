"""What keeps an act from being done, or from being done now: pure bookkeeping. Times are seconds of one steady clock.

`braking.Brakes` asks these before each act, and tells them what came of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.policy.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Act:
    """The last act on a process."""

    executable: Executable
    policy: str
    """Key of the policy that was given, empty where something was given back."""
    at: float


class Watch:
    """Acts of the last seconds: whoever dies of a fatal signal among their targets may have died of the act."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._acts: OrderedDict[ProcessId, Act] = OrderedDict()
        """Oldest first."""
        self._by_pid: dict[int, ProcessId] = {}
        """The latest process that had each pid."""
        self._dying: dict[ProcessId, Act] = {}
        """What dumps its core: few at a time."""
        self._until: dict[ProcessId, float] = {}
        """When a word of their end comes too late to be about them, of those whose word may be lost."""

    def acted(self, process: ProcessId, act: Act) -> Act | None:
        """Gives the one before."""
        before = self._acts.pop(process, None)
        self._acts[process] = act
        self._by_pid[process.pid] = process
        while self._acts and next(iter(self._acts.values())).at < act.at - self.seconds:
            self._drop(next(iter(self._acts)))
        return before

    def forget(self, process: ProcessId, before: Act | None = None) -> None:
        """The last act did not touch it: the one before holds. It goes on in its place, which is late enough."""
        if before is None:
            self._drop(process)
            self._die(process)
        elif process in self._acts:
            self._acts[process] = before

    def died(self, pid: int, at: float) -> tuple[ProcessId, Act] | None:
        """The act that this death follows too closely, once. A pid is taken again only after its end was told."""
        for late in [process for process, until in self._until.items() if until < at]:
            self._die(late)
        process = self.find(pid)
        if process is None:
            return None
        act = self._drop(process)
        if dying := self._die(process):
            return process, dying
        return (process, act) if act and at - act.at <= self.seconds else None

    def dumps(self, pid: int, at: float) -> tuple[ProcessId, Act] | None:
        """Its core is being dumped: it dies of what happened by now, whenever that is told. Gives the act."""
        process = self._by_pid.get(pid)
        if process is None or at - self._acts[process].at > self.seconds:
            return None
        self._dying[process] = self._acts[process]
        return process, self._dying[process]

    def dying(self) -> list[ProcessId]:
        """Whose core was being dumped, and of whose end nothing was told."""
        return list(self._dying)

    def expect(self, process: ProcessId, until: float) -> None:
        """It is dead, and the word of that may be lost: what comes later than this is about another with its pid."""
        self._until.setdefault(process, until)

    def within(self, at: float) -> dict[ProcessId, Act]:
        """What was acted on in the last seconds, as far as nothing was told of its end."""
        return {process: act for process, act in self._acts.items() if at - act.at <= self.seconds}

    def of(self, process: ProcessId) -> Act | None:
        return self._acts.get(process)

    def find(self, pid: int) -> ProcessId | None:
        """The latest of those that are watched with this pid."""
        found = [process for process in self._dying if process.pid == pid]
        if pid in self._by_pid:
            found.append(self._by_pid[pid])
        return max(found, key=lambda process: process.start, default=None)

    def _die(self, process: ProcessId) -> Act | None:
        self._until.pop(process, None)
        return self._dying.pop(process, None)

    def _drop(self, process: ProcessId) -> Act | None:
        if self._by_pid.get(process.pid) == process:
            del self._by_pid[process.pid]
        return self._acts.pop(process, None)


@dataclass(slots=True)
class _Trial:
    processes: dict[ProcessId, float | None] = field(default_factory=dict)
    """The first ones, with the time when each was given the policy; None while that is going on."""
    ended: set[ProcessId] = field(default_factory=set)
    """Those of which it was told that they ended, and of nothing bad."""
    waiting: dict[ProcessId, None] = field(default_factory=dict)
    """Who asked when there was no place, in this order."""
    crashed: set[ProcessId] = field(default_factory=set)
    """Those that died of a fatal signal, after an act of another policy's."""
    doubts: int = 0
    """How often its time was over, and nobody knew how one of them had ended."""

    def since(self) -> float | None:
        return min((at for at in self.processes.values() if at is not None), default=None)

    def renew(self, at: float) -> None:
        self.processes = {process: at if given is not None else None for process, given in self.processes.items()}


class Finished(NamedTuple):
    """Of trials, when their time is over."""

    over: list[str]
    """Policies that did no harm, once each."""
    unknown: list[tuple[str, ProcessId]]
    """Policies with a process of which nobody knows how it ended: it may have died of the policy. The trial goes on,
    and others may take its place, unless that was so too often: then it is over nevertheless."""
    waiting: list[ProcessId]
    """Who may ask again."""


DOUBTS = 3
"""How often a trial goes on because nobody knows how one of its processes ended: it must come to an end even where
words are lost again and again."""


class Trials:
    """A new policy goes to a few processes first; after some seconds without harm, to all.

    The seconds are those of the process that has had it longest. What nobody was given was not tried.
    """

    def __init__(self, tried: Sequence[str] | set[str] = (), most: int = 4, seconds: float = 2.0) -> None:
        """`tried` are keys of policies that went to their first processes without harm already."""
        self.most, self.seconds = most, seconds
        self._tried = set(tried)
        self._running: dict[str, _Trial] = {}

    def admits(self, policy: str, process: ProcessId) -> bool:
        """Whether this process may be given the policy now. One that may not waits for a place from then on."""
        if self._is_over(policy) or (trial := self._running.get(policy)) is None:
            return True
        if process in trial.processes or len(trial.processes) < self.most:
            return True
        trial.waiting[process] = None
        return False

    def begins(self, policy: str, process: ProcessId) -> None:
        """It is being given the policy: it is one of the first, if there are still such."""
        if not self._is_over(policy):
            trial = self._running.setdefault(policy, _Trial())
            trial.waiting.pop(process, None)
            trial.processes.setdefault(process, None)

    def given(self, policy: str, process: ProcessId, at: float) -> None:
        """It was: its time runs from now on, or from the first time."""
        trial = self._running.get(policy)
        if trial and process in trial.processes and trial.processes[process] is None:
            trial.processes[process] = at

    def withdraw(self, policy: str, process: ProcessId) -> list[ProcessId]:
        """Nothing was done to this process after all: who may ask again for its place. More than one, as they may have
        changed their mind since; whoever comes too late waits again."""
        trial = self._running.get(policy)
        if trial is None or trial.processes.get(process, 0.0) is not None:
            return []
        del trial.processes[process]
        asked = list(trial.waiting)[: self.most]
        for each in asked:
            del trial.waiting[each]
        if not (trial.processes or trial.waiting or trial.doubts):
            del self._running[policy]
        return asked

    def find(self, pid: int) -> ProcessId | None:
        """The latest of the first ones, of any policy, with this pid."""
        found = [process for trial in self._running.values() for process in trial.processes if process.pid == pid]
        return max(found, key=lambda process: process.start, default=None)

    def ended(self, process: ProcessId) -> None:
        """It is told that it ended, and of nothing bad."""
        for trial in self._running.values():
            if process in trial.processes and process not in trial.crashed:
                trial.ended.add(process)

    def finished(
        self, at: float, is_gone: Callable[[ProcessId], bool], is_dying: Callable[[ProcessId], bool]
    ) -> Finished:
        """What came of the trials whose time is over. They go on as they are while one of their processes is dying: of
        what is told later."""
        over: list[str] = []
        unknown: list[tuple[str, ProcessId]] = []
        waiting: list[ProcessId] = []
        for policy, trial in list(self._running.items()):
            since = trial.since()
            if since is None or at - since < self.seconds:
                continue
            if any(map(is_dying, trial.processes)):
                trial.renew(at)
                continue
            waiting += trial.waiting
            trial.waiting = {}
            lost = [process for process in trial.processes if process not in trial.ended and is_gone(process)]
            unknown += [(policy, process) for process in lost]
            if not lost or trial.doubts == DOUBTS:
                del self._running[policy]
                self._tried.add(policy)
                over.append(policy)
                continue
            trial.doubts += 1
            for process in lost:
                del trial.processes[process]
            trial.renew(at)
        return Finished(over, unknown, waiting)

    def next_end(self) -> float | None:
        """When the first of the trials may end."""
        ends = [since + self.seconds for trial in self._running.values() if (since := trial.since()) is not None]
        return min(ends, default=None)

    def failed(self, policy: str, process: ProcessId) -> bool:
        """One of the first processes died: True if the policy was on trial. It begins anew when it is asked for."""
        trial = self._running.get(policy)
        has_failed = trial is not None and process in trial.processes
        if has_failed:
            del self._running[policy]
        for other in self._running.values():
            other.crashed.add(process)
        return has_failed

    def _is_over(self, policy: str) -> bool:
        return self.most == 0 or policy in self._tried


class Stops:
    """How many threads may be stopped: a bucket for the machine and one for each process, of a second's worth.

    One act may take more stops than there are threads in it; what it took too much is a debt, paid by those after it.
    """

    def __init__(self, machine: float, each: float) -> None:
        """Stops per second."""
        self.machine, self.each = machine, each
        self._left = float(machine)
        self._at: float | None = None
        self._processes: dict[ProcessId, tuple[float, float]] = {}
        """What is left, and when that was so; a full bucket is not kept."""

    def take(self, process: ProcessId, count: int, at: float) -> int:
        """How many of `count` stops may be made now: they are taken."""
        self._fill(at)
        mine = self._mine(process, at)
        granted = max(0, min(count, int(self._left), int(mine)))
        self._left -= granted
        self._processes[process] = (mine - granted, at)
        return granted

    def settle(self, process: ProcessId, taken: int, made: int) -> None:
        """Of `taken` stops so many were made; they may be more."""
        self._left = min(self._left + taken - made, float(self.machine))
        if process in self._processes:
            left, at = self._processes[process]
            self._processes[process] = (min(left + taken - made, float(self.each)), at)

    def _fill(self, at: float) -> None:
        if self._at is not None:
            self._left += (at - self._at) * self.machine
            if at - self._at > 1.0:
                self._forget_full(at)
        self._left = min(self._left, float(self.machine))
        self._at = at

    def _mine(self, process: ProcessId, at: float) -> float:
        left, then = self._processes.get(process, (float(self.each), at))
        if len(self._processes) > 1024:
            self._forget_full(at)
        return min(left + (at - then) * self.each, float(self.each))

    def _forget_full(self, at: float) -> None:
        self._processes = {
            process: (left, then)
            for process, (left, then) in self._processes.items()
            if left + (at - then) * self.each < self.each
        }


def denied(
    executable: Executable | None, users: frozenset[int], patterns: Sequence[Pattern], uids: frozenset[int]
) -> str:
    """Why nothing is ever done to such a process by the deny-list; empty where it is not on it."""
    if users & uids:
        return "denied-user"
    if executable is not None and any(pattern.matches(executable.path) for pattern in patterns):
        return "denied-executable"
    return ""

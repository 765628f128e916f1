"""What keeps an act from being done, or from being done now: pure bookkeeping. Times are seconds of one steady clock.

`braking.Brakes` asks these before each act, and tells them what came of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

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

    def acted(self, process: ProcessId, act: Act) -> Act | None:
        """Gives the one before."""
        before = self._acts.pop(process, None)
        self._acts[process] = act
        while self._acts and next(iter(self._acts.values())).at < act.at - self.seconds:
            self._acts.popitem(last=False)
        return before

    def forget(self, process: ProcessId, before: Act | None) -> None:
        """The last act did not touch it: the one before holds. It goes on in its place, which is late enough."""
        if before is None:
            self._acts.pop(process, None)
        elif process in self._acts:
            self._acts[process] = before

    def died(self, pid: int, at: float) -> tuple[ProcessId, Act] | None:
        """The act that this death follows too closely, once. A pid is taken again only after its end was told."""
        for process, act in reversed(self._acts.items()):
            if process.pid == pid:
                del self._acts[process]
                return (process, act) if at - act.at <= self.seconds else None
        return None


@dataclass(slots=True)
class _Trial:
    processes: set[ProcessId] = field(default_factory=set)
    since: float = 0.0


class Trials:
    """A new policy goes to a few processes first; after some seconds without harm, to all."""

    def __init__(self, tried: Sequence[str] | set[str] = (), most: int = 4, seconds: float = 2.0) -> None:
        """`tried` are keys of policies that went to their first processes without harm already."""
        self.most, self.seconds = most, seconds
        self._tried = set(tried)
        self._running: dict[str, _Trial] = {}

    def admits(self, policy: str, process: ProcessId, at: float) -> bool:
        """Whether this process may be given the policy now. The first ones that ask are those that are watched."""
        if self.most == 0 or policy in self._tried:
            return True
        trial = self._running.get(policy)
        if trial is None:
            trial = self._running[policy] = _Trial(since=at)
        if len(trial.processes) < self.most:
            trial.processes.add(process)
        return process in trial.processes

    def withdraw(self, policy: str, process: ProcessId) -> None:
        """Nothing was done to this process after all: another may take its place."""
        trial = self._running.get(policy)
        if trial:
            trial.processes.discard(process)
            if not trial.processes:
                del self._running[policy]

    def finished(self, at: float) -> list[str]:
        """Policies whose trial is over without harm: once each."""
        over = [policy for policy, trial in self._running.items() if at - trial.since >= self.seconds]
        for policy in over:
            del self._running[policy]
            self._tried.add(policy)
        return over

    def next_end(self) -> float | None:
        """When the first of the trials ends."""
        return min((trial.since + self.seconds for trial in self._running.values()), default=None)

    def failed(self, policy: str, process: ProcessId) -> bool:
        """One of the first processes died: True if the policy was on trial. It begins anew when it is asked for."""
        trial = self._running.get(policy)
        if trial is None or process not in trial.processes:
            return False
        del self._running[policy]
        return True


class Stops:
    """How many threads may be stopped: a bucket for the machine and one for each process, of a second's worth."""

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

    def put_back(self, process: ProcessId, count: int) -> None:
        """Stops that were taken and not made."""
        self._left = min(self._left + count, float(self.machine))
        if process in self._processes:
            left, at = self._processes[process]
            self._processes[process] = (min(left + count, float(self.each)), at)

    def _fill(self, at: float) -> None:
        if self._at is not None:
            self._left = min(self._left + (at - self._at) * self.machine, float(self.machine))
            if at - self._at > 1.0:
                self._processes.clear()  # all of them are full again
        self._left = min(self._left, float(self.machine))
        self._at = at

    def _mine(self, process: ProcessId, at: float) -> float:
        left, then = self._processes.get(process, (float(self.each), at))
        if len(self._processes) > 1024:
            self._processes = {
                key: (rest, when)
                for key, (rest, when) in self._processes.items()
                if rest + (at - when) * self.each < self.each
            }
        return min(left + (at - then) * self.each, float(self.each))


def denied(
    executable: Executable | None, users: frozenset[int], patterns: Sequence[Pattern], uids: frozenset[int]
) -> str:
    """Why nothing is ever done to such a process by the deny-list; empty where it is not on it."""
    if users & uids:
        return "denied-user"
    if executable is not None and any(pattern.matches(executable.path) for pattern in patterns):
        return "denied-executable"
    return ""

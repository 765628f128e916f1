"""The brakes at work: asked before each act, told what came of it, and heard of whoever dies soon after one."""

from __future__ import annotations

import asyncio
import logging
import pwd
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from hetmemd.engine.brakes import Act, Stops, Trials, Watch, denied
from hetmemd.engine.holds import Hold, Holds
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.kernel import libc, procfs
from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.kernel.root import Root
from hetmemd.policy.pattern import Pattern
from hetmemd.remote.result import Outcome
from hetmemd.report import journal
from hetmemd.settings import BrakeSettings

log = logging.getLogger(__name__)

WORD = 0.1
"""Seconds in which the proc connector tells how a process ended that was held, and after which a thread alone has."""
PATIENCE = 1.0
"""Seconds after which nothing more is awaited of it."""
OF = " of "
"""Between what a policy does and its file, in the key of a policy."""
UNHEARD = "it ended soon after an act, and nobody told of what"


def policy_key(what: str, file: str) -> str:
    """`bind=static:1 for /a/* of /etc/hetmemd.d/50-a.toml`: what is tried, and held, as one policy."""
    return f"{what}{OF}{file}".encode(errors="backslashreplace").decode()


def _file(key: str) -> str:
    # A policy file's name has no slash, and the folders that it may lie in have no such word.
    return "/" + key.rpartition(f"{OF}/")[2]


@dataclass(frozen=True, slots=True)
class _Suspicion:
    """A process that ended while it was held: it is not known yet of what."""

    process: ProcessId
    at: float


@dataclass(frozen=True, slots=True)
class Permit:
    granted: int
    """Threads that may be stopped now."""
    outcome: Outcome = Outcome.DEFERRED
    """What becomes of the others, and why."""
    reason: str = ""


class Brakes:
    """One for the daemon, or for whoever acts in its place."""

    def __init__(
        self,
        root: Root,
        ledger: Ledger,
        found: BrakeSettings,
        rescan: Callable[[], None],
        look: Callable[[int], None],
        hears: Callable[[], bool] = lambda: True,
    ) -> None:
        """`rescan` has everything looked at again, `look` the process of a pid: something may be done now that could
        not be before, or no more. `hears` asks whether there is somebody who tells how processes end."""
        self._root = root
        self._ledger = ledger
        self._rescan = rescan
        self._look = look
        self._hears = hears
        self.holds = Holds(root, root.read_text(BOOT_ID).strip())
        self._watch = Watch(found.crash_window)
        self._trials = Trials(ledger.tried, found.first_tasks, found.first_seconds)
        self._stops = Stops(found.stops_per_second, found.stops_per_second_each)
        self._patterns: tuple[Pattern, ...] = ()
        self._uids: frozenset[int] = frozenset()
        self._before: dict[ProcessId, Act | None] = {}
        self._insistences: list[Callable[[ProcessId, str], bool]] = []
        self._suspicions: dict[Executable, _Suspicion] = {}
        self._turns: WeakValueDictionary[Executable, asyncio.Lock] = WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self.gives_all_back = False
        """The daemon stops, and gives back everything (L2)."""
        self.crashes = 0
        """Processes that died of a fatal signal soon after an act, since the start."""
        self.notes: tuple[str, ...] = ()
        """What of the settings means nothing on this machine."""
        self.configure(found)
        self._recall()

    def configure(self, found: BrakeSettings) -> None:
        """Put settings to use; what is counted goes on."""
        self._watch.seconds = found.crash_window
        self._trials.most, self._trials.seconds = found.first_tasks, found.first_seconds
        self._stops.machine, self._stops.each = found.stops_per_second, found.stops_per_second_each
        self._patterns = found.deny_executables
        uids, unknown = set(), []
        for user in found.deny_users:
            try:
                uids.add(user if isinstance(user, int) else pwd.getpwnam(user).pw_uid)
            except KeyError:
                unknown.append(user)
        self._uids = frozenset(uids)
        self.notes = tuple(f"deny_users: there is no user {user!r} on this machine" for user in unknown)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    # -- asked

    @contextmanager
    def insisting(self, includes: Callable[[ProcessId, str], bool]) -> Iterator[None]:
        """Meanwhile those of these processes, by their cgroup, that would be refused are given back what they had."""
        self._insistences = [*self._insistences, includes]
        try:
            yield
        finally:
            self._insistences = [other for other in self._insistences if other is not includes]

    def refusal(self, process: ProcessId, cgroup: str) -> str:
        """Why nothing may be done to a process whatever is wanted of it; empty where it may. Called in any thread.

        `OSError` where it is gone, or where that cannot be found out.
        """
        if not (self._patterns or self._uids or self.holds.has("executable")):
            return ""
        if any(includes(process, cgroup) for includes in self._insistences):
            return ""
        executable = self._executable(process)
        users = procfs.users(procfs.status(self._root, process.pid)) if self._uids else frozenset()
        reason = denied(executable, users, self._patterns, self._uids)
        if not reason and executable and self.holds.executable(executable):
            return "crashed"
        return reason

    def undone(self, process: ProcessId, cgroup: str) -> bool:
        """Whether what it was given is to be given back, and nothing is given again (hetmemctl undo)."""
        return self.gives_all_back or bool(self.holds.cgroup(cgroup) or self.holds.process(process))

    def about(self, process: ProcessId, cgroup: str, reason: str) -> str:
        """A sentence for a person on a reason that stands in `status`; empty where the word says it all."""
        hold: Hold | None = None
        if reason == "crashed":
            try:
                executable = self._executable(process)
            except OSError:
                return ""
            hold = self.holds.executable(executable) if executable else None
        elif reason == "undone":
            hold = self.holds.cgroup(cgroup) or self.holds.process(process)
        return hold.why if hold else ""

    def turn(self, process: ProcessId) -> asyncio.Lock:
        """For one act after the other on processes of one executable: what the one does to the first of them is known
        before it is done to the next. To be held around `permit`, the act and `done`."""
        try:
            executable = self._executable(process)
        except OSError:
            executable = None
        lock = self._turns.get(executable) if executable else None
        if lock is None:
            lock = asyncio.Lock()
            if executable:
                self._turns[executable] = lock
        return lock

    def permit(self, process: ProcessId, cgroup: str, policy: str, count: int) -> Permit:
        """Asked right before `count` threads are stopped; those that are granted are an act from then on, and `done`
        must be told. `policy` is a `policy_key`, empty where something is given back."""
        at = time.monotonic()
        try:
            if reason := self.refusal(process, cgroup):
                return Permit(0, Outcome.REFUSED, reason)
            executable = self._executable(process)
        except OSError as error:
            if libc.is_gone(error):
                return Permit(0, Outcome.GONE, "exited")
            return Permit(0, Outcome.REFUSED, "unreadable")
        if policy and self.holds.policy(policy):
            return Permit(0, Outcome.REFUSED, "policy-held")
        if executable and self._is_suspect(executable, at):
            return Permit(0, Outcome.DEFERRED, "suspect")
        if policy and not self._trials.admits(policy, process):
            self._await_trials()
            return Permit(0, Outcome.DEFERRED, "trial")
        granted = self._stops.take(process, count, at)
        if granted and policy:
            self._trials.begins(policy, process)
        if granted and executable:
            act = Act(executable, policy, at)
            self._before[process] = self._watch.acted(process, act)
            self._ledger.acted(process, act, at - self._watch.seconds)
        return Permit(granted, Outcome.DEFERRED, "stop-rate")

    def done(self, process: ProcessId, policy: str, granted: int, stops: int, ended: bool = False) -> None:
        """What came of an act: how often threads were stopped, and whether one came to its end while it was."""
        self._stops.settle(process, granted, stops)
        before = self._before.pop(process, None)
        if stops:
            at = time.monotonic()
            if policy:
                self._trials.given(policy, process, at)
                self._await_trials()
            act = self._watch.of(process)
            if act and (ended or self._is_ending(process)):
                self._suspicions[act.executable] = _Suspicion(process, at)
            return
        # Nothing was done to it: what becomes of it now is its own affair.
        self._watch.forget(process, before)
        if before:
            self._ledger.acted(process, before, 0.0)
        else:
            self._ledger.forget_act(process)
        for waiting in self._trials.withdraw(policy, process):
            self._look(waiting.pid)

    def _executable(self, process: ProcessId) -> Executable | None:
        return procfs.executable(self._root, process.pid)

    def _is_suspect(self, executable: Executable, at: float) -> bool:
        """Whether a process that ran it ended in an act, and nothing was told of that yet."""
        found = self._suspicions.get(executable)
        if found is None:
            return False
        since = at - found.at
        if since < WORD or (self._is_ending(found.process) and (since < PATIENCE or self._is_dumping(found.process))):
            return True
        del self._suspicions[executable]
        return False

    def _is_ending(self, process: ProcessId) -> bool:
        """Whether it is dead, or about to be."""
        try:
            if procfs.identify(self._root, process.pid) != process:
                return True
            return procfs.living_thread(self._root, process.pid) is None or self._is_dumping(process)
        except OSError as error:
            return libc.is_gone(error)

    def _is_dumping(self, process: ProcessId) -> bool:
        """Whether its core is being dumped, which is told of only when that is over. Minutes, of a large one."""
        try:
            return procfs.status(self._root, process.pid).get("CoreDumping") == "1"
        except OSError:
            return False

    def _recall(self) -> None:
        """Acts before a restart: who dies of them now is heard, who died meanwhile is not."""
        at = time.monotonic()
        for process, act in self._ledger.acts():
            dumps = self._is_dumping(process)
            if at - act.at > self._watch.seconds or (self._is_ending(process) and not dumps):
                self._ledger.forget_act(process)
                if at - act.at <= self._watch.seconds:
                    log.warning("process %d of %s: %s", process.pid, act.executable.path, UNHEARD)
                continue
            self._watch.acted(process, act)
            if dumps:
                self.dumps(process.pid)
            if act.policy:
                self._trials.begins(act.policy, process)
                self._trials.given(act.policy, process, act.at)

    # -- told

    def crashed(self, pid: int, number: int, dumped: bool) -> None:
        """A process died of a fatal signal: if it was acted on a moment ago, that is over for its executable."""
        at = time.monotonic()
        self._forget_former(pid)
        found = self._watch.died(pid, at)
        if found is None:
            # Too long after an act to be its fault: as good an end as any.
            self._ended_well(self._trials.find(pid))
            return
        process, act = found
        self._is_told(process)
        self.crashes += 1
        given = f"it was given {act.policy}" if act.policy else "it was given back what it had"
        dump = ", core dumped" if dumped else ""
        why = f"process {pid} died of {signal.Signals(number).name}{dump} {at - act.at:.1f} s after {given}"
        program = act.executable
        self._hold(Hold("executable", program.path, why, time.time(), program.device, program.inode))
        if self._trials.failed(act.policy, process):
            self._hold(Hold("policy", _file(act.policy), why, time.time(), detail=act.policy))
        self._rescan()

    def dumps(self, pid: int) -> None:
        """A process is dying of what asks for a core dump, and how it ended is told after that."""
        at = time.monotonic()
        self._forget_former(pid)
        if found := self._watch.dumps(pid, at):
            process, act = found
            self._suspicions[act.executable] = _Suspicion(process, at)

    def ended(self, pid: int) -> None:
        """The first thread of a process ended, and of nothing bad."""
        self._ended_well(self._watch.find(pid))
        # Trials may last longer than the watch over an act.
        self._ended_well(self._trials.find(pid))

    def _ended_well(self, process: ProcessId | None) -> None:
        if process is not None and self._is_ending(process) and not self._is_former(process):
            self._watch.forget(process)
            self._trials.ended(process)
            self._is_told(process)

    def _forget_former(self, pid: int) -> None:
        """What is told of a pid is not about the process that had it before, of whose end nobody told."""
        process = self._watch.find(pid)
        if process is not None and self._is_former(process):
            self._watch.forget(process)

    def _is_former(self, process: ProcessId) -> bool:
        """Whether another process has its pid by now, and has ended as well: words of an end are about that one. Words
        come late: of one that lives they are not."""
        try:
            now = procfs.identify(self._root, process.pid)
        except OSError:
            return False
        return now != process and self._is_ending(now)

    def _is_told(self, process: ProcessId) -> None:
        self._ledger.forget_act(process)
        self._suspicions = {
            executable: found for executable, found in self._suspicions.items() if found.process != process
        }

    def lost(self) -> None:
        """Words of the ends of processes were lost. Some that were not are still to come."""
        at = time.monotonic()
        for process, act in self._watch.within(at).items():
            if self._is_ending(process):
                log.warning("process %d of %s: %s", process.pid, act.executable.path, UNHEARD)
        for process in self._watch.dying():
            if self._is_ending(process) and not self._is_dumping(process):
                self._watch.expect(process, at + PATIENCE)

    def _hold(self, hold: Hold) -> None:
        try:
            if self.holds.add(hold):
                journal.held(hold.kind, hold.what, hold.why)
        except OSError as error:
            journal.held(hold.kind, hold.what, hold.why)
            log.error("this is not kept over a restart: %s", error)

    def _await_trials(self) -> None:
        if self._timer is None and (end := self._trials.next_end()) is not None:
            delay = max(end - time.monotonic(), 0.0) + 0.01
            self._timer = asyncio.get_running_loop().call_later(delay, self._end_trials)

    def _end_trials(self) -> None:
        self._timer = None
        # Where nobody tells, or nobody is to be told of, no word is awaited.
        awaited = self._watch.seconds > 0 and self._hears()
        is_gone = self._is_ending if awaited else lambda process: False
        finished = self._trials.finished(time.monotonic(), is_gone, self._is_dumping)
        for key in finished.over:
            self._ledger.was_tried(key)
        for key, process in finished.unknown:
            then = "that was so too often, and all are given" if key in finished.over else "others try"
            log.warning("process %d: %s; %s %s", process.pid, UNHEARD, then, key)
        self._await_trials()
        for waiting in finished.waiting:
            self._look(waiting.pid)

    # -- by hand

    def undo(self, cgroup: str | None, process: ProcessId | None) -> None:
        """From now on nothing is given to this cgroup and those below it, or to this process. `OSError`."""
        why = "hetmemctl undo"
        if process is not None:
            hold = Hold("process", str(process.pid), why, time.time(), detail=self._boot(), start=process.start)
        else:
            hold = Hold("cgroup", cgroup or "/", why, time.time())
        if self.holds.add(hold):
            journal.held(hold.kind, hold.what, why)

    def release(self, what: str | None) -> list[Hold]:
        """`OSError`: nothing was released."""
        released = self.holds.release(what)
        for hold in released:
            journal.released(hold.kind, hold.what)
        if released:
            self._rescan()
        return released

    def _boot(self) -> str:
        return self._root.read_text(BOOT_ID).strip()

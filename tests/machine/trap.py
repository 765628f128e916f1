"""A cgroup with a policy, served by a daemon: what it does to a task that is a trap, and what it says of it."""

from __future__ import annotations

import contextlib

from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.remote.result import Outcome
from tests.machine.daemon import Daemon, Group, eventually, policy
from tests.machine.remote_target import NODE0, Target

GIVEN = Mempolicy(Mode.INTERLEAVE, NODE0, Flag.STATIC_NODES)
"""What the daemon gives to what is in the cgroup."""


class Trap:
    def __init__(self, daemon: Daemon, group: Group) -> None:
        """A policy holds for every cgroup right below `group`; tasks are taken into one of them."""
        self.daemon = daemon
        # A daemon on another root moves no pages, and complains where a machine has several nodes to move them between.
        text = policy(f"{group.path}/*", nodes="0", more='existing = "leave"\n')
        self._file = daemon.drop("50-trap.toml", text)
        self.cgroup = Group(f"{group.path}/trap")

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.cgroup.folder / "cgroup.freeze").write_text("0")
        self.cgroup.remove()
        self._file.unlink()

    # -- what the daemon says

    def task(self, pid: int) -> tuple[str, str]:
        """Outcome and reason of a process by `hetmemctl explain`; empty where it is none of the daemon's."""
        task = self.daemon.explain(pid)["task"]
        return (task["outcome"], task["reason"]) if task else ("", "")

    def says(self, pid: int, outcome: Outcome, reason: str) -> None:
        """In the end."""
        wanted = (outcome.value, reason)
        eventually(lambda: f"{wanted}, not {self.daemon.explain(pid)['task']}", lambda: self.task(pid) == wanted)

    def forgets(self, pid: int) -> None:
        """Taken out of the cgroup, a process that was given nothing is none of the daemon's."""
        self.cgroup.leave(pid)
        eventually(lambda: f"forgotten, not {self.daemon.explain(pid)['task']}", lambda: not self.task(pid)[0])

    def policies(self, pid: int) -> set[str]:
        """Of all threads of a process, by the kernel's word in `hetmemctl explain`."""
        return set(self.daemon.explain(pid)["kernel"]["policies"]) - {"none (no memory)"}

    def failures(self, outcome: Outcome, reason: str) -> float:
        """How often an application ended so; `KeyError` where that is not counted from zero."""
        return self.daemon.metric("application_failures_total", outcome=outcome.value, reason=reason)

    def pauses(self) -> float:
        """How often a thread was stopped."""
        return self.daemon.metric("pause_seconds_count")

    # -- what it does

    def catches(self, pid: int, outcome: Outcome, reason: str) -> None:
        """Taken into the cgroup, the process stays as it is, and it is said and counted why."""
        before = self.failures(outcome, reason)
        self.cgroup.take(pid)
        self.says(pid, outcome, reason)
        eventually("the metrics count it", lambda: self.failures(outcome, reason) > before)

    def lets_go(self, pid: int) -> None:
        """What was caught, or never was, has its policy in all threads in the end, and nothing else is said of it."""
        self.says(pid, Outcome.APPLIED, "")
        # Empty where it took too long to find out.
        eventually("the kernel says so", lambda: self.policies(pid) == {str(GIVEN)})

    def serves(self, target: Target, pid: int | None = None) -> None:
        """Taken into the cgroup, all threads of a process get the policy; taken out, they give it back."""
        pid = pid or target.pid
        pauses = self.pauses()
        self.cgroup.take(pid)
        self.lets_go(pid)
        self.cgroup.leave(pid)
        eventually("it is given back", lambda: self.policies(pid) == {"default"})
        eventually("both stops are counted", lambda: self.pauses() >= pauses + 2)

"""Hints, put together until the engine gets to them: what is doubled is looked at once, what is urgent first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hetmemd.watch.hint import CgroupGone, CgroupHint, CpusetHint, FilesHint, Hint, LostHint, RegionsHint, TaskHint


@dataclass(slots=True)
class Pending:
    """Work to be done. Times are the loop's, of the first hint for that place: the delay is measured from it."""

    files: bool = False
    everything: bool = False
    cgroups: dict[str, float] = field(default_factory=dict)
    cpusets: dict[str, float] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    forked: dict[int, int] = field(default_factory=dict)
    """The child's pid to its parent's."""
    executed: dict[int, float] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    mapped: dict[int, float] = field(default_factory=dict)
    """When a process first mapped something."""

    @property
    def is_all_mapped(self) -> bool:
        """Whether nothing else happened than that memory was mapped."""
        return bool(self.mapped) and self == Pending(mapped=self.mapped)

    def add(self, hints: Sequence[Hint], at: float) -> None:
        for hint in hints:
            match hint:
                case TaskHint(pid=pid, why="fork", parent=parent):
                    self.forked[pid] = parent
                case TaskHint(pid=pid, why="exec"):
                    self.executed.setdefault(pid, at)
                case TaskHint(pid=pid):
                    # A pid that came and went within one round was never worth a look. One that a newer process has
                    # taken since is hinted at again by that process's own fork.
                    self.forked.pop(pid, None)
                    self.executed.pop(pid, None)
                    self.mapped.pop(pid, None)
                    self.ended.add(pid)
                case CgroupHint(path=path):
                    self.cgroups.setdefault(path, at)
                case CpusetHint(path=path):
                    self.cpusets.setdefault(path, at)
                case CgroupGone(path=path):
                    self.gone.add(path)
                case FilesHint():
                    self.files = True
                case RegionsHint(pid=pid, at=mapped):
                    self.mapped[pid] = min(mapped, self.mapped.get(pid, mapped))
                case LostHint():
                    self.everything = True

"""What is remembered of the regions of each process, and when they are to be read again.

The kernel may tell when a process maps something (`has_mapped`). It does not tell of all, and perhaps of nothing: so a
cheap sign is looked at several times a second (the sizes in /proc/PID/statm), the regions are read when it has changed,
and at an interval whatever it says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hetmemd.engine.regionwise import Regionwise
from hetmemd.kernel import libc
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory.classes import Span

POLL = 0.25
"""Seconds between two looks at the cheap sign, and between two readings of a process that maps ever more, at least."""
NET = 10.0
"""Seconds after which regions are read whatever the sign says."""
COST = 50
"""A reading is not repeated for that many times as long as it kept a processor busy: 2 % of one."""


@dataclass(slots=True)
class State:
    """What is remembered of one process."""

    process: ProcessId
    decision: Regionwise | None = None
    stacks: frozenset[Span] = frozenset()
    sign: bytes = b""
    read_at: float = 0.0
    """When the regions were read last, the loop's time,"""
    began: float = 0.0
    """when that reading began, and"""
    cost: float = 0.0
    """how many seconds of a processor it took."""
    mapped_at: float | None = None
    """When the process mapped something since, the first time that is known."""
    homes: dict[tuple[int, int], int] = field(default_factory=dict)
    failed: dict[tuple[int, int, Mempolicy], float] = field(default_factory=dict)
    """What the kernel refused, and when it may be tried again."""
    fought: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Where a policy of the application's own was replaced (T4), by the region's start: how often, and when."""
    contested: bool = False
    """Some region is left to the application, which sets its own policy again and again."""


class Following:
    def __init__(self, root: Root) -> None:
        self._root = root
        self._states: dict[int, State] = {}

    def known(self, process: ProcessId) -> State | None:
        state = self._states.get(process.pid)
        return state if state and state.process == process else None

    def of(self, process: ProcessId) -> State:
        """Followed from now on."""
        state = self._states[process.pid] = self.known(process) or State(process)
        return state

    def forget(self, pid: int) -> None:
        self._states.pop(pid, None)

    def sign(self, pid: int) -> bytes:
        """Sizes of the address space, and of its data: proc_pid_statm(5). Touching memory does not change them."""
        fields = self._root.read_bytes(f"/proc/{pid}/statm").split()
        return b" ".join(fields[i] for i in (0, 5)) if len(fields) > 5 else b""

    def has_mapped(self, pid: int, at: float) -> bool:
        """A process has mapped something then: whether its regions are to be read now. If not, they are soon."""
        state = self._states.get(pid)
        if state is None or at < state.began:
            return False
        state.mapped_at = min(at, state.mapped_at or at)
        return self._may_be_read(state, asyncio.get_running_loop().time())

    def _may_be_read(self, state: State, now: float) -> bool:
        """Not where it is being read: what was mapped meanwhile is found a little later."""
        return now - max(state.began, state.read_at) >= max(POLL, COST * state.cost)

    async def run(self, look: Callable[[int], None], want: Callable[[Collection[int]], None]) -> None:
        """Until cancelled: calls `look` for each process whose regions may be others than they were, and `want` with
        those that are followed: of these `has_mapped` is to be told, if possible."""
        while True:
            began = time.monotonic()
            want(self._states.keys())
            for pid in self.due():
                look(pid)
            # A look at ten thousand processes must not become the work itself.
            await asyncio.sleep(max(POLL, 50 * (time.monotonic() - began)))

    def due(self) -> list[int]:
        """Those whose regions are to be read now."""
        now = asyncio.get_running_loop().time()
        due: list[int] = []
        for pid, state in list(self._states.items()):
            if not self._may_be_read(state, now):
                continue
            try:
                if now - state.read_at > NET or state.mapped_at is not None or self.sign(pid) != state.sign:
                    due.append(pid)
            except OSError as error:
                if not libc.is_gone(error):
                    raise
                self.forget(pid)
        return due

"""The daemon's balancer alone, over one real process, for tests that need what a service hides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hetmemd.engine.balancing import GLOBAL, Balancer
from hetmemd.engine.record import Record
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory.budget import Budgets
from hetmemd.policy.effective import Bucket, Effective, Handling, Placement
from hetmemd.remote.result import Outcome
from hetmemd.report.tally import Tally

ROOT = Root()


class Held:
    """The daemon's balancer over one process whose policy nobody can set: its pages are moved only (L5)."""

    def __init__(
        self,
        pid: int,
        policy: Mempolicy,
        weights: dict[int, int],
        buckets: tuple[Bucket, ...] = (Bucket("cgroup:/x", 1 << 30, 1 << 30),),
        existing: str = "rebalance",
    ) -> None:
        placement = Placement(policy, weights)
        handling = Handling(rate=1 << 30, existing=existing)
        effective = Effective("/x", "active", placement, handling, None, None, (), buckets)
        process = procfs.identify(ROOT, pid)
        self.record = Record(process, "busy", "/x", placement, Outcome.REFUSED, "yama", allowed=frozenset({0, 1}))
        self.record.outcomes, self.record.reasons = frozenset({Outcome.REFUSED}), frozenset({"yama"})
        self.tally = Tally()
        budgets = Budgets()
        budgets.configure(GLOBAL, 1 << 30, 1 << 30)
        machine = topology.read(ROOT)
        self.balancer = Balancer(
            ROOT,
            {pid: self.record},
            lambda path: effective,
            lambda: machine,
            budgets,
            self.tally,
            lambda: False,
            asyncio.Event(),
        )
        self.balancer.interval = 0.5
        self.balancer.moving_share, self.balancer.measuring_share = 0.5, 0.1
        # One loop for all runs: the balancer's events belong to the first that waits for them.
        self._runner = asyncio.Runner()

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Whether it came about in this time."""

        async def go() -> bool:
            task = asyncio.create_task(self.balancer.run())
            deadline = time.monotonic() + seconds
            while not until() and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            assert not task.done(), task
            # What is under way in a thread would go on there, beside the next run.
            while self.balancer._moving:
                await asyncio.sleep(0.01)
            task.cancel()
            return until()

        return self._runner.run(go())

    def close(self) -> None:
        self.balancer.close()
        self._runner.close()

    def __str__(self) -> str:
        record = self.record
        failed = {reason: count for reason, count in self.tally.totals().failed_pages_by_reason.items() if count}
        return (
            f"distance {record.distance}, {record.bytes_by_node}, moved {self.moved}, not moved {failed},"
            f" back {record.went_back}, idle {record.idle_passes}, last moved {record.last_moved}, {record.acted}"
        )

    @property
    def moved(self) -> int:
        """Bytes."""
        return sum(self.tally.totals().bytes_by_source_target.values())

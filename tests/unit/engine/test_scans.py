"""What a scan finds that no event tells of: nodes that come and go, and the cpusets that follow them (I6)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hetmemd.engine.engine import Engine
from hetmemd.engine.publishing import Progress, snapshot
from hetmemd.engine.record import Record
from hetmemd.engine.world import World
from hetmemd.kernel.root import Root
from hetmemd.policy.effective import Effective, Handling
from hetmemd.report.tally import Tally

PID = 4711


class Service:
    """A machine in a folder, and an engine whose looks end where acts would begin."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for path in ("sys/fs/cgroup/a/b", "proc/self", f"proc/{PID}", "etc/hetmemd.d"):
            (top / path).mkdir(parents=True)
        self.put("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
        self.put(f"proc/{PID}/stat", f"{PID} (x) S 1 " + " ".join("0" for _ in range(48)))
        self.put(f"proc/{PID}/cgroup", "0::/a/b")
        self.put("sys/fs/cgroup/a/b/cgroup.procs", str(PID))
        self.nodes(0, 1)
        self.looked: list[frozenset[int]] = []
        """The nodes that were wanted of the process, at each look."""

    def put(self, path: str, text: str) -> None:
        (self.top / path).write_text(text + "\n")

    def nodes(self, *numbers: int, cpus: str = "0-1") -> None:
        """Nodes that are online, all with memory, the first with CPUs; and what cpusets follow of it."""
        base = self.top / "sys/devices/system/node"
        for number in numbers:
            folder = base / f"node{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpulist").write_text(f"{cpus if number == numbers[0] else ''}\n")
            (folder / "meminfo").write_text(f"Node {number} MemTotal:       1048576 kB\n")
            (folder / "distance").write_text(" ".join("10" if each == number else "20" for each in numbers) + "\n")
        for name in ("online", "has_memory"):
            (base / name).write_text(",".join(map(str, numbers)) + "\n")
        self.cpusets(*numbers)

    def cpusets(self, *numbers: int) -> None:
        for path in ("sys/fs/cgroup", "sys/fs/cgroup/a", "sys/fs/cgroup/a/b"):
            self.put(f"{path}/cpuset.mems.effective", ",".join(map(str, numbers)))

    def policy(self, nodes: str, mode: str = "bind") -> None:
        self.put("etc/hetmemd.d/50-a.toml", f'[[policy]]\ncgroup = "/a"\nmode = "{mode}"\nnodes = "{nodes}"')

    async def _steer(self, record: Record) -> bool:
        self.looked.append(record.placement.mempolicy.nodes if record.placement else frozenset())
        return False

    async def _no(self, record: Record) -> bool:
        return False

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        root = Root(self.top)
        self.world = World(root, Handling())
        ledger = SimpleNamespace(
            processes=list, issued=set(), marks=lambda process: {}, regions=lambda process: {}, forget=lambda _: 0
        )
        self.engine = Engine(
            root,
            self.world,
            cast(Any, ledger),
            cast(Any, SimpleNamespace(look=self._steer, close=lambda: None)),
            cast(Any, SimpleNamespace(look=self._no, forget=lambda pid: None, close=lambda: None)),
            cast(Any, SimpleNamespace(undone=lambda process, path: False)),
            cast(Any, SimpleNamespace(notice=lambda record: None)),
            {},
            Tally(),
            lambda: (),
            asyncio.Event(),
        )
        running = asyncio.ensure_future(self.engine.run())
        try:
            await self.scan()
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await self.engine.close()

    async def scan(self) -> Effective:
        """The next one; what holds for the process's cgroup after it."""
        before = self.engine.scans
        self.engine.rescan()
        async with asyncio.timeout(20):
            while self.engine.scans == before:
                await self.engine.changed.wait()
                self.engine.changed.clear()
        await self.engine.look_at(PID)
        told = snapshot(self.world, self.engine.records.values(), (), Progress(0.0, False, 0, 0.0), ())
        return next(view.effective for view in told.cgroups if view.effective.cgroup == "/a/b")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    yield Service(tmp_path)


def test_I6_a_node_that_comes_is_resolved_at_the_next_scan(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        service.policy("all")
        async with service.running():
            assert service.looked[-1] == {0, 1}
            service.nodes(0, 1, 2)
            with caplog.at_level("INFO"):
                found = await service.scan()
                await service.scan()
            assert found.placement is not None
            assert found.placement.mempolicy.nodes == service.looked[-1] == {0, 1, 2}

    asyncio.run(work())
    assert ["memory nodes are 0-2 now, and were 0-1" in record.message for record in caplog.records] == [True]


def test_I6_a_node_that_was_asked_for_and_comes_later_is_given(service: Service) -> None:
    async def work() -> None:
        service.policy("0,2")
        async with service.running():
            assert service.looked[-1] == {0}
            service.nodes(0, 1, 2)
            found = await service.scan()
            assert (found.state, found.notes) == ("active", ())
            assert service.looked[-1] == {0, 2}

    asyncio.run(work())


def test_I6_a_node_that_goes_offline_is_cut_at_the_next_scan_and_reported(service: Service) -> None:
    async def work() -> None:
        service.policy("0-1")
        async with service.running():
            assert service.looked[-1] == {0, 1}
            service.nodes(0)
            found = await service.scan()
            assert found.state == "active"
            assert any("no memory node 1" in note for note in found.notes)
            assert "I6" in found.rules
            assert service.looked[-1] == {0}

    asyncio.run(work())


def test_I6_the_last_node_of_a_policy_goes_offline_and_comes_back(service: Service) -> None:
    async def work() -> None:
        service.policy("1")
        async with service.running():
            assert service.looked[-1] == {1}
            service.nodes(0)
            found = await service.scan()
            assert found.state == "blocked"
            assert any(note.startswith("blocked:") for note in found.notes)
            assert service.looked[-1] == frozenset(), "nothing is asked of the process, so that it is given back"
            service.nodes(0, 1)
            assert (await service.scan()).state == "active"
            assert service.looked[-1] == {1}

    asyncio.run(work())


def test_I6_a_cpuset_that_follows_a_node_is_read_again_with_it(service: Service) -> None:
    """The kernel tells nobody that it has changed cpuset.mems.effective on a hotplug."""

    async def work() -> None:
        service.policy("1")
        service.nodes(0)
        async with service.running():
            assert (await service.scan()).state == "blocked"
            service.nodes(0, 1)
            assert (await service.scan()).state == "active"

    asyncio.run(work())


def test_I6_a_cpuset_whose_event_was_lost_is_read_at_the_next_scan(service: Service) -> None:
    async def work() -> None:
        service.policy("1")
        async with service.running():
            service.cpusets(0)
            assert (await service.scan()).state == "blocked"
            service.cpusets(0, 1)
            assert (await service.scan()).state == "active"

    asyncio.run(work())

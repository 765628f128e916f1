"""The methods of `org.hetmemd`: answers come from the newest snapshot, and from /proc for one process; orders are
passed on, for root alone."""

# No postponed annotations here: asyncvarlink makes the types of parameters from them.

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Protocol

import psutil
from asyncvarlink import varlinkmethod
from asyncvarlink.serviceinterface import InvalidParameter, PermissionDenied

from hetmemd.kernel import libc, procfs
from hetmemd.kernel.root import Root
from hetmemd.policy.effective import Effective
from hetmemd.policy.explain import beyond
from hetmemd.report import answers
from hetmemd.report.interface import Failed, Interface, NoSuchCgroup, NoSuchProcess, NotReady
from hetmemd.report.publish import Publisher
from hetmemd.report.snapshot import Snapshot

Resolve = Callable[[str], Effective | None]
"""The effective policy of a cgroup that the snapshot does not hold; None where there is no such cgroup."""

Charge = Callable[[int, float], None]
"""Told of work in the loop: whose, and how many seconds."""

CALLER: ContextVar[int] = ContextVar("uid of the caller", default=-1)
"""Set by whoever passes a call on."""


class Orders(Protocol):
    """Who does what root asks for: `engine.orders.Orders`. `OSError`: nothing was done."""

    async def undo(self, cgroup: str | None, pid: int | None, dry_run: bool, force: bool) -> dict[str, Any]: ...

    def release(self, what: str | None) -> list[dict[str, Any]]: ...


KERNEL_SECONDS = 2.0
"""numa_maps takes the process's mmap lock, which can be held for long: then its answer is left out."""
_THREADS_SHOWN = 64


class Inquiry(Interface):
    """Memory policies of cgroups: what holds and why."""

    def __init__(
        self,
        publisher: Publisher,
        root: Root,
        resolve: Resolve | None = None,
        orders: Orders | None = None,
        charge: Charge = lambda uid, seconds: None,
    ) -> None:
        self._charge = charge
        self._publisher = publisher
        self._orders = orders
        self._root = root
        self._resolve = resolve
        # Threads of its own: a read that hangs on a lock must not take those that move pages.
        self._readers = ThreadPoolExecutor(2, "control-proc")
        self._reading = 0
        self._builder = ThreadPoolExecutor(1, "control-status")
        self._built: tuple[Snapshot, asyncio.Future[Any]] | None = None

    @varlinkmethod(return_parameter="status", allow_foreign=True)
    async def Status(self) -> Any:
        return await self._status()

    @varlinkmethod(return_parameter="answer", allow_foreign=True)
    async def Explain(self, *, cgroup: str | None = None, pid: int | None = None) -> Any:
        if (cgroup is None) == (pid is None):
            raise InvalidParameter(parameter="cgroup")
        snapshot = self._snapshot()
        kernel = None
        if pid is not None:
            kernel = await self._kernel(pid)
            cgroup = kernel.pop("cgroup")
        assert cgroup is not None
        begin = time.perf_counter()
        try:
            told = self._explain(snapshot, "/" + cgroup.strip("/"), pid)
        finally:
            self._charge(CALLER.get(), time.perf_counter() - begin)
        return told if kernel is None else {**told, "pid": pid, "kernel": kernel}

    def _explain(self, snapshot: Snapshot, cgroup: str, pid: int | None) -> dict[str, Any]:
        view = next((view for view in snapshot.cgroups if view.effective.cgroup == cgroup), None)
        effective = view.effective if view else None
        if effective is None and self._resolve is not None:
            if why := beyond(cgroup):
                raise Failed(why=why)
            effective = self._resolve(cgroup)
        if effective is None:
            raise NoSuchCgroup(cgroup=cgroup)
        return answers.explain(effective, view, pid)

    @varlinkmethod(return_parameter="files", allow_foreign=True)
    async def Check(self) -> Any:
        return (await self._status())["files"]

    @varlinkmethod(return_parameter="answer", allow_foreign=True)
    async def Undo(
        self, *, cgroup: str | None = None, pid: int | None = None, dry_run: bool = False, force: bool = False
    ) -> Any:
        orders = self._for_root()
        if cgroup is not None and pid is not None:
            raise InvalidParameter(parameter="cgroup")
        if cgroup is not None:
            cgroup = "/" + cgroup.strip("/")
        try:
            return await orders.undo(cgroup, pid, dry_run, force)
        except OSError as error:
            if pid is not None and libc.is_gone(error):
                raise NoSuchProcess(pid=pid) from None
            raise Failed(why=str(error)) from None

    @varlinkmethod(return_parameter="released", allow_foreign=True)
    async def Release(self, *, what: str | None = None) -> Any:
        try:
            return self._for_root().release(what)
        except OSError as error:
            raise Failed(why=str(error)) from None

    def _for_root(self) -> Orders:
        if CALLER.get() != 0 or self._orders is None:
            raise PermissionDenied()
        return self._orders

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._builder.shutdown(wait=False, cancel_futures=True)

    async def _status(self) -> Any:
        """Built once for a snapshot, and beside the loop: with thousands of cgroups it takes tens of milliseconds."""
        snapshot = self._snapshot()
        if self._built is None or self._built[0] is not snapshot or self._built[1].cancelled():
            building = asyncio.get_running_loop().run_in_executor(self._builder, answers.status, snapshot)
            self._built = (snapshot, building)
        return await asyncio.shield(self._built[1])

    def _snapshot(self) -> Snapshot:
        snapshot = self._publisher.latest
        if snapshot is None:
            raise NotReady()
        return snapshot

    async def _kernel(self, pid: int) -> dict[str, Any]:
        """What the kernel says of a process now, its cgroup among it; without policies where that takes too long."""
        try:
            cgroup = procfs.process_cgroup(self._root, pid)
        except OSError:
            cgroup = None
        if cgroup is None:
            raise NoSuchProcess(pid=pid)
        told: dict[str, Any] = {"cgroup": cgroup, "policies": {}, "mems_allowed": [], "note": ""}
        if self._reading >= 8:
            return {**told, "note": "busy: ask again"}
        self._reading += 1
        work = asyncio.get_running_loop().run_in_executor(self._readers, _policies, self._root, pid)
        work.add_done_callback(self._done_reading)
        try:
            async with asyncio.timeout(KERNEL_SECONDS):
                return {**told, **await asyncio.shield(work)}
        except TimeoutError:
            return {**told, "note": f"the kernel did not say within {KERNEL_SECONDS:g} s"}
        except (OSError, ValueError) as error:
            return {**told, "note": str(error)}

    def _done_reading(self, work: asyncio.Future[Any]) -> None:
        self._reading -= 1
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not complain of one that came too late


def _policies(root: Root, pid: int) -> dict[str, Any]:
    """Threads by the policy that numa_maps shows, and the nodes that the cpuset allows."""
    tids = procfs.tids(root, pid)
    counts: Counter[str] = Counter()
    for tid in tids[:_THREADS_SHOWN]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            policy = procfs.thread_policy(root, pid, tid)
            counts["none (no memory)" if policy is None else str(policy)] += 1
    more = len(tids) - _THREADS_SHOWN
    return {
        **(_who(pid) if root.is_live else {}),
        "policies": dict(counts),
        "mems_allowed": sorted(procfs.mems_allowed(procfs.status(root, pid))),
        "note": f"{more} more threads were not read" if more > 0 else "",
    }


def _who(pid: int) -> dict[str, Any]:
    """The process as a person knows it. Dear (psutil reads several files), and for showing only."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return {"name": process.name(), "user": process.username(), "started_at": process.create_time()}
    except psutil.Error:
        return {}

"""The daemon: start, stop, reload, watchdog. Wires the rooms together and decides nothing itself."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from hetmemd import __version__, instance, manager, settings
from hetmemd.engine.balancing import GLOBAL, Balancer
from hetmemd.engine.binding import Binder
from hetmemd.engine.braking import Brakes
from hetmemd.engine.engine import Engine
from hetmemd.engine.giving import Giving, Selection
from hetmemd.engine.kernel_table import KernelTable
from hetmemd.engine.ledger import Ledger
from hetmemd.engine.orders import Orders
from hetmemd.engine.publishing import Progress, snapshot
from hetmemd.engine.record import Record
from hetmemd.engine.steering import Steering
from hetmemd.engine.world import World
from hetmemd.kernel import cgroupfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory.budget import Budgets
from hetmemd.policy import files
from hetmemd.policy.quantity import burst_of
from hetmemd.remote.client import Tracer
from hetmemd.remote.result import ThreadResult
from hetmemd.report import journal
from hetmemd.report.metrics import Metrics, registry
from hetmemd.report.notify import Notifier
from hetmemd.report.publish import Publisher
from hetmemd.report.snapshot import FileView
from hetmemd.report.tally import Tally
from hetmemd.report.varlink import Control
from hetmemd.report.web import ListenError, Web
from hetmemd.settings import OBSERVE_FILES, Settings, SettingsError, UnsettledError
from hetmemd.tasks import scan
from hetmemd.watch.connector import ConnectorSource
from hetmemd.watch.hint import CrashHint, DumpHint, FilesHint, Hint, LostHint, TaskHint
from hetmemd.watch.watcher import Watcher

log = logging.getLogger(__name__)

EX_CONFIG = 78
"""sysexits(3): trying again would not help, and the unit does not."""
EX_TEMPFAIL = 75
"""It would, and the unit does."""
SETTLE_SECONDS = 2.0
"""For settings that are being written when the daemon starts."""
FIRST_SECONDS = 45.0
"""For the first scan, before the service calls itself ready all the same; the unit's limit is 90 s."""
PUBLISH_SECONDS = 0.2
"""The shortest time between two snapshots."""
STUCK_SECONDS = 30.0
"""A round of the engine that takes longer is no life: the watchdog is not told otherwise."""


class Refusal(Exception):
    """The daemon cannot work here; the message says why, and what would help."""


class _Witness:
    """Tells counters and the journal of every application."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._records = journal.Applications()

    def application(
        self, cgroup: str, comm: str, process: ProcessId, policy: Mempolicy, why: str, results: Sequence[ThreadResult]
    ) -> None:
        for result in results:
            self._tally.application(result.outcome, result.reason)
            if result.pause_ns:
                self._tally.pause(result.pause_ns / 1e9)
        self._records.application(cgroup, comm, process, policy, why, results)


class Service:
    def __init__(self, root: Root, found: Settings) -> None:
        """`Refusal` and `OSError` where it cannot work."""
        self._root = root
        self._settings = found
        self._started_at = time.time()
        self._tally = Tally()
        self._publisher = Publisher()
        self._notifier = Notifier()
        self._metrics = Metrics(self._publisher, self._tally, found.cgroup_label_limit)
        self._web: Web | None = None
        self._stop = asyncio.Event()
        try:
            self._world = World(root, found.defaults)
        except cgroupfs.NoCgroup2 as error:
            raise Refusal(
                f"{error}; hetmemd attaches policies to cgroups of version 2 and cannot work without"
            ) from None
        self._tally.nodes(self._world.machine.memory_nodes)
        self._ledger = Ledger(root)
        self._tracer = Tracer(root)
        self._table = KernelTable(root, self._is_switched_off)
        self._budgets = Budgets()
        self._records: dict[int, Record] = {}
        self._observing = False
        self._stamp = _stamp(root)
        self._switch = ""
        """What the kill switch was turned by."""
        self._restarts = 0
        self._losses: dict[str, int] = {}
        self._limitations: set[str] = set()
        self._told: dict[str, tuple[FileView, bytes | None]] = {}
        loop = asyncio.get_running_loop()
        self._brakes = Brakes(root, self._ledger, found.brakes, self._rescan, self._look_again, self._hears_of_ends)
        self._steering = Steering(
            root,
            self._ledger,
            self._tracer,
            self._world.wanted,
            lambda: self._world.machine.memory_nodes,
            lambda path: scan.is_threaded(root, path),
            self._is_switched_off,
            self._brakes,
            _Witness(self._tally),
        )
        self._binder = Binder(
            root,
            self._ledger,
            self._tracer,
            self._world.wish,
            lambda: self._world.machine.memory_nodes,
            self._is_switched_off,
            self._brakes,
            journal.regions_bound,
            self._tally,
        )
        changed = asyncio.Event()
        self._balancer = Balancer(
            root,
            self._records,
            self._world.effective.get,
            lambda: self._world.machine,
            self._budgets,
            self._tally,
            self._is_switched_off,
            changed,
        )
        self._engine = Engine(
            root,
            self._world,
            self._ledger,
            self._steering,
            self._binder,
            self._brakes,
            self._balancer,
            self._records,
            self._tally,
            self._spared,
            changed,
        )
        self._watcher = Watcher(root, loop, self._deliver)
        self._giving = Giving(root, self._ledger, self._steering, self._binder, self._engine.look_at)
        self._control = Control(self._publisher, root, self._world.explain, Orders(root, self._brakes, self._giving))

    async def run(self) -> int:
        """Until SIGTERM or SIGINT. The exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._ledger.lost:
            journal.limitation(f"the ledger was torn and is begun anew: {self._ledger.lost}")
        self._listen(self._settings, self._settings)
        self._take_up(self._settings)
        self._observe()
        self._hold_table()
        await self._control.start()
        # Open and acknowledge, then scan, then follow: what happens in between is hinted. The tracer, an interpreter of
        # its own, comes up meanwhile.
        await asyncio.gather(self._tracer.start(), self._watcher.start())
        self._engine.rescan()
        work = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("engine", self._engine.run()),
                ("regions", self._engine.follow_regions(self._watcher.want_regions)),
                ("balancer", self._balancer.run()),
                ("scans", self._scan_again()),
                ("publisher", self._publish()),
                ("watchdog", self._watchdog()),
            )
        ]
        stopped = asyncio.create_task(self._stop.wait())
        first = asyncio.create_task(self._engine.settle(FIRST_SECONDS))
        await asyncio.wait([first, stopped, *work], return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            self._say_ready()
            await asyncio.wait([stopped, *work], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and self._settings.on_stop == "restore":
            await self._give_back()
        failed = [task for task in work if task.done()]
        for task in failed:
            log.error("%s ended, which it should not: hetmemd stops", task.get_name(), exc_info=task.exception())
        status = 1 if failed else 0
        await self._close([stopped, first, *work], status)
        return status

    def _say_ready(self) -> None:
        self._publish_now()
        latest = self._publisher.latest
        assert latest is not None
        in_force = sum(file.state in ("in-force", "last-good") for file in latest.files)
        journal.started(__version__, len(latest.cgroups), in_force)
        self._notifier.ready(self._line())

    async def _give_back(self) -> None:
        """L2: on a stop, and on nothing that looks like one. What is not given back stays in the ledger."""
        self._notifier.stopping()
        seconds, why = await manager.time_to_give_back(self._root)
        if self._is_switched_off():
            why = f"observing ({self._switch})"
        if why or seconds is None:
            journal.kept(why)
            return
        self._brakes.gives_all_back = True
        given = await self._giving.give_back(Selection(), seconds)
        journal.given_back(given.threads, [(left.pid, left.comm, left.reason) for left in given.left])

    async def _close(self, work: Sequence[asyncio.Task[object]], status: int) -> None:
        self._notifier.stopping()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._engine.close()
        self._brakes.close()
        self._balancer.close()
        self._control.close()
        self._watcher.close()
        self._tracer.close()
        if self._web:
            self._web.close()
        if self._brakes.gives_all_back:
            self._table.give_back()
        kept = sum(len(self._ledger.marks(process)) for process in self._ledger.processes())
        self._ledger.close()
        journal.stopped(kept)
        if self._steering.stuck or self._binder.stuck or self._balancer.stuck:
            # The interpreter would wait at its exit for threads that wait for others' locks.
            logging.shutdown()
            os._exit(status)

    # -- what comes in

    def _hears_of_ends(self) -> bool:
        return any(source.name == ConnectorSource.name and source.up for source in self._watcher.sources())

    def _deliver(self, hints: Sequence[Hint]) -> None:
        for hint in hints:
            match hint:
                case DumpHint(pid=pid):
                    self._brakes.dumps(pid)
                case CrashHint():
                    self._brakes.crashed(hint.pid, hint.signal, hint.dumped)
                case TaskHint(pid=pid, why="exit"):
                    self._brakes.ended(pid)
                case LostHint(source=ConnectorSource.name):
                    self._brakes.lost()
        self._engine.deliver(hints)
        if any(isinstance(hint, (FilesHint, LostHint)) for hint in hints):
            self._reload()

    def _hang_up(self) -> None:
        self._notifier.reloading()
        try:
            self._reload(forced=True)
            self._engine.rescan()
            journal.reloaded()
        finally:
            # systemd waits for it, and ends a service that never says it.
            self._notifier.ready(self._line())

    def _reload(self, forced: bool = False) -> None:
        """Settings again; what is broken keeps the old ones in force, and is said once for each version."""
        stamp = _stamp(self._root)
        if stamp != self._stamp or forced:
            try:
                found = settings.load(self._root)
            except UnsettledError as error:
                # The close that ends the write is seen by itself, and this version is not done with.
                if forced:
                    self._refuse(error)
            except SettingsError as error:
                self._stamp = stamp
                self._refuse(error)
            else:
                self._stamp = stamp
                self._settings, before = found, self._settings
                self._tally.reload(True)
                self._take_up(before)
        self._observe()
        self._hold_table(insist=forced)

    def _refuse(self, error: SettingsError) -> None:
        self._tally.reload(False)
        journal.settings_refused(error.faults)

    def _take_up(self, before: Settings) -> None:
        """Put the settings to use that came in place of `before`."""
        found = self._settings
        journal.set_level(found.log_level)
        self._metrics.label_limit = found.cgroup_label_limit
        self._brakes.configure(found.brakes)
        self._balancer.interval = found.measure_interval
        self._balancer.moving_share = found.moving_share
        self._balancer.measuring_share = found.measuring_share
        self._budgets.configure(GLOBAL, found.rate, found.burst or burst_of(found.rate))
        if self._world.defaults != found.defaults:
            self._world.defaults = found.defaults
            self._engine.reload()
        try:
            self._listen(before, found)
        except ListenError as error:
            # Whoever changed an address or a certificate is told; policies are not held up by it.
            log.error("%s; the metrics stay where they were", error)

    def _is_switched_off(self) -> bool:
        """The kill switch, by setting or by file: asked before every act."""
        return bool(self._switched_by())

    def _switched_by(self) -> str:
        """What turned the kill switch on; empty while it is off."""
        if self._settings.observe:
            return f"observe in {settings.PATH}"
        if self._brakes.holds.damage:
            return f"{self._brakes.holds.damage}: hetmemctl release --all"
        return next((name for name in OBSERVE_FILES if self._root.path(name).exists()), "")

    def _look_again(self, pid: int) -> None:
        self._engine.look_again(pid)

    def _rescan(self) -> None:
        """What is held is another than it was, and that may be what turned the kill switch."""
        self._observe()
        self._engine.rescan()

    def _observe(self) -> None:
        """Says that the kill switch was turned, and has everything looked at again."""
        found = self._switched_by()
        observing = bool(found)
        self._switch = found or self._switch
        if observing != self._observing:
            self._observing = observing
            journal.observing(observing, self._switch)
            self._engine.rescan()

    def _hold_table(self, insist: bool = False) -> None:
        """The kernel's global table as the settings say; a scan reads the machine again where it was written."""
        if self._table.hold(self._settings.kernel.weights, self._world.machine, insist):
            self._engine.rescan()

    def _listen(self, before: Settings, found: Settings) -> None:
        """`ListenError`; the listener that there was stays then."""
        wanted = (found.listen, found.tls_certificate, found.tls_key)
        if self._web is not None and wanted == (before.listen, before.tls_certificate, before.tls_key):
            self._web.renew()
            return
        if self._web is not None and (not found.listen or found.listen == before.listen):
            # The same address with another certificate cannot be bound twice.
            self._web.close()
            self._web = None
        fresh = None
        if found.listen:
            fresh = Web(found.listen, registry(self._metrics), found.tls_certificate, found.tls_key)
        if self._web is not None:
            self._web.close()
        self._web = fresh

    # -- what goes on

    async def _scan_again(self) -> None:
        while True:
            await asyncio.sleep(self._settings.scan_interval)
            self._observe()
            self._hold_table()
            self._engine.rescan()

    async def _publish(self) -> None:
        while True:
            await self._engine.changed.wait()
            self._engine.changed.clear()
            begin = time.monotonic()
            self._publish_now()
            # A snapshot of a full machine must not become the work itself.
            await asyncio.sleep(max(PUBLISH_SECONDS, 10 * (time.monotonic() - begin)))

    def _publish_now(self) -> None:
        progress = Progress(
            self._started_at,
            self._observing,
            self._engine.scans,
            self._engine.last_scan,
            self._switch if self._observing else "",
            tuple(self._brakes.holds),
            self._brakes.crashes,
        )
        notes = (*self._brakes.notes, *self._table.notes)
        self._publisher.publish(snapshot(self._world, self._records.values(), self._watcher.sources(), progress, notes))
        self._notifier.status(self._line())
        self._tell_files()
        self._tell_losses()
        self._tell_limitations()
        self._tally.tracer_restart(self._tracer.restarts - self._restarts)
        self._restarts = self._tracer.restarts

    def _tell_files(self) -> None:
        """The journal has each file when it is new or another than it was."""
        latest = self._publisher.latest
        views = {file.path: file for file in latest.files} if latest else {}
        contents = {
            file.path: (views[file.path], file.good) for file in self._world.library.files if file.path in views
        }
        for path, (view, good) in contents.items():
            if self._told.get(path) != (view, good):
                journal.policy_file(view)
        for path in self._told.keys() - contents.keys():
            journal.policy_file(FileView(path, "removed", ()))
        self._told = contents

    def _tell_losses(self) -> None:
        """The journal has each loss of events."""
        for source in self._watcher.sources():
            if source.losses > self._losses.get(source.name, 0):
                journal.events_lost(source.name, source.note)
            self._losses[source.name] = source.losses

    def _tell_limitations(self) -> None:
        """The journal has each once, when it is first met (L5)."""
        latest = self._publisher.latest
        for note in latest.notes if latest else ():
            if note not in self._limitations:
                self._limitations.add(note)
                journal.limitation(note)

    async def _watchdog(self) -> None:
        if not (interval := self._notifier.watchdog_interval):
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        while interval:
            busy = self._engine.busy_since
            if busy is None or loop.time() - busy < STUCK_SECONDS:
                self._notifier.watchdog()
            await asyncio.sleep(interval)

    def _line(self) -> str:
        latest = self._publisher.latest
        if latest is None:
            return "starting"
        tasks = sum(len(cgroup.tasks) for cgroup in latest.cgroups)
        held = sum(task.outcome == "applied" for cgroup in latest.cgroups for task in cgroup.tasks)
        broken = sum(bool(file.faults) for file in latest.files)
        line = f"{len(latest.cgroups)} cgroups with a policy, {held} of {tasks} processes hold it"
        if latest.observing:
            line = "observing only; " + line
        return line + (f", {broken} broken files" if broken else "")

    def _spared(self) -> set[int]:
        return {os.getpid(), *self._tracer.pids}


def _stamp(root: Root) -> tuple[int, ...]:
    """Tells one version of the settings file from another; empty where there is none."""
    try:
        found = root.path(files.follow(root, settings.PATH)).stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _settled(root: Root) -> Settings:
    """The settings to start with. `SettingsError`; `UnsettledError` where somebody goes on writing them."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            return settings.load(root)
        except UnsettledError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


async def _serve(root: Root, found: Settings) -> int:
    return await Service(root, found).run()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hetmemd", description="Gives cgroups a memory policy. See hetmemd(8).")
    parser.add_argument("--version", action="version", version=f"hetmemd {__version__}")
    parser.add_argument(
        "--root", default="/", metavar="DIR", help="where proc, sys, etc, run and var are; for tests beside a real one"
    )
    root = Root(parser.parse_args(arguments).root)
    journal.set_up()
    try:
        found = _settled(root)
        lock = instance.lock(root)
    except UnsettledError as error:
        print(f"hetmemd: {error}", file=sys.stderr)
        return EX_TEMPFAIL
    except (SettingsError, instance.Taken) as error:
        print(f"hetmemd: {error}", file=sys.stderr)
        return EX_CONFIG
    except PermissionError as error:
        print(f"hetmemd: {error}: it must run as root", file=sys.stderr)
        return EX_CONFIG
    try:
        return asyncio.run(_serve(root, found))
    except (Refusal, ListenError) as error:
        print(f"hetmemd: {error}", file=sys.stderr)
        return EX_CONFIG
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main())

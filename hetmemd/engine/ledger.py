"""What the kernel cannot tell: which policies are hetmemd's (T4, L4). A SQLite file in /run, gone at the next boot.

Every value is written down *before* it is issued, so that a daemon that dies in between still knows its own. Without
the file the daemon starts well, and takes every policy that it finds for the application's.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from hetmemd.engine.brakes import Act
from hetmemd.engine.decide import Mark
from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.kernel.root import Root

PATH = "/run/hetmemd/ledger.sqlite"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
FORMAT = 3
"""Raised with every change of the tables. An older format of the same boot is taken over: an upgrade loses nothing."""

_ROW = "issued TEXT NOT NULL, replaced TEXT NOT NULL, earlier TEXT"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS issued (policy TEXT PRIMARY KEY)",
    # Of a thread: tid, and 0 for low and high. Of a region: 0 for tid, and its addresses, [low, high).
    "CREATE TABLE IF NOT EXISTS mark (pid INTEGER, start INTEGER, tid INTEGER, low INTEGER, high INTEGER,"
    f" {_ROW}, arrived INTEGER NOT NULL, strikes INTEGER NOT NULL, at REAL NOT NULL,"
    " PRIMARY KEY (pid, start, tid, low, high)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS tried (policy TEXT PRIMARY KEY)",
    # The last act on a process, for a daemon that is started again before it is known that it did no harm.
    "CREATE TABLE IF NOT EXISTS act (pid INTEGER, start INTEGER, path BLOB NOT NULL, device INTEGER NOT NULL,"
    " inode INTEGER NOT NULL, policy TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (pid, start)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS act_at ON act (at)",
)
_NAMES = ("issued", "mark", "tried", "act")
_FROM_2 = (
    "ALTER TABLE mark RENAME TO mark_2",
    *_TABLES,
    "INSERT INTO mark SELECT pid, start, tid, 0, 0, issued, replaced, earlier, 0, 0, 0 FROM mark_2",
    "DROP TABLE mark_2",
)


class Span(NamedTuple):
    """Addresses of a region, bytes: from `start` up to, and without, `end`."""

    start: int
    end: int


Subject = TypeVar("Subject")


class Ledger:
    """Marks by process and thread or region, the values issued since boot, and the policies that were tried."""

    def __init__(self, root: Root) -> None:
        """`OSError` or `sqlite3.Error` where /run/hetmemd cannot be written, or somebody else holds the file locked.

        Only a file that is torn is begun anew: what is merely locked still knows what is ours.
        """
        path = root.path(PATH)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.lost: str | None = None
        """Why an older ledger could not be used, for the journal."""
        boot = root.read_text(BOOT_ID).strip()
        try:
            self._open(str(path), boot)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            self.lost = f"{path}: {error}"
            path.unlink(missing_ok=True)
            self._open(str(path), boot)
        self.issued: set[Mempolicy] = {
            mempolicy.parse(text) for (text,) in self._db.execute("SELECT policy FROM issued")
        }
        self.tried: set[str] = {key for (key,) in self._db.execute("SELECT policy FROM tried")}
        """Policies that were given to some tasks without harm, by a key of the caller's."""
        self._threads: dict[ProcessId, dict[int, Mark]] = {}
        self._regions: dict[ProcessId, dict[Span, Mark]] = {}
        for pid, start, tid, low, high, issued, replaced, earlier, arrived, strikes, at in self._db.execute(
            "SELECT pid, start, tid, low, high, issued, replaced, earlier, arrived, strikes, at FROM mark"
        ):
            asked, had, before = _parsed(issued), _parsed(replaced), _parsed(earlier)
            if asked is not None and had is not None:
                mark = Mark(asked, had, before, bool(arrived), strikes, at)
                process = ProcessId(pid, start)
                if tid:
                    self._threads.setdefault(process, {})[tid] = mark
                else:
                    self._regions.setdefault(process, {})[Span(low, high)] = mark

    def _open(self, path: str, boot: str) -> None:
        # Explicit transactions. /run is memory: a sync buys nothing, and a crash of the machine empties it anyway.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        with_this_boot = {"boot": boot, "format": str(FORMAT)}
        if meta == {**with_this_boot, "format": "2"}:
            steps: tuple[str, ...] = _FROM_2
        elif meta and meta != with_this_boot:
            if meta.get("boot") == boot:
                self.lost = f"{path}: format {meta.get('format')} of another release"
            steps = (*(f"DROP TABLE IF EXISTS {name}" for name in _NAMES), *_TABLES)
        else:
            steps = _TABLES
        for step in steps:
            self._db.execute(step)
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", with_this_boot.items())
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    # -- asking

    def marks(self, process: ProcessId) -> Mapping[int, Mark]:
        """Of its threads, by thread id."""
        return self._threads.get(process, {})

    def regions(self, process: ProcessId) -> Mapping[Span, Mark]:
        """Of its address space; an exec ends them without a word."""
        return self._regions.get(process, {})

    def processes(self) -> set[ProcessId]:
        return {*self._threads, *self._regions}

    # -- writing

    def will_issue(self, policy: Mempolicy) -> None:
        """Before an act: from here on a thread or region that is found with this value may be ours."""
        if policy != mempolicy.DEFAULT and policy not in self.issued:
            self._db.execute("INSERT OR IGNORE INTO issued VALUES (?)", (str(policy),))
            self.issued |= {policy}

    def set_marks(self, process: ProcessId, marks: Mapping[int, Mark | None]) -> None:
        """Before and after an act, by thread: a mark, or None for one that carries nothing of ours any more."""
        self._set(self._threads, process, marks, {tid: (tid, 0, 0) for tid in marks})

    def set_regions(self, process: ProcessId, marks: Mapping[Span, Mark | None]) -> None:
        """The same of regions. One that is split or grows is another span: the old one is taken away by None."""
        self._set(self._regions, process, marks, {span: (0, *span) for span in marks})

    def _set(
        self,
        held: dict[ProcessId, dict[Subject, Mark]],
        process: ProcessId,
        marks: Mapping[Subject, Mark | None],
        columns: Mapping[Subject, tuple[int, int, int]],
    ) -> None:
        if not marks:
            return
        # A copy: what was asked for stays as it was then (`heritage` keeps it for children).
        mine = held[process] = dict(held.get(process, {}))
        for subject, mark in marks.items():
            if mark is None:
                mine.pop(subject, None)
            else:
                mine[subject] = mark
        if not mine:
            del held[process]
        gone: list[tuple[int, ...]] = []
        kept: list[tuple[object, ...]] = []
        for subject, mark in marks.items():
            key = (*process, *columns[subject])
            if mark is None:
                gone.append(key)
            else:
                kept.append((*key, *_row(mark)))
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM mark WHERE pid = ? AND start = ? AND tid = ? AND low = ? AND high = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
        self._db.execute("COMMIT")

    def forget(self, processes: Iterable[ProcessId]) -> None:
        """Processes that ended."""
        wanted = set(processes)
        ended = [process for process in wanted if self._threads.pop(process, None) is not None]
        ended += [process for process in wanted if self._regions.pop(process, None) is not None]
        if ended:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM mark WHERE pid = ? AND start = ?", ended)
            self._db.execute("COMMIT")

    def acted(self, process: ProcessId, act: Act, since: float) -> None:
        """Before an act, in place of the one before on this process. Acts from before `since` are forgotten."""
        path = act.executable.path.encode(errors="surrogateescape")
        row = (*process, path, act.executable.device, act.executable.inode, act.policy, act.at)
        self._db.execute("BEGIN")
        self._db.execute("DELETE FROM act WHERE at < ?", (since,))
        self._db.execute("INSERT OR REPLACE INTO act VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute("COMMIT")

    def forget_act(self, process: ProcessId) -> None:
        """It did not take place after all, or nothing is to be feared of it any more."""
        self._db.execute("DELETE FROM act WHERE pid = ? AND start = ?", process)

    def acts(self) -> list[tuple[ProcessId, Act]]:
        """Those that were written down, the oldest first."""
        rows = self._db.execute("SELECT pid, start, path, device, inode, policy, at FROM act ORDER BY at").fetchall()
        return [
            (ProcessId(pid, start), Act(Executable(os.fsdecode(path), device, inode), policy, at))
            for pid, start, path, device, inode, policy, at in rows
        ]

    def was_tried(self, policy: str) -> None:
        """The policy with this key did no harm to the tasks that had it first."""
        if policy not in self.tried:
            self._db.execute("INSERT OR IGNORE INTO tried VALUES (?)", (policy,))
            self.tried.add(policy)


def _row(mark: Mark) -> tuple[object, ...]:
    earlier = mark.earlier and str(mark.earlier)
    return (str(mark.issued), str(mark.replaced), earlier, mark.arrived, mark.strikes, mark.at)


def _parsed(text: str | None) -> Mempolicy | None:
    """None for what no release of this daemon wrote: one bad row must not cost the others."""
    try:
        return mempolicy.parse(text) if text else None
    except ValueError:
        return None

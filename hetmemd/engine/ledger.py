"""What the kernel cannot tell: which policies are hetmemd's (T4, L4). A SQLite file in /run, gone at the next boot.

Every value is written down *before* it is issued, so that a daemon that dies in between still knows its own. Without
the file the daemon starts well, and takes every policy that it finds for the application's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from hetmemd.engine.decide import Mark
from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

PATH = "/run/hetmemd/ledger.sqlite"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_FORMAT = 2


class Ledger:
    """Marks by (process, thread), and the set of values issued since boot."""

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
        self._marks: dict[ProcessId, dict[int, Mark]] = {}
        for pid, start, tid, *policies in self._db.execute(
            "SELECT pid, start, tid, issued, replaced, earlier FROM mark"
        ):
            issued, replaced, earlier = (_parsed(text) for text in policies)
            if issued is not None and replaced is not None:
                self._marks.setdefault(ProcessId(pid, start), {})[tid] = Mark(issued, replaced, earlier)

    def _open(self, path: str, boot: str) -> None:
        # Explicit transactions. /run is memory: a sync buys nothing, and a crash of the machine empties it anyway.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        with_this_boot = {"boot": boot, "format": str(_FORMAT)}
        if meta and meta != with_this_boot:
            self._db.execute("DROP TABLE IF EXISTS issued")
            self._db.execute("DROP TABLE IF EXISTS mark")
        self._db.execute("CREATE TABLE IF NOT EXISTS issued (policy TEXT PRIMARY KEY)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS mark (pid INTEGER, start INTEGER, tid INTEGER, issued TEXT NOT NULL,"
            " replaced TEXT NOT NULL, earlier TEXT, PRIMARY KEY (pid, start, tid))"
        )
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", with_this_boot.items())

    def close(self) -> None:
        self._db.close()

    def marks(self, process: ProcessId) -> Mapping[int, Mark]:
        """By thread id."""
        return self._marks.get(process, {})

    def processes(self) -> set[ProcessId]:
        return set(self._marks)

    def will_issue(self, policy: Mempolicy) -> None:
        """Before an act: from here on a thread that is found with this value may be ours."""
        if policy != mempolicy.DEFAULT and policy not in self.issued:
            self._db.execute("INSERT OR IGNORE INTO issued VALUES (?)", (str(policy),))
            self.issued |= {policy}

    def set_marks(self, process: ProcessId, marks: Mapping[int, Mark | None]) -> None:
        """After an act, by thread: a mark, or None for a thread that carries nothing of ours any more."""
        if not marks:
            return
        held = self._marks.setdefault(process, {})
        for tid, mark in marks.items():
            if mark is None:
                held.pop(tid, None)
            else:
                held[tid] = mark
        if not held:
            del self._marks[process]
        gone = [(process.pid, process.start, tid) for tid, mark in marks.items() if mark is None]
        kept = [
            (process.pid, process.start, tid, str(mark.issued), str(mark.replaced), mark.earlier and str(mark.earlier))
            for tid, mark in marks.items()
            if mark is not None
        ]
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM mark WHERE pid = ? AND start = ? AND tid = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?, ?, ?)", kept)
        self._db.execute("COMMIT")

    def forget(self, processes: Iterable[ProcessId]) -> None:
        """Processes that ended."""
        ended = [process for process in processes if self._marks.pop(process, None) is not None]
        if ended:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM mark WHERE pid = ? AND start = ?", ended)
            self._db.execute("COMMIT")


def _parsed(text: str | None) -> Mempolicy | None:
    """None for what no release of this daemon wrote: one bad row must not cost the others."""
    try:
        return mempolicy.parse(text) if text else None
    except ValueError:
        return None

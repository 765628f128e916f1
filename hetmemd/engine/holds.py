"""What was stopped until somebody releases it: a file in /var/lib/hetmemd, which outlives restarts and boots."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.kernel.root import Root

PATH = "/var/lib/hetmemd/holds.json"
KINDS = ("executable", "policy", "cgroup", "process")
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """One of them."""

    kind: str
    """`executable`: no act on processes that run it. `policy`: no task is given it any more. `cgroup` and `process`:
    what was given was given back, and nothing is given again."""
    what: str
    """What `hetmemctl release` is told: the path of an executable, of a policy file, of a cgroup, or a pid."""
    why: str
    """One sentence."""
    since: float
    """Seconds since the epoch."""
    device: int = 0
    inode: int = 0
    """Of an executable: another file at the same path is another program."""
    detail: str = ""
    """Of a policy: the key of what was given. Of a process: the boot."""
    start: int = 0
    """Of a process: clock ticks after boot."""


class Holds:
    """All of them, each change on disk before it counts."""

    def __init__(self, root: Root, boot: str) -> None:
        """`boot` names this boot: holds of processes end with theirs."""
        self._root = root
        self._boot = boot
        self.damage = ""
        """Why the file cannot be read. Nobody knows then what was stopped: nothing at all may be done."""
        self._holds: list[Hold] = []
        try:
            data = json.loads(root.read_text(PATH))
            if data["schema"] != _SCHEMA:
                raise ValueError(f"schema {data['schema']} of another release")
            self._holds = [Hold(**entry) for entry in data["holds"]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damage = f"{PATH}: {error}"
        self._holds = [hold for hold in self._holds if hold.kind != "process" or hold.detail == boot]

    def __iter__(self) -> Iterator[Hold]:
        return iter(tuple(self._holds))

    def __len__(self) -> int:
        return len(self._holds)

    def add(self, hold: Hold) -> bool:
        """False where that is held already. `OSError` where it cannot be written down: it counts all the same."""
        if any(_key(other) == _key(hold) for other in self._holds):
            return False
        self._holds.append(hold)
        self._save()
        return True

    def release(self, what: str | None) -> list[Hold]:
        """Those of this name, or all with None: they are over. `OSError` where that cannot be written: none is."""
        gone = [hold for hold in self._holds if what is None or hold.what == what]
        if gone or (what is None and self.damage):
            before = self._holds
            self._holds = [hold for hold in before if hold not in gone]
            try:
                self._save()
            except OSError:
                self._holds = before
                raise
            if what is None:
                self.damage = ""
        return gone

    def executable(self, executable: Executable) -> Hold | None:
        return self._first("executable", lambda hold: (hold.what, hold.device, hold.inode) == executable)

    def policy(self, key: str) -> Hold | None:
        return self._first("policy", lambda hold: hold.detail == key)

    def cgroup(self, path: str) -> Hold | None:
        """The cgroup or one above it."""
        return self._first("cgroup", lambda hold: is_below(path, hold.what))

    def process(self, process: ProcessId) -> Hold | None:
        return self._first("process", lambda hold: (hold.what, hold.start) == (str(process.pid), process.start))

    def has(self, kind: str) -> bool:
        return any(hold.kind == kind for hold in self._holds)

    def _first(self, kind: str, matches: Callable[[Hold], bool]) -> Hold | None:
        return next((hold for hold in self._holds if hold.kind == kind and matches(hold)), None)

    def _save(self) -> None:
        path = self._root.path(PATH)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        with fresh.open("x") as file:
            json.dump({"schema": _SCHEMA, "holds": [asdict(hold) for hold in self._holds]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)


def is_below(path: str, top: str) -> bool:
    """Whether a cgroup is `top` or stands below it."""
    return top in ("/", path) or path.startswith(top + "/")


def _key(hold: Hold) -> tuple[object, ...]:
    return (hold.kind, hold.what, hold.device, hold.inode, hold.detail, hold.start)

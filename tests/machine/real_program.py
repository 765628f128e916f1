"""Real programs at work, in Debian's own tree (`programs`), and hetmemd at them all the while."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from hetmemd.kernel import cgroupfs, libc, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from tests.machine import programs, reports
from tests.machine.daemon import Daemon, Group, eventually, policy
from tests.machine.remote_target import NODE0, ROOT, Target

GIVEN = tuple(Mempolicy(mode, NODE0, Flag.STATIC_NODES) for mode in (Mode.INTERLEAVE, Mode.BIND))
FLURRY = 5
BREATH = 0.1
"""Seconds between two changes of a policy that come too fast: for one of them its threads are on the way still."""
LIMIT = 120.0
"""Seconds after which a tool that should have ended is a failure."""

# In a namespace of mounts: nothing is left of them when the program has ended.
_ENTER = """
for name in proc dev; do mount --rbind /$name "$0/$name" || exit; done
mount --bind "$1" "$0/mnt" || exit
user=$2; shift 2
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt LC_ALL=C.UTF-8 \
    chroot --userspec="$user:$user" "$0" /bin/sh -c 'cd /mnt && exec "$@"' sh "$@"
"""
_JOIN = 'echo 0 >"$0" && exec "$@"'


def command(folder: Path, words: Sequence[str | Path], user: int = 0) -> list[str]:
    """How to run `words`, a program by its path in the tree, with `folder` as its working directory.

    The pid is the program's own: what comes before it executes it in the end.
    """
    try:
        root = programs.tree()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return [str(word) for word in ["unshare", "--mount", "sh", "-c", _ENTER, root, folder, user, *words]]


@dataclass
class Pressure:
    """What hetmemd does to the processes of one cgroup, again and again, while they work."""

    name: str
    folder: Path
    daemon: Daemon
    group: Group

    def start(self, words: Sequence[str | Path], user: int = 0) -> Target:
        """The program, in the cgroup from its first instruction on."""
        join = ["sh", "-c", _JOIN, str(self.group.folder / "cgroup.procs")]
        return Target([*join, *command(self.folder, words, user)])

    def tool(self, words: Sequence[str | Path], user: int = 0, text: str = "") -> str:
        """A tool's output; it runs outside of the cgroup, and must end well."""
        done = subprocess.run(
            command(self.folder, words, user), input=text, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def during(self, work: Callable[[], None], turns: int = 4) -> None:
        """Do `work` again and again until so many turns are over: policies applied, changed, and undone."""
        before = self.daemon.metrics()
        error: list[BaseException] = []
        over = threading.Event()

        def working() -> None:
            try:
                while not error:
                    work()
                    if over.is_set():
                        return
            except BaseException as raised:
                error.append(raised)

        worker = threading.Thread(target=working)
        worker.start()
        try:
            for _ in range(turns):
                if not error:
                    self._turn()
        finally:
            over.set()
            worker.join()
        if error:
            raise error[0]
        self._report(before)

    def _turn(self) -> None:
        for wanted in GIVEN:
            file = self._drop(wanted)
            self._settled(wanted)
        # And faster than it can follow.
        for wanted in GIVEN * FLURRY:
            self._drop(wanted)
            time.sleep(BREATH)
        file.unlink()
        self._settled(DEFAULT)

    def _drop(self, wanted: Mempolicy) -> Path:
        return self.daemon.drop("50-pressure.toml", policy(self.group.path, wanted.mode.word))

    def _pids(self) -> list[int]:
        return cgroupfs.procs(ROOT, self.group.path)

    def _settled(self, wanted: Mempolicy) -> None:
        eventually(lambda: f"{wanted} in {self._shown()}", lambda: set(self._shown()) == {str(wanted)})

    def _shown(self) -> Counter[str]:
        """Threads by what they carry, but for those of the kernel's own."""
        shown: Counter[str] = Counter()
        for pid in self._pids():
            try:
                for tid in procfs.tids(ROOT, pid):
                    if not procfs.stat(ROOT, pid, tid).flags & procfs.UNCALLABLE:
                        shown[str(procfs.thread_policy(ROOT, pid, tid) or DEFAULT)] += 1
            except OSError as error:
                if not libc.is_gone(error):
                    raise
        return shown

    def _report(self, before: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
        after = self.daemon.metrics()
        gained = {key: after[key] - before.get(key, 0) for key in after}
        stops = gained["pause_seconds_count", frozenset()]
        failures = [
            "{} {outcome} ({reason})".format(int(count), **dict(labels))
            for (name, labels), count in sorted(gained.items(), key=str)
            if name == "application_failures_total" and count
        ]
        what = ", ".join(failures) or "none left out"
        reports.note("real programs under injection", f"{self.name}: {stops:.0f} threads called; {what}")
        assert stops > 0

"""The whole daemon on this machine's own kernel, its files in a folder of a test's own, and cgroups for it to serve."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from hetmemd.ctl import client
from hetmemd.kernel import cgroupfs, maps, procfs
from hetmemd.kernel.root import Root

PATIENCE = 30.0
INTERLEAVE = "interleave=static:0"


def eventually(what: str | Callable[[], str], done: Callable[[], object], patience: float = PATIENCE) -> None:
    """`what` may be asked for only when it is too late."""
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)


def free_address() -> str:
    """HOST:PORT that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1:{1}".format(*free.getsockname())


def unreadable() -> list[int]:
    """Processes that not even root may look into, as in some containers: who knows what they map?"""
    found = []
    for pid in procfs.pids(Root()):
        try:
            maps.read(Root(), pid)
        except PermissionError:
            found.append(pid)
        except OSError:
            continue
    return found


def where_all_can_be_seen() -> list[str]:
    """A prefix for commands: they see only those processes that can be looked into."""
    mounts = [f"mount -t tmpfs none /proc/{pid} && " for pid in unreadable()]
    return ["unshare", "--mount", "sh", "-c", "".join(mounts) + 'exec "$0" "$@"']


class Daemon:
    """`hetmemd --root` on a folder whose proc and sys are this machine's."""

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        """`prefix` is a command that takes rights away and then runs the daemon."""
        self.folder = folder
        for name in ("proc", "sys"):
            (folder / name).symlink_to(f"/{name}")
        self.files = folder / "etc/hetmemd.d"
        self.files.mkdir(parents=True)
        self.address = free_address()
        (folder / "etc/hetmemd.toml").write_text(f'listen = "{self.address}"\nscan_interval = "5s"\n')
        self.prefix = prefix
        self.patch = ""
        """Python that is run before it."""
        self.popen: subprocess.Popen[str] | None = None
        self.journal = folder / "journal"

    @property
    def socket(self) -> str:
        return str(self.folder / "run/hetmemd/control")

    @property
    def command(self) -> list[str]:
        program = f"{self.patch}\nfrom hetmemd.service import main\nraise SystemExit(main())"
        return [*self.prefix, sys.executable, "-c", program, "--root", str(self.folder)]

    def start(self) -> None:
        with self.journal.open("a") as journal:
            said = self.journal.read_text().count(" works: ")
            self.popen = subprocess.Popen(
                self.command,
                stderr=journal,
                text=True,
            )
        try:
            eventually("the daemon works", lambda: self.journal.read_text().count(" works: ") > said)
        except BaseException:  # Ctrl-C: no fixture knows of it yet
            self.popen.kill()
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.popen
        self.popen.send_signal(how)
        return self.popen.wait(PATIENCE)

    def end(self) -> None:
        """After a test: it stops as it should, and has nothing to hide."""
        assert self.popen
        if self.popen.poll() is None:
            assert self.stop() == 0, self.journal.read_text()
        said = self.journal.read_text()
        assert "Traceback" not in said, said

    def drop(self, name: str, text: str) -> Path:
        (self.files / f".{name}").write_text(text)
        return (self.files / f".{name}").rename(self.files / name)

    def explain(self, pid: int) -> dict[str, Any]:
        """What `hetmemctl explain PID --json` prints."""
        return client.explain_process(pid, self.socket)

    def status(self) -> dict[str, Any]:
        """What `hetmemctl status --json` prints."""
        return client.status(self.socket)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """A scrape: the samples by name (without `hetmemd_`) and labels."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        return {
            (sample.name.removeprefix("hetmemd_"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """One sample; `KeyError` where there is none."""
        return self.metrics()[name, frozenset(labels.items())]


class Group:
    """A cgroup for one test."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = Path(cgroupfs.directory(Root(), path))
        self.folder.mkdir()

    def take(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def leave(self, pid: int) -> None:
        """Back to where this process is."""
        path = procfs.cgroup_path(Root(), os.getpid())
        assert path is not None
        (Path(cgroupfs.directory(Root(), path)) / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        eventually("its tasks are gone", lambda: not cgroupfs.populated(Root(), self.path))
        for child in sorted(self.folder.rglob("*"), reverse=True):
            if child.is_dir():
                child.rmdir()
        self.folder.rmdir()


def fresh_path() -> str:
    return f"/hetmemd-test-{uuid.uuid4().hex[:8]}"


def shown(pid: int, tid: int | None = None) -> str:
    return str(procfs.thread_policy(Root(), pid, tid or pid))


def policy(path: str, mode: str = "interleave", more: str = "", nodes: str = "all") -> str:
    line = "" if mode in ("default", "local") else f'nodes = "{nodes}"\n'
    return f'[[policy]]\ncgroup = "{path}"\nmode = "{mode}"\n{line}{more}'

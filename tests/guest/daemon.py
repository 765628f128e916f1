"""The installed service in the guest, and what tests do to it: drop files, start tasks, read what the kernel says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hetmemd.ctl import client

CGROUPS = Path("/sys/fs/cgroup")
FILES = Path("/etc/hetmemd.d")
CHILD = Path(__file__).with_name("memory_child.py")
PATIENCE = 120.0
"""Seconds after which something that does not come about is a failure; the guest is emulated, and slow in bursts."""


MEASURED_SOON = 'measure_interval = "1s"'
"""In the service's settings."""


def eventually(what: str, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.02)


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout.strip()


def journalctl(*words: str) -> str:
    """With all that was written so far."""
    subprocess.run(["journalctl", "--sync"], check=True)
    return subprocess.run(["journalctl", *words], check=True, capture_output=True, text=True).stdout


def drop(name: str, text: str, folder: Path = FILES) -> Path:
    """A policy file, complete at once: written beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{name}.new"
    scratch.write_text(text)
    return scratch.rename(folder / name)


def policy(
    cgroup: str,
    mode: str = "weighted-interleave",
    nodes: str = "all",
    more: str = "",
    weights: Mapping[int, int] = {0: 3, 1: 1},
) -> str:
    each = ", ".join(f"{node} = {weight}" for node, weight in weights.items())
    line = f"weights = {{ {each} }}\n" if mode == "weighted-interleave" else ""
    return f'[[policy]]\ncgroup = "{cgroup}"\nmode = "{mode}"\nnodes = "{nodes}"\n{line}{more}'


class Group:
    """A cgroup of the test's own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = CGROUPS / path.lstrip("/")
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                (CGROUPS / "cgroup.procs").write_text(str(pid))
        # What is about to exit is not moved any more.
        events = self.folder / "cgroup.events"
        eventually("its tasks are gone", lambda: "populated 0" in events.read_text())
        for child in sorted(self.folder.rglob("*"), reverse=True):
            if child.is_dir():
                child.rmdir()
        self.folder.rmdir()


def shown(pid: int, tid: int | None = None) -> str:
    """The thread's policy as the kernel shows it: `weighted interleave=static:0-1`."""
    with Path(f"/proc/{pid}/task/{tid or pid}/numa_maps").open() as lines:
        line = lines.readline()
    match = re.match(r"\S+ ((?:weighted interleave|prefer \(many\)|[a-z]+)\S*)", line)
    return match[1] if match else ""


def own_policy(pid: int) -> str:
    """What numactl has given the sleep that it became; before, and amid the exec, there is less to be seen."""
    eventually("numactl did its part", lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    return shown(pid)


def all_shown(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        try:
            found[shown(pid, int(name))] += 1
        except FileNotFoundError:
            continue
    return found


def pages_by_node(pid: int) -> Counter[int]:
    """Pages of 4 KiB of the private anonymous memory of a process."""
    found: Counter[int] = Counter()
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        if "anon=" in line:
            for node, pages in re.findall(r" N(\d+)=(\d+)", line):
                found[int(node)] += int(pages)
    return found


def metrics() -> dict[str, float]:
    text = subprocess.run(
        ["curl", "-sS", "http://127.0.0.1:9797/metrics"], check=True, capture_output=True, text=True
    ).stdout
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def hetmemctl(*words: str, status: int = 0) -> dict[str, Any]:
    """What `hetmemctl ... --json` prints."""
    done = subprocess.run(["hetmemctl", *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def told(*words: str) -> dict[str, Any]:
    """What `hetmemctl status --json` and `hetmemctl explain WHAT --json` say, without a process for each question."""
    match words:
        case ("status",):
            return client.status()
        case ("explain", what):
            return client.explain_process(int(what)) if what.isdigit() else client.explain_cgroup(what)
    raise ValueError(words)


def measured_anew(cgroup: str) -> None:
    """Waits until each process of the cgroup was measured once more, from now on: a snapshot that is newer may show
    figures that are old."""
    begin = time.time()
    eventually("measured anew", lambda: told("explain", cgroup)["measured_at"] > begin)


def huge_pool(node: int) -> Path:
    """Huge pages that a node keeps, to be set: each takes 2 MiB there, touched or not."""
    return Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")


class Child:
    """memory_child.py, which fills its memory and knows at its end what it should contain."""

    def __init__(self, mebibytes: int, kind: str = "small", group: Group | None = None, *numactl: str) -> None:
        """In `group` from its first instruction on; `numactl` are options to start it under."""
        before = ["numactl", *numactl] if numactl else []
        command = [*before, sys.executable, str(CHILD), str(mebibytes), kind]
        if group:
            command = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group.folder / "cgroup.procs"), *command]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout
        self.base, self.size = map(int, self.popen.stdout.readline().split())

    @property
    def pid(self) -> int:
        return self.popen.pid

    def shares(self) -> dict[int, float]:
        """Of its private anonymous memory, by node."""
        placed = pages_by_node(self.pid)
        return {node: pages / placed.total() for node, pages in sorted(placed.items())}

    def intact(self) -> bool:
        """Its own word. It ends with it."""
        out, _ = self.popen.communicate(timeout=PATIENCE)
        return out.strip() == "intact"

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()

#!/usr/bin/env python3
"""How long a task is without the policy that it should have: from the write to the kernel's word.

Needs root and a running hetmemd (`systemctl start hetmemd`), which it treats as a user would: it drops, changes, masks
and removes a policy file, and moves processes. The same move to a cgroup without a policy is timed beside it: that is
what a move costs anyway.

    .venv/bin/python -m tests.bench.arrival [--rounds N] [--threads N] [--processes N] [--check]
    tests/lab/run --service -- python3 -m tests.bench.arrival

A policy that is new goes to a few processes first, and to the others after `first_seconds`: with --processes, what is
timed is the last of so many processes, and where they are more than those few it is not held against anything.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.figures import Figures

CGROUP = "hetmemd-bench"
NAME = "99-hetmemd-bench.toml"
PATIENCE = 30.0
FIRST = 4
"""Processes that a new policy goes to at once, unless the settings say otherwise."""


def mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    sys.exit("no cgroup2 mount")


def shows(pid: int, policy: bytes) -> bool:
    """Whether all threads do."""
    for tid in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with open(f"/proc/{pid}/task/{tid}/numa_maps", "rb", 0) as maps:
            if maps.read(80).split()[1].partition(b"=")[0] != policy:
                return False
    return True


def table(mode: str) -> str:
    """A policy that moves no pages, each another one: what was tried once in a boot is not tried again."""
    nodes = "" if mode == "local" else 'nodes = "all"\n'
    fresh = f'min_age = "{next(_ages)}ms"\n'
    return f'[[policy]]\ncgroup = "/{CGROUP}"\nmode = "{mode}"\n{nodes}existing = "leave"\n{fresh}'


_ages = itertools.count(time.time_ns() // 1_000_000 % 1_000_000)


def drop(path: Path, text: str) -> None:
    """Complete at once, as an administrator's tools do it."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    fresh.rename(path)


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            sys.exit(f"no policy within {PATIENCE:.0f} s: does hetmemd run?")


def sleeper(threads: int) -> subprocess.Popen[bytes]:
    program = (
        "import threading, time\n"
        f"for _ in range({threads - 1}): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "print(flush=True); time.sleep(1000)"
    )
    popen = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert popen.stdout
    popen.stdout.readline()
    return popen


def timed(change: Callable[[], object], pids: list[int], policy: bytes) -> float:
    """Seconds from the change until the kernel says so of all of them."""
    begin = time.perf_counter()
    change()
    wait(lambda: all(shows(pid, policy) for pid in pids))
    return time.perf_counter() - begin


def tell(figures: Figures | None, what: str, times: list[float], more: str = "") -> None:
    times = sorted(times)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    said = f", of {len(times)}: median {statistics.median(times) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms{more}"
    if figures:
        figures.held(what, p99 if "p99" in what else statistics.median(times), said)
    else:
        print(what + said)


def move(pids: list[int], folder: Path) -> None:
    for pid in pids:
        (folder / "cgroup.procs").write_text(str(pid))


def moves(figures: Figures, rounds: int, pids: list[int], home: Path, plain: Path, file: Path) -> None:
    drop(file, table("interleave"))
    arrivals, bare = [], []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        move(pids, plain)
        bare.append(time.perf_counter() - begin)
        wait(lambda: all(shows(pid, b"default") for pid in pids))
        arrivals.append(timed(lambda: move(pids, home), pids, b"interleave"))
        if not number:  # the first waits for the file as well
            arrivals.clear()
    the_move = f"; the move itself {statistics.median(bare) * 1e3:.2f} ms"
    tell(figures, "cgroup move to policy in force, p99 / 1 s", arrivals, the_move)
    file.unlink()


def changes(figures: Figures | None, rounds: int, pids: list[int], file: Path, weaker: Path) -> None:
    """Each file as a user would handle it; `weaker` is a folder that `file`'s is stronger than."""
    times: dict[str, list[float]] = {}

    def time_of(what: str, policy: bytes, change: Callable[[], object]) -> None:
        times.setdefault(what, []).append(timed(change, pids, policy))

    other = weaker / NAME
    other.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(rounds):
        time_of("file dropped to policy in force, p99 / 1 s", b"interleave", lambda: drop(file, table("interleave")))
        time_of("file changed to policy in force, p99 / 1 s", b"local", lambda: drop(file, table("local")))
        time_of("file removed to policy gone, p99 / 1 s", b"default", file.unlink)
        drop(other, table("interleave"))
        wait(lambda: all(shows(pid, b"interleave") for pid in pids))
        time_of("file masked to policy gone, p99 / 1 s", b"default", lambda: file.symlink_to("/dev/null"))
        file.unlink()
        wait(lambda: all(shows(pid, b"interleave") for pid in pids))
        other.unlink()
        wait(lambda: all(shows(pid, b"default") for pid in pids))
    for what, found in times.items():
        tell(figures, what, found)


# A mapping for each line of its input, between guards so that it is not joined with another; says where.
MAPS = """
import ctypes, mmap, sys
PAGE = 4096
libc = ctypes.CDLL(None)
kept = []
print(flush=True)
for line in sys.stdin:
    area = mmap.mmap(-1, 18 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for edge in (base, base + 17 * PAGE):
        assert not libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(PAGE), 0)
    kept.append(area)
    print(base + PAGE, flush=True)
"""
REGIONS = 20
SELDOM = 5.0
"""Seconds between two of them. Readings of one process are spaced by 50 times what one costs, some 40 ms where
processors are emulated; one that was due anyway can be just before, so it is the median that has a limit."""


def shows_at(pid: int, address: int, policy: bytes) -> bool:
    lines = Path(f"/proc/{pid}/numa_maps").read_bytes().split(b"\n")
    return any(line.startswith(b"%08x %b" % (address, policy)) for line in lines)


def regions(figures: Figures, rounds: int, home: Path, file: Path) -> None:
    """Memory that a process maps while a policy is about its classes."""
    classes = 'mode = "interleave"\nnodes = "all"\nmemory = ["heap", "anon"]\nexisting = "leave"\n'
    drop(file, f'[[policy]]\ncgroup = "/{CGROUP}"\n{classes}')
    arrivals = []
    with subprocess.Popen([sys.executable, "-c", MAPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        try:
            assert popen.stdin and popen.stdout
            popen.stdout.readline()
            move([popen.pid], home)
            for number in range(rounds + 1):
                time.sleep(SELDOM)
                begin = time.perf_counter()
                popen.stdin.write(b"\n")
                popen.stdin.flush()
                address = int(popen.stdout.readline())
                wait(lambda address=address: shows_at(popen.pid, address, b"interleave"))  # type: ignore[misc]
                arrivals.append(time.perf_counter() - begin)
                if not number:  # the first waits for the move
                    arrivals.clear()
        finally:
            popen.kill()
    tell(figures, "region mapped to policy in force, median / 1 s", arrivals)
    file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("/"), help="of the service, as its own --root")
    figures = Figures(parser)
    options = figures.options()
    home, plain = mount() / CGROUP, mount() / f"{CGROUP}-plain"
    for folder in (home, plain):
        folder.mkdir(exist_ok=True)
    file, weaker = options.root / "etc/hetmemd.d" / NAME, options.root / "run/hetmemd.d"
    file.parent.mkdir(exist_ok=True)
    processes = [sleeper(options.threads) for _ in range(options.processes)]
    pids = [popen.pid for popen in processes]
    print(f"until the policy is in force, {len(pids)} processes of {options.threads} threads:")
    try:
        moves(figures, options.rounds, pids, home, plain, file)
        regions(figures, min(options.rounds, REGIONS), home, file)
        changes(figures if len(pids) <= FIRST else None, options.rounds, pids, file, weaker)
    finally:
        for popen in processes:
            popen.kill()
            popen.wait()
        for path in (file, weaker / NAME):
            path.unlink(missing_ok=True)
        for folder in (home, plain):
            folder.rmdir()
    figures.end()


if __name__ == "__main__":
    main()

"""How long a task that is moved into a cgroup is without its policy: from the write to the kernel's word.

Needs root and a running hetmemd (`systemctl start hetmemd`), which it treats as a user would: it drops a policy file
and moves processes. The same write to a cgroup without a policy is timed beside it: that is what a move costs anyway.

    .venv/bin/python -m tests.bench.arrival [--rounds N] [--threads N] [--check]
    tests/lab/run --service -- python3 -m tests.bench.arrival
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.figures import Figures

CGROUP = "hetmemd-bench"
POLICY = Path("/etc/hetmemd.d/99-hetmemd-bench.toml")
PATIENCE = 30.0


def mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    sys.exit("no cgroup2 mount")


def treated(pid: int) -> bool:
    for tid in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with open(f"/proc/{pid}/task/{tid}/numa_maps", "rb", 0) as maps:
            if b" interleave" not in maps.read(80):
                return False
    return True


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    figures = Figures(parser)
    options = figures.options()
    home, plain = mount() / CGROUP, mount() / f"{CGROUP}-plain"
    for folder in (home, plain):
        folder.mkdir(exist_ok=True)
    POLICY.parent.mkdir(exist_ok=True)
    POLICY.write_text(f'[[policy]]\ncgroup = "/{CGROUP}"\nmode = "interleave"\nnodes = "all"\nexisting = "leave"\n')
    arrivals, moves = [], []
    popen = sleeper(options.threads)
    try:
        for number in range(options.rounds + 1):
            begin = time.perf_counter()
            (plain / "cgroup.procs").write_text(str(popen.pid))
            moves.append(time.perf_counter() - begin)
            wait(lambda: not treated(popen.pid))
            begin = time.perf_counter()
            (home / "cgroup.procs").write_text(str(popen.pid))
            wait(lambda: treated(popen.pid))
            if number:  # the first waits for the file as well
                arrivals.append(time.perf_counter() - begin)
    finally:
        popen.kill()
        popen.wait()
        POLICY.unlink()
        for folder in (home, plain):
            folder.rmdir()
    arrivals.sort()
    median, p99 = statistics.median(arrivals), arrivals[min(len(arrivals) - 1, int(len(arrivals) * 0.99))]
    bare = statistics.median(moves)
    print(
        f"cgroup move to policy in force, {options.threads} threads, {len(arrivals)} moves: "
        f"median {median * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms; the move itself {bare * 1e3:.2f} ms, "
        f"{median / bare:.1f} times as long"
    )
    figures.held("cgroup move to policy in force, p99 / 1 s", p99)
    figures.end()


if __name__ == "__main__":
    main()

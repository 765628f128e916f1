#!/usr/bin/env python3
"""The demonstration that `packaging/try` runs inside of the guest. Shows only what it reads from the kernel itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

POLICY = Path(__file__).with_name("20-redis.toml")
DROPPED = Path("/etc/hetmemd.d") / POLICY.name
CGROUPS = Path("/sys/fs/cgroup")
SOCKET = "/run/demo-redis.sock"
KEYS, SIZE = 200_000, 512
LIMIT = 240
"""Seconds until the demonstration gives up."""
WIDTH = 44


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def redis(*words: str) -> str:
    return subprocess.run(
        ["redis-cli", "-s", SOCKET, *words], check=True, capture_output=True, text=True, timeout=LIMIT
    ).stdout.strip()


def wait_for(what: str, done: object) -> None:
    deadline = time.monotonic() + LIMIT
    while not done():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come about within {LIMIT} s")
        time.sleep(0.1)


def start_redis() -> int:
    """Redis in a cgroup that no policy names, under systemd as any service is."""
    unit = ["systemd-run", "--quiet", "--unit=demo-redis"]
    server = ["redis-server", "--port", "0", "--unixsocket", SOCKET, "--save", "", "--enable-debug-command", "local"]
    subprocess.run([*unit, *server], check=True)
    wait_for("Redis", lambda: Path(SOCKET).exists())
    redis("debug", "populate", str(KEYS), "key", str(SIZE))
    shown = subprocess.run(
        ["systemctl", "show", "-P", "MainPID", "demo-redis"], check=True, capture_output=True, text=True
    )
    return int(shown.stdout)


def anonymous_bytes(pid: int) -> Counter[int]:
    """Bytes by node of the process's anonymous memory, from the kernel's numa_maps."""
    found: Counter[int] = Counter()
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        if "anon=" in line:
            page = int(re.search(r"kernelpagesize_kB=(\d+)", line)[1]) * 1024  # type: ignore[index]
            for node, pages in re.findall(r" N(\d+)=(\d+)", line):
                found[int(node)] += int(pages) * page
    return found


def thread_policies(pid: int) -> Counter[str]:
    policies: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with (task / "numa_maps").open() as maps:
            match = re.match(r"\S+ ((?:weighted interleave|prefer \(many\)|\S+?)\S*) ", maps.readline())
            policies[match[1] if match else "?"] += 1
    return policies


def status(pid: int) -> tuple[float | None, dict[str, float]]:
    """(distance, target shares by node) of the process as the running service tells them."""
    answer = subprocess.run(["hetmemctl", "explain", str(pid), "--json"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return None, {}
    told = json.loads(answer.stdout)
    task = told.get("task") or {}
    return task.get("distance"), told.get("target_shares") or {}


def bars(began: float, pid: int) -> float | None:
    """One line; gives the distance."""
    placed = anonymous_bytes(pid)
    total = sum(placed.values()) or 1
    distance, _ = status(pid)
    parts = []
    filled = ""
    for node, mark in ((0, "█"), (1, "▒")):
        share = placed[node] / total
        filled += mark * round(share * WIDTH)
        parts.append(f"node{node} {placed[node] >> 20:4d} MiB {share:6.1%}")
    shown = "    -" if distance is None else f"{distance:5.3f}"
    print(
        f"{time.monotonic() - began:6.1f} s  {filled[:WIDTH]:<{WIDTH}}  {'  '.join(parts)}  distance {shown}",
        flush=True,
    )
    return distance


def main() -> int:
    say("The machine: node 0 is DRAM with the CPUs, node 1 is CXL memory without any")
    subprocess.run(["numactl", "-H"], check=True)
    subprocess.run(["systemctl", "--no-pager", "--lines=0", "status", "hetmemd"], check=True)

    say(f"Redis runs and holds {KEYS} keys; no policy is there yet")
    pid = start_redis()
    digest = redis("debug", "digest")
    policies_before = thread_policies(pid)
    began = time.monotonic()
    bars(began, pid)
    print(f"Its threads' policies: {dict(policies_before)}")

    say(f"A policy is dropped into {DROPPED.parent}")
    print(POLICY.read_text())
    shutil.copy(POLICY, DROPPED)
    subprocess.run(["hetmemctl", "check"], check=True)

    home = CGROUPS / "demo.slice/redis"
    say(f"Redis is moved into {home}")
    home.mkdir(parents=True)
    (home / "cgroup.procs").write_text(str(pid))
    began = time.monotonic()
    wait_for("the policy", lambda: set(thread_policies(pid)) != set(policies_before))
    took = time.monotonic() - began
    print(f"Its threads' policies {took:.2f} s later: {dict(thread_policies(pid))}")

    reached = None
    while time.monotonic() - began < LIMIT:
        distance = bars(began, pid)
        if distance is not None and distance <= 0.02 and reached is None:
            reached = time.monotonic() - began
        if reached is not None and "--stay" not in sys.argv and time.monotonic() - began > reached + 2:
            break
        time.sleep(1.0)
    while "--stay" in sys.argv:
        bars(began, pid)
        time.sleep(5.0)

    say("What the service says of it")
    subprocess.run(["hetmemctl", "explain", str(pid)], check=True)
    subprocess.run(["hetmemctl", "status"], check=True)
    metrics = subprocess.run(
        ["curl", "-s", "http://127.0.0.1:9797/metrics"], check=True, capture_output=True, text=True
    ).stdout
    for line in metrics.splitlines():
        if re.match(r"hetmemd_(cgroup_(memory|target|distance)|moved|page_move|applications|pause_seconds_[cs])", line):
            print(line)

    placed, (distance, shares) = anonymous_bytes(pid), status(pid)
    total = sum(placed.values())
    far = placed[1] / total
    target = shares.get("1")
    intact = redis("debug", "digest") == digest
    say("The figures")
    print(
        f"threads treated            {sum(thread_policies(pid).values())}, policy in force {took:.2f} s after the move"
    )
    print(f"anonymous memory           {total >> 20} MiB, on node 1 {far:.2%}, the policy asks for {target or 0:.2%}")
    print(f"distance                   {distance}, reached after {reached and round(reached, 1)} s")
    print(f"Redis' data                {'as before' if intact else 'CHANGED'}")
    good = intact and reached is not None and target is not None and abs(far - target) <= 0.02
    print("The pages are where the policy says." if good else "The pages are NOT where the policy says.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""The campaign against the crash-safe act: tracers die by SIGKILL, and no target may notice.

    tests/campaigns/tracer_kills [--rounds N] [--seed S] [--log FILE]

Each round starts a tracer on a target that checks itself and kills it: in turn at a certain step of the act, and after
a random time while it goes over all threads. A batch of rounds ends with what the targets found out about themselves.
Finished batches stand in the log, a JSON object a line: started again with the same seed, the campaign goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.remote import process, wire
from hetmemd.remote.board import Board
from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, INTERLEAVE, ROOT, Acting, Target, build

BATCH = 250
LONGEST_LIFE = 0.006
"""Seconds that a tracer gets at most before it is killed at random: a few acts."""

AT_WORK = 1000
"""In place of a step: nobody counts."""

POLICIES = (INTERLEAVE, BIND)


@dataclass
class Tally:
    kills: Counter[str] = field(default_factory=Counter)
    """By the step at which the tracer died."""
    injections: int = 0
    """Acts that came to their end."""
    harm: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.injections += other.injections
        self.harm += other.harm


class Shared:
    """What a tracer tells until it is killed: the step it is at, and how many acts it has finished."""

    _LAYOUT = struct.Struct("<qq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.clear()

    def clear(self) -> None:
        self.step, self.finished = -1, 0
        self.tell()

    def tell(self) -> None:
        self._LAYOUT.pack_into(self._memory, 0, self.step, self.finished)

    def read(self) -> tuple[int, int]:
        step, finished = self._LAYOUT.unpack_from(self._memory, 0)
        return step, finished


def run_tracer(target: Target, tids: Sequence[int], first: int, die_at: int | None, shared: Shared) -> NoReturn:
    """In a process of its own: act on the threads, once where `die_at` is a step, else until killed."""
    try:

        def reached(step: int) -> None:
            if step == die_at:
                shared.step = step
                shared.tell()
                os.kill(os.getpid(), signal.SIGKILL)

        if die_at is not None:
            # Else the steps follow on each other as they always do, with nothing to count them.
            dying_tracer.install(reached)
        tracer = process.Tracer(ROOT, os.getppid())
        board = Board(Board.create())
        turn = first
        shared.step = AT_WORK
        shared.tell()
        while True:
            policy: Mempolicy = POLICIES[turn % len(POLICIES)]
            call, data = wire.set_mempolicy(policy)
            request = wire.Request(target.identity, tuple(tids), (call,), data, policy, sweep=True)
            board.clear()
            tracer.serve(request, board)
            done = board.read()[0]
            shared.finished += sum(1 for result in done if result.outcome is Outcome.APPLIED and result.pause_ns)
            shared.tell()
            if die_at is not None:
                os._exit(0)
            turn += 1
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def one_round(rng: random.Random, number: int, target: Target, shared: Shared, tally: Tally) -> None:
    tids = procfs.tids(ROOT, target.pid)
    at_step = number % 2 == 0
    die_at = number // 2 % dying_tracer.STEPS if at_step else None
    life = rng.random() * LONGEST_LIFE
    first = rng.randrange(2)
    chosen = [rng.choice(tids)] if at_step else rng.sample(tids, len(tids))
    shared.clear()
    child = os.fork()
    if not child:
        run_tracer(target, chosen, first, die_at, shared)
    if not at_step:
        # From when it is at work: a fork takes long in comparison.
        end = time.monotonic() + 10
        while shared.read()[0] != AT_WORK and time.monotonic() < end:
            time.sleep(0.0002)
        time.sleep(life)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    step, finished = shared.read()
    tally.injections += finished
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        tally.kills["anywhere" if step == AT_WORK else str(step)] += 1
    elif os.waitstatus_to_exitcode(status) != 0:
        tally.harm.append(f"round {number}: the tracer failed by itself")


def batch(folder: Path, seed: int, number: int) -> Tally:
    """One batch: fresh targets, `BATCH` rounds, and what the targets say."""
    rng = random.Random(f"{seed}/{number}")
    tally = Tally()
    shared = Shared()
    thirtytwo = ("-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector")
    commands: dict[str, list[str | Path]] = {
        "spin": [build(folder, "exact"), "spin"],
        "syscall": [build(folder, "exact"), "syscall"],
        "rseq": ["env", "GLIBC_TUNABLES=glibc.pthread.rseq=0", build(folder, "rseq")],
        "steady": [build(folder, "steady")],
        "thirtytwo": [build(folder, "thirtytwo", *thirtytwo)],
        "reading": [build(folder, "family"), "read"],
        # A filter that kills is another matter: a tracer that dies while it is suspended leaves the call to it.
        "confined": [build(folder, "filters"), "errno"],
    }
    names = list(commands)
    # Where the targets are all alive at once, two of them spin on one CPU: a few at a time is enough of that.
    rounds = [name for name in names for _ in range(BATCH // len(names) + 1)][:BATCH]
    with contextlib.ExitStack() as stack:
        current, target = "", None
        for turn, name in enumerate(rounds):
            if name != current:
                if target:
                    judge(current, target, tally)
                current, target = name, stack.enter_context(Target(commands[name]))
                target.expect("ready")
            assert target
            if target.process.poll() is not None:
                tally.harm.append(f"{name}: ended with status {target.process.returncode} in round {turn}")
                current = ""
                target = None
                continue
            one_round(rng, number * BATCH + turn, target, shared, tally)
        if target:
            judge(current, target, tally)
    return tally


def judge(name: str, target: Target, tally: Tally) -> None:
    """What the target found out about itself, after one more act by a tracer that lives."""
    try:
        if target.process.poll() is None:
            with Acting() as acting:
                for result in acting.apply(target, INTERLEAVE):
                    # A storm of signals may keep a thread from being called, but nothing that the dead left may.
                    if result.outcome is not Outcome.APPLIED and result.reason != "signals":
                        tally.harm.append(f"{name}: at the end {result}")
        if name in ("spin", "syscall"):
            os.kill(target.pid, signal.SIGTERM)
        told = target.finish().strip()
    except (AssertionError, OSError) as error:
        tally.harm.append(f"{name}: {error!r}")
        return
    words = told.split()
    found = dict(zip(words[::2], words[1::2], strict=False))
    for key in ("bad", "short", "lost", "mismatched", "broken", "misordered"):
        if found.get(key, "0") != "0":
            tally.harm.append(f"{name}: {told}")
    if len(words) == 1 and words != ["alive"]:
        tally.harm.append(f"{name}: {told}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="tracers to kill (1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="finished batches (/var/tmp/hetmemd-tracer-kills-SEED.jsonl)")
    options = parser.parse_args(arguments)
    log: Path = options.log or Path(f"/var/tmp/hetmemd-tracer-kills-{options.seed}.jsonl")
    tally, number = Tally(), 0
    if log.exists():
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            tally.add(Tally(Counter(entry["kills"]), entry["injections"], entry["harm"]))
            number = entry["batch"] + 1
        print(f"going on after batch {number - 1}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        while tally.kills.total() < options.rounds:
            begin = time.monotonic()
            latest = batch(Path(folder), options.seed, number)
            tally.add(latest)
            entry = {
                "batch": number,
                "kills": dict(latest.kills),
                "injections": latest.injections,
                "harm": latest.harm,
                "seconds": round(time.monotonic() - begin, 1),
            }
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            number += 1
            print(f"{tally.kills.total()} kills, {tally.injections} injections, harm {len(tally.harm)}", flush=True)
    by_step = sorted(
        tally.kills.items(), key=lambda item: (not item[0].isdigit(), int(item[0]) if item[0].isdigit() else 0)
    )
    print("kills by step: " + ", ".join(f"{step}: {count}" for step, count in by_step))
    print(f"{tally.kills.total()} kills, {tally.injections} whole injections, harm: {len(tally.harm)}")
    for harm in tally.harm:
        print(f"  {harm}", file=sys.stderr)
    return 1 if tally.harm else 0

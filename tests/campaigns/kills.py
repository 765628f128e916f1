"""The campaign against the crash-safe act: tracers die by SIGKILL, and no target may notice.

    tests/campaigns/tracer_kills [--rounds N] [--seed S] [--least N] [--many SHARE] [--injections N] [--state FILE]

Each round makes some whole acts on a program that checks itself, and then one in whose course the tracer is killed:
exactly before or after one of its system calls, the one that was hit least so far, or after a random time. Before the
next round on the same program every thread of it must have got on, and found nothing wrong.

Two things are known of a tracer that dies, and are not looked for. Some waits (epoll_wait, semtimedop and others, see
signal(7)) end with EINTR at any stop, which only the tracer could mend. For each death between the interruption and the
first registers that are set, or at random, one such wait is excused, and counted; any more is harm. And a program whose
seccomp filter kills for our calls dies with a tracer that had suspended the filter for a call: there no tracer dies
amid one, nor at random.

What was reached stands in the state file: interrupted, and started again, the campaign goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tests.campaigns.rounds import usual_steps
from tests.campaigns.tally import MANY, AnotherCampaign, State, Tally, by_call, call_of, digest, least, summary
from tests.campaigns.victims import KINDS, Victim
from tests.machine.remote_target import Acting, build

CHECKOUT = Path(__file__).resolve().parents[2]

_LOG_SECONDS = 10
_BATCH_SECONDS = 120
_BATCH = 1000
"""Rounds with the same victims, at most."""
ROUNDS = "import sys; sys.path.insert(0, sys.argv[1]); from tests.campaigns import rounds; rounds.main()"


class Lane:
    """A process that has batches of rounds made; the campaign's end of it."""

    def __init__(self, folder: Path, options: argparse.Namespace, stopping: int) -> None:
        self.connection, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            self._rest = b""
            return
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.connection.close()
            with theirs.makefile("rw") as file:
                for line in file:
                    for tally in _batch(folder, options, stopping, json.loads(line)):
                        _tell(file, tally)
                    _tell(file, None)
            status = 0
        except BrokenPipeError:
            pass
        finally:
            sys.stderr.flush()
            os._exit(status)

    def fileno(self) -> int:
        return self.connection.fileno()

    def ask(self, task: Mapping[str, Any]) -> None:
        self.connection.sendall(json.dumps(task).encode() + b"\n")

    def answers(self) -> list[Tally | None]:
        """What has come in since; None at the end of the batch."""
        got = self.connection.recv(1 << 20)
        if not got:
            raise RuntimeError("a lane of the campaign failed")
        *lines, self._rest = (self._rest + got).split(b"\n")
        return [Tally.from_json(fields) if (fields := json.loads(line)) else None for line in lines]


def _tell(file: TextIO, tally: Tally | None) -> None:
    json.dump(tally.as_json() if tally else None, file)
    file.write("\n")
    file.flush()


def _batch(folder: Path, options: argparse.Namespace, stopping: int, task: Mapping[str, Any]) -> Iterator[Tally]:
    """Fresh victims, rounds on them by a process of its own, and what the victims say at their end; bit by bit."""
    with contextlib.ExitStack() as stack:
        victims = {name: stack.enter_context(Victim(folder, name)) for name in options.targets}
        seed = f"{options.seed}/{task['batch']}"
        order = {
            **task,
            "seed": seed,
            "victims": [
                (name, victim.target.identity, victim.descriptor, victim.traits) for name, victim in victims.items()
            ],
            "stopping": stopping,
            "library": str(folder / "doom.so"),
            "whole": options.whole,
            "steps": options.steps,
            "many": options.many,
            "at_random": 0.0 if options.steps else options.at_random,
            "seconds": _BATCH_SECONDS,
        }
        harmed = set()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ROUNDS, CHECKOUT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[stopping, *(victim.descriptor for victim in victims.values())],
            text=True,
        ) as made:
            assert made.stdin and made.stdout
            made.stdin.write(json.dumps(order))
            made.stdin.close()
            for line in made.stdout:
                tally = Tally.from_json(json.loads(line))
                harmed |= {harm.partition(":")[0] for harm in tally.harm}
                yield tally
        if made.returncode:
            yield Tally(harm=[f"the rounds failed by themselves; batch {seed}"])
            return
        with Acting() as acting:
            for name in victims.keys() - harmed:
                if harm := victims[name].judge(acting):
                    yield Tally(harm=[f"{name}: {harm}; batch {seed}"])


class Campaign:
    def __init__(self, options: argparse.Namespace, state: State, folder: Path) -> None:
        self._options = options
        self._state = state
        self._seen: dict[str, dict[str, int]] = {}
        stopping = os.memfd_create("hetmemd-campaign")
        os.truncate(stopping, mmap.PAGESIZE)
        self._stopping = mmap.mmap(stopping, mmap.PAGESIZE)
        self._lanes = [Lane(folder, options, stopping) for _ in range(options.lanes)]
        self._before = state.seconds
        self._began = time.monotonic()
        self._done = Tally()
        """Since this start."""

    def run(self) -> bool:
        """Until all that was asked for is reached, or SIGINT; whether it is."""
        busy: set[Lane] = set()
        interrupted = False
        try:
            # Alone, for what it learns of the steps is for all.
            self._give(self._lanes[0], 0)
            busy = {self._lanes[0]}
            logged = time.monotonic()
            while busy:
                try:
                    ready, _, _ = select.select(list(busy), [], [], _LOG_SECONDS / 4)
                except KeyboardInterrupt:
                    interrupted = True
                    self._stopping[0] = 1
                    print("stopping", flush=True)
                    continue
                for lane in ready:
                    for tally in lane.answers():
                        if tally:
                            self._take(tally)
                        else:
                            busy.discard(lane)
                for lane in self._lanes:
                    rounds = self._rounds_wanted()
                    if not interrupted and rounds and self._seen and lane not in busy:
                        self._give(lane, rounds)
                        busy.add(lane)
                if time.monotonic() - logged >= _LOG_SECONDS:
                    logged = time.monotonic()
                    self._log()
        finally:
            for lane in self._lanes:
                lane.connection.close()
            # Afterwards: a later lane holds the earlier ones' connections too.
            for lane in self._lanes:
                os.waitpid(lane.pid, 0)
        return not interrupted

    def _give(self, lane: Lane, rounds: int) -> None:
        lane.ask(
            {
                "batch": self._state.batches,
                "rounds": rounds,
                "kills": self._state.tally.kills,
                "seen": self._seen,
            }
        )
        self._state.batches += 1

    def _take(self, tally: Tally) -> None:
        for harm in tally.harm:
            print(f"HARM {harm}", file=sys.stderr, flush=True)
        self._state.tally.add(tally)
        self._done.add(tally)
        self._state.seconds = self._before + time.monotonic() - self._began
        if tally.seen:
            self._seen = tally.seen
        self._state.save(self._options.state)

    def _lacking(self) -> tuple[int, int, int]:
        """Kills and injections that are still wanted, and the sum of what single steps lack."""
        tally = self._state.tally
        total = by_call(tally.kills)
        return (
            max(0, self._options.rounds - tally.kills.total()),
            max(0, self._options.injections - tally.injections),
            sum(max(0, self._least(call) - total[call]) for call in self._calls()),
        )

    def _least(self, call: str) -> int:
        least: float = self._options.least
        return round(least * self._options.many if call.startswith(MANY) else least)

    def _calls(self) -> set[str]:
        """Of the act, before and after which tracers are to die."""
        return {call_of(step) for step in usual_steps(self._seen, self._options.steps)}

    def _rounds_wanted(self) -> int:
        """Of the next batch."""
        kills, injections, at_steps = self._lacking()
        if len(self._state.tally.harm) >= self._options.harm:
            return 0
        rounds: int = max(kills, at_steps, injections // max(1, self._options.whole))
        return min(_BATCH, -(-rounds // len(self._lanes)))

    def _log(self) -> None:
        tally = self._state.tally
        seconds = max(1e-9, self._state.seconds - self._before)
        kills, injections, at_steps = self._lacking()
        rates = [self._done.kills.total() / seconds, self._done.injections / seconds]
        ahead = max(max(kills, at_steps * 1.1) / rates[0] if rates[0] else 0, injections / rates[1] if rates[1] else 0)
        print(
            f"{time.strftime('%H:%M:%S')} {tally.kills.total()} kills, "
            f"{least(by_call(tally.kills), self._calls())}, "
            f"{tally.injections} injections, harm {len(tally.harm)}; "
            f"{rates[0]:.0f} kills/s, {rates[1]:.0f} injections/s, about {ahead / 60:.0f} min left",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="tracers to kill (1000)")
    parser.add_argument("--least", type=int, default=0, help="of them at each step, at least (0)")
    parser.add_argument("--many", type=float, default=1, help="of that, at steps of acts of several calls (1)")
    parser.add_argument("--at-random", type=float, default=0.05, help="share of them at no certain step (0.05)")
    parser.add_argument("--injections", type=int, default=0, help="acts that come to their end, at least (0)")
    parser.add_argument("--whole", type=int, default=4, help="whole acts per kill (4)")
    parser.add_argument("--harm", type=int, default=20, help="after so much there is no going on (20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="(/var/tmp/hetmemd-tracer-kills-SEED.json)")
    parser.add_argument("--lanes", type=int, default=os.cpu_count(), help="processes at work (one per processor)")
    parser.add_argument("--targets", nargs="+", choices=list(KINDS), default=list(KINDS), help="only on these")
    parser.add_argument("--steps", nargs="+", default=[], metavar="STEP", help='only there: "set 1", "after set 1"')
    options = parser.parse_args(arguments)
    if options.many <= 0:
        parser.error("--many is more than 0")
    # Also where it was started in the background, which has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options.state = options.state or Path(f"/var/tmp/hetmemd-tracer-kills-{options.seed}.json")
    try:
        state = State.load(options.state, options.seed, digest(CHECKOUT / "hetmemd"))
    except AnotherCampaign as error:
        print(error, file=sys.stderr)
        return 2
    if state.batches:
        print(f"going on after batch {state.batches - 1}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS.values():
            build(Path(folder), kind.program)
        library: list[str | Path] = [CHECKOUT / "tests/campaigns/doom.c", "-o", Path(folder) / "doom.so"]
        subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", *library], check=True)
        whole = Campaign(options, state, Path(folder)).run()
    for line in summary(state.tally):
        print(line)
    for harm in state.tally.harm:
        print(f"  {harm}", file=sys.stderr)
    print(f"{state.seconds:.0f} s; seed {state.seed}, code {state.code}" + ("" if whole else "; interrupted"))
    return 1 if state.tally.harm else 0 if whole else 130

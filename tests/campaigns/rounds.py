"""Rounds of the campaign: whole acts on a victim, one in which the tracer dies, and what the victims find out.

A program of its own, with little in it: it is forked for every kill.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote import regions, wire
from hetmemd.remote.board import Board
from hetmemd.remote.process import Tracer
from hetmemd.remote.regions import Bind
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.remote.wire import Request
from tests.campaigns import doomed
from tests.campaigns.doomed import Death, Executioner
from tests.campaigns.tally import MANY, RANDOM, Tally, by_call, call_of
from tests.campaigns.watched import ROOT, Watched

_INTERLEAVE = Mempolicy(Mode.INTERLEAVE, frozenset({0}), Flag.STATIC_NODES)
_BIND = Mempolicy(Mode.BIND, frozenset({0}), Flag.STATIC_NODES)

CALLS = 3

_LONGEST_LIFE = 0.006
"""Seconds that a tracer gets at most before it is killed at random: some acts."""
_LOOKS = 16
"""Acts of each kind on each victim that are looked at, to learn the steps."""
_TELL_SECONDS = 5.0
_CHEAPLY = 0.8
"""Of the rounds where there is a choice: without a victim that takes a whole processor."""
_USUAL = 0.3
"""Of the acts on a victim: a step that fewer come by is not worth waiting for. Deaths at random come by those too."""

_OF_A_CALL = frozenset({"set", "resume", "wait", "get"})
"""Steps that every further call in a stop has once more."""

_HARMLESS = frozenset({"signals", "stub", "short-io", "uninterruptible"})
"""Reasons to leave a victim alone for now."""


class Rounds:
    """On victims that others started, and in a process without children: the tracer's own waits are for any child."""

    def __init__(self, victims: Sequence[Watched], executioner: Executioner, seed: str, whole: int) -> None:
        """`whole` are the acts that come to their end, per round, in the mean."""
        self._victims = {victim.name: victim for victim in victims}
        self._executioner = executioner
        self._tracer = Tracer(ROOT, os.getppid())
        self._board = Board(Board.create())
        self._seed = seed
        self._whole = whole
        self._now = "before the first kill"
        """What is being done."""
        self._kills: Counter[str] = Counter()
        """All that were made here, when the tally has been told already."""
        self.tally = Tally()

    def learn(self) -> None:
        """Which steps there are, by looking on."""
        rng = random.Random(f"{self._seed}/learn")
        for victim in self._victims.values():
            victim.work(True)
            for prefix in ("", MANY) if victim.arena[1] else ("",):
                steps: Counter[str] = Counter()
                for _ in range(_LOOKS):
                    self._serve(victim, self._request(rng, victim, prefix))
                    death = self._executioner.at_step(self._tracer, self._request(rng, victim, prefix), None)
                    self._count(victim, death.results)
                    wanted = survivable(death.steps) if victim.is_killed else death.steps
                    steps.update({f"{prefix}{step}" for step in wanted})
                self.tally.seen[victim.name] = self.tally.seen.get(victim.name, {}) | dict(steps)
            victim.remember()
            victim.newly_interrupted()
            victim.work(False)

    def go(
        self, number: int, kills: Counter[str], usual: Mapping[str, Sequence[str]], at_random: float, many: float
    ) -> None:
        """One round. `kills` are those before, for the step that needs one most: `usual` are steps, and on which
        victims. `at_random` is the share of rounds in which the tracer dies at no certain step,
        `many` how often it is to die at a step of several calls, for each time that it dies at one of a single call."""
        rng = random.Random(f"{self._seed}/{number}")
        if rng.random() < at_random:
            step, candidates = RANDOM, [victim for victim in self._victims.values() if not victim.is_killed]
        else:
            so_far = kills + self._kills
            total = by_call(so_far)
            # Of those that need one alike, any.
            step = min(
                usual,
                key=lambda step: (
                    total[call_of(step)] / (many if step.startswith(MANY) else 1),
                    so_far[step],
                    rng.random(),
                ),
            )
            candidates = [self._victims[name] for name in usual[step] if name in self._victims]
        if rng.random() < _CHEAPLY:
            candidates = [victim for victim in candidates if not victim.is_dear] or candidates
        if not candidates:
            return
        victim = rng.choice(candidates)
        victim.work(True)
        victim.remember()
        self._now = f"batch {self._seed} round {number}, amid whole acts"
        # With none the tracer that is to die may find what the last one left.
        for _ in range(rng.randrange(2 * self._whole + 1)):
            # Those with several calls are a part of the whole ones too.
            prefix = MANY if victim.arena[1] and rng.random() < 0.2 else ""
            self._serve(victim, self._request(rng, victim, prefix))
        if not self._excuse(victim, 0):
            return
        if step == RANDOM:
            self._die_at_random(rng, victim)
            excused = 1
        else:
            death = self._die_at(rng, victim, step)
            # Between the interruption and the first registers that are set there is nobody who could mend an EINTR.
            excused = int(death.died and "after interrupt 1" in death.steps and "after set 1" not in death.steps)
        self._now = f"batch {self._seed} round {number}, killed {step}"
        victim.remember()
        if self._look(victim):
            self._excuse(victim, excused)
        victim.work(False)

    def _die_at(self, rng: random.Random, victim: Watched, step: str) -> Death:
        prefix = MANY if step.startswith(MANY) else ""
        death = self._executioner.at_step(self._tracer, self._request(rng, victim, prefix), step.removeprefix(prefix))
        self._count(victim, death.results)
        if death.died:
            self._killed(victim, step)
        else:
            self.tally.missed += 1
        return death

    def _die_at_random(self, rng: random.Random, victim: Watched) -> None:
        tids = victim.tids()
        requests = [
            self._made(victim, rng.sample(tids, len(tids)), policy, "")
            for policy in (_INTERLEAVE, _BIND)
            for _ in range(2 if rng.random() < 0.5 else 1)
        ]
        if victim.arena[1]:
            requests.append(self._made(victim, [rng.choice(tids)], _BIND, MANY))
        finished, is_amid = self._executioner.at_random(self._tracer, requests, rng.random() * _LONGEST_LIFE)
        self.tally.injections += finished
        self.tally.amid += is_amid
        self._killed(victim, RANDOM)

    def _killed(self, victim: Watched, step: str) -> None:
        self._kills[step] += 1
        self.tally.kills[step] += 1
        self.tally.where[f"{victim.name}: {step}"] += 1

    def tell(self) -> None:
        """Print what has come to be since this was called last."""
        print(json.dumps(self.tally.as_json()), flush=True)
        self.tally = Tally()

    def _look(self, victim: Watched) -> bool:
        """Whether it is well; one that is not takes no further part."""
        harm = victim.harm()
        if harm:
            self._condemn(victim, harm)
            return False
        return True

    def _excuse(self, victim: Watched, times: int) -> bool:
        """Whether no more waits than these ended with EINTR."""
        interrupted = victim.newly_interrupted()
        if interrupted > times:
            self._condemn(victim, f"{interrupted} waits ended with EINTR")
            return False
        self.tally.interrupted += interrupted
        return True

    def _note(self, victim: Watched, result: ThreadResult) -> None:
        status = procfs.status(ROOT, victim.identity.pid, result.tid)
        state = ", ".join(f"{key} {status.get(key)}" for key in ("State", "TracerPid"))
        self.tally.harm.append(f"{victim.name}: {result}, now {state}; {self._now}")

    def _condemn(self, victim: Watched, harm: str) -> None:
        self.tally.harm.append(f"{victim.name}: {harm}; {self._now}")
        self._victims.pop(victim.name, None)

    def _request(self, rng: random.Random, victim: Watched, prefix: str) -> Request:
        """An act on one thread that will have something to do."""
        tid = rng.choice(victim.tids())
        shown = procfs.thread_policy(ROOT, victim.identity.pid, tid)
        return self._made(victim, [tid], _BIND if shown == _INTERLEAVE else _INTERLEAVE, prefix)

    def _made(self, victim: Watched, tids: Sequence[int], policy: Mempolicy, prefix: str) -> Request:
        if not prefix:
            call, data = wire.set_mempolicy(policy)
            return Request(victim.identity, tuple(tids), (call,), data, policy, sweep=True)
        calls, data = regions.calls(_parts(victim, policy))
        return Request(victim.identity, tuple(tids), calls, data, None, sweep=True, once=True)

    def _serve(self, victim: Watched, request: Request) -> None:
        self._board.clear()
        self._tracer.serve(request, self._board)
        self._count(victim, self._board.read()[0])

    def _count(self, victim: Watched, results: Sequence[ThreadResult]) -> None:
        for result in results:
            if doomed.was_injected(result):
                self.tally.injections += 1
                if any(result.errnos):
                    self._note(victim, result)
            elif result.outcome is not Outcome.APPLIED:
                self.tally.declined[result.reason] += 1
                if result.reason not in _HARMLESS and victim.is_alive():
                    self._note(victim, result)


def survivable(steps: Sequence[str]) -> list[str]:
    """Without those that may lie between sending the thread for its first call and the end of the last one.

    How many calls there is time for is different from act to act, and so is where the later ones of these steps lie.
    """
    sent = steps.index("after set 1") if "after set 1" in steps else len(steps)
    left = []
    for index, step in enumerate(steps):
        _, name, number = step.split()
        if name not in _OF_A_CALL or (index < sent and number == "1"):
            left.append(step)
    return left


def usual_steps(seen: Mapping[str, Mapping[str, int]], wanted: Sequence[str] = ()) -> dict[str, list[str]]:
    """Step -> victims on which acts usually come by it. `wanted`: only those that contain one of these texts."""
    usual: dict[str, list[str]] = {}
    for name, steps in seen.items():
        for step, times in steps.items():
            acts = steps[f"{MANY if step.startswith(MANY) else ''}before seize 1"]
            if times >= _USUAL * acts and (not wanted or any(text in step for text in wanted)):
                usual.setdefault(step, []).append(name)
    return {step: usual[step] for step in sorted(usual)}


def main() -> None:
    """Makes the rounds of one batch, given on standard input, and prints their tally, bit by bit."""
    task = json.load(sys.stdin)
    victims = [
        Watched(name, ProcessId(*identity), descriptor, *traits)
        for name, identity, descriptor, traits in task["victims"]
    ]
    stopping = mmap.mmap(task["stopping"], mmap.PAGESIZE)
    rounds = Rounds(victims, Executioner(task["library"]), task["seed"], task["whole"])
    gc.disable()
    gc.freeze()
    seen = task["seen"]
    if not seen:
        rounds.learn()
        seen = rounds.tally.seen
    rounds.tell()
    usual = usual_steps(seen, task["steps"])
    told = time.monotonic()
    end = told + task["seconds"]
    for number in range(task["rounds"]):
        now = time.monotonic()
        if stopping[0] or now > end:
            break
        if now > told + _TELL_SECONDS:
            told = now
            rounds.tell()
        rounds.go(number, Counter(task["kills"]), usual, task["at_random"], task["many"])
    rounds.tell()


def _parts(victim: Watched, policy: Mempolicy) -> list[Bind]:
    """Of the victim's arena."""
    address, length = victim.arena
    part = length // CALLS // 4096 * 4096
    return [Bind(address + part * index, part, policy) for index in range(CALLS)]

"""What a campaign has come to, and the file in which it stands, so that it can be interrupted and go on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RANDOM = "at random"
"""In place of a step."""

MANY = "many "
"""Before the steps of an act that makes several calls in one stop."""


class AnotherCampaign(Exception):
    """The file is of another seed, or of other code."""


@dataclass
class Tally:
    kills: Counter[str] = field(default_factory=Counter)
    """By the step at which the tracer died."""
    where: Counter[str] = field(default_factory=Counter)
    """The same by `VICTIM: STEP`."""
    amid: int = 0
    """Of the deaths at random, those amid an act: the others fell between two."""
    injections: int = 0
    """Acts that came to their end."""
    missed: int = 0
    """Rounds in which the act did not come by the step: a signal or a wait that ended took it another way."""
    interrupted: int = 0
    """Waits that a tracer's death left with the EINTR that the kernel ends them with at any stop (signal(7))."""
    declined: Counter[str] = field(default_factory=Counter)
    """Acts that were declined, by reason."""
    harm: list[str] = field(default_factory=list)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each act that was only looked at, the steps it came by: VICTIM -> step -> times."""

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.where += other.where
        self.amid += other.amid
        self.injections += other.injections
        self.missed += other.missed
        self.interrupted += other.interrupted
        self.declined += other.declined
        self.harm += other.harm
        for name, steps in other.seen.items():
            self.seen[name] = dict(Counter(self.seen.get(name, {})) + Counter(steps))

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Tally:
        return Tally(
            Counter(fields["kills"]),
            Counter(fields["where"]),
            fields["amid"],
            fields["injections"],
            fields["missed"],
            fields["interrupted"],
            Counter(fields["declined"]),
            list(fields["harm"]),
            fields["seen"],
        )


@dataclass
class State:
    seed: int
    code: str
    batches: int = 0
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        unfinished = path.with_name(path.name + ".new")
        unfinished.write_text(json.dumps({**vars(self), "tally": self.tally.as_json()}, indent=1))
        unfinished.replace(path)

    @staticmethod
    def load(path: Path, seed: int, code: str) -> State:
        """`AnotherCampaign` where what stands there cannot be gone on with."""
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            return State(seed, code)
        if fields["seed"] != seed:
            raise AnotherCampaign(f"{path} is of seed {fields['seed']}")
        if fields["code"] != code:
            raise AnotherCampaign(f"{path} is of other code of the act: remove it, or choose another --state")
        return State(seed, code, fields["batches"], fields["seconds"], Tally.from_json(fields["tally"]))


def digest(package: Path) -> str:
    """Of the code that the act is made of."""
    total = hashlib.sha256()
    for path in sorted([*(package / "remote").glob("*.py"), *(package / "kernel").glob("*.py")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def call_of(step: str) -> str:
    """`many set 1` of `many before set 1`: the step is the call, and the tracer died before or after it."""
    return step.replace("before ", "").replace("after ", "")


def by_call(kills: Mapping[str, int]) -> Counter[str]:
    total: Counter[str] = Counter()
    for step, count in kills.items():
        if step != RANDOM:
            total[call_of(step)] += count
    return total


def summary(tally: Tally) -> list[str]:
    """The result, as lines."""
    total = by_call(tally.kills)
    lines = []
    for call in sorted(total, key=_place):
        *prefix, name, number = call.split()
        before, after = (tally.kills[" ".join([*prefix, when, name, number])] for when in ("before", "after"))
        lines.append(f"{call:20} {before:8d} before {after:8d} after")
    return [
        "kills at each step (system call of the act, which was never made, or just done):",
        *lines,
        f"{RANDOM:20} {tally.kills[RANDOM]:8d}, {tally.amid} of them amid an act",
        f"waits left with the EINTR that they end with at any stop, for nobody could mend it: {tally.interrupted}",
        "declined: " + (", ".join(f"{reason} {count}" for reason, count in sorted(tally.declined.items())) or "none"),
        f"{tally.kills.total()} kills, {least(total, total)}, "
        f"{tally.injections} whole injections, harm: {len(tally.harm)}",
    ]


def least(total: Mapping[str, int], calls: Iterable[str]) -> str:
    """The smallest numbers, as words, for these calls."""
    single = [total.get(call, 0) for call in calls if not call.startswith(MANY)]
    many = [total.get(call, 0) for call in calls if call.startswith(MANY)]
    return (
        f"at least {min(single, default=0)} at each of {len(single)} steps "
        f"({min(many, default=0)} at each of {len(many)} where several calls are made)"
    )


_ORDER = ("seize", "look", "interrupt", "wait", "get", "dispatch", "rseq", "read", "options", "write", "peek", "set")


def _place(call: str) -> tuple[bool, int, int, str]:
    """Roughly the order in which they come by."""
    words = call.split()
    place = _ORDER.index(words[-2]) if words[-2] in _ORDER else len(_ORDER)
    return len(words) > 2, place, int(words[-1]), words[-2]

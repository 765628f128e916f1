"""What holds for a cgroup and why, as plain data: the answer of `hetmemctl explain`, with the daemon and without."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hetmemd.kernel.mempolicy import NO_FLAGS, Flag, Mode
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.policy import language, library, pattern, surroundings
from hetmemd.policy.effective import Effective, Handling, Placement, Source
from hetmemd.policy.faults import shown
from hetmemd.policy.resolve import resolve

MOST_LEVELS = 256
"""Of a cgroup that is asked for by name."""


def answer(effective: Effective) -> dict[str, Any]:
    """JSON-ready. `effective` is the placement, also where it is blocked: `state` says whether anything is applied."""
    return {
        "cgroup": effective.cgroup,
        "state": effective.state,
        "effective": _placement(effective.placement or effective.wanted),
        "own": _source(effective.own),
        "inherited_from": _source(effective.inherited_from),
        "rules": list(effective.rules),
        "losers": [{"file": loser.file, "line": loser.line, "why": loser.why} for loser in effective.losers],
        "notes": [*effective.notes, *_remarks(effective)],
        "handling": asdict(effective.handling),
        "buckets": [asdict(bucket) for bucket in effective.buckets],
        "wall": None if effective.wall is None else sorted(effective.wall),
    }


def offline(root: Root, cgroup: str, defaults: Handling | None = None) -> dict[str, Any]:
    """The answer for a cgroup of the machine below `root`, which need not exist there (M2). Nothing is written.

    `defaults` are those of that machine's /etc/hetmemd.toml, the built-in ones without.

    `ValueError` where `cgroup` is no path of a cgroup; `OSError` for what is there but unreadable.
    """
    path = cgroup_path(cgroup)
    files = library.load(root, keep=False)
    machine = topology.read(root)
    effective = resolve(surroundings.facts(root, path), files, machine, defaults, only=[path])[path]
    found = answer(effective)
    broken = [f"{file.path} is {file.state}: {file.faults[0]}" for file in files.files if file.faults]
    found["notes"] += [*files.notes, *broken]
    return found


def cgroup_path(text: str) -> str:
    """`/a/b` from what a person types: a trailing slash is dropped. `ValueError` where it is no such path."""
    if not text.startswith("/"):
        raise ValueError(f"a cgroup is named by its path below the cgroup root, which begins with /, not {shown(text)}")
    path = text.rstrip("/")
    if why := beyond(path):
        raise ValueError(why)
    levels = path.split("/")[1:]
    if any(level in ("", ".", "..") for level in levels):
        raise ValueError(f"not a path of a cgroup: {shown(text)}")
    return "/" + "/".join(levels)


def beyond(path: str) -> str:
    """Why no policy is looked for there, in words: every level above has its own. Empty where it is."""
    if len(path) > pattern.LONGEST:
        return f"the path of a cgroup has no more than {pattern.LONGEST} characters, and this has {len(path)}"
    if (levels := path.count("/")) > MOST_LEVELS:
        return f"a cgroup is looked up to {MOST_LEVELS} levels deep, and this is at {levels}"
    return ""


def _placement(placement: Placement | None) -> dict[str, Any]:
    """Where nothing is asked for, what the kernel does by itself: mode default."""
    if placement is None:
        return {"mode": "default", "nodes": [], "weights": {}, "flags": [], "home_node": None, "memory": ["all"]}
    policy = placement.mempolicy
    return {
        "mode": policy.mode.word,
        "nodes": sorted(policy.nodes),
        "weights": {str(node): weight for node, weight in sorted(placement.weights.items())},
        "flags": [word for word, flag in language.FLAGS.items() if flag in policy.flags],
        "home_node": placement.home_node,
        "memory": list(placement.memory),
    }


def _source(source: Source | None) -> dict[str, Any] | None:
    return None if source is None else {"path": source.cgroup, "file": source.file, "line": source.line}


def _remarks(effective: Effective) -> list[str]:
    """What follows from the kernel's way with a policy, beyond what was decided."""
    if effective.placement is None or effective.placement.mempolicy.mode is Mode.DEFAULT:
        return []
    policy = effective.placement.mempolicy
    remarks: list[str] = []
    if effective.wall is not None and policy.mode is not Mode.BIND:
        spill = f"{policy.mode.word} can spill over the wall when its nodes are full"
        remarks.append(f"{spill}: containment is cpuset.mems (I5)")
    if policy.flags & Flag.NUMA_BALANCING == NO_FLAGS:
        what = "tasks with this policy" if "all" in effective.placement.memory else "regions that this policy binds"
        remarks.append(f"{what} are left alone by automatic NUMA balancing (L6)")
    return remarks

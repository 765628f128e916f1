"""What a person is told of the regions of a process: the same comparison that the daemon makes, as plain data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hetmemd.engine.decide import issuable, shows
from hetmemd.engine.regionwise import Asked, Verdict, decide_regions
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import DEFAULT, NO_FLAGS, Mempolicy, Mode
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.memory import regions
from hetmemd.memory.scope import scope
from hetmemd.policy import language

JSONObject = dict[str, Any]


def of_process(root: Root, pid: int, told: JSONObject | None) -> JSONObject:
    """Regions, sums by kind, and why each is as it is. Read with the caller's own rights.

    `told` is the service's answer about the process (`report.answers.explain`), None where there is none: then nothing
    is asked of it. `OSError`: ENOENT or ESRCH gone, EACCES or EPERM no right (PTRACE_MODE_READ).
    """
    tid = procfs.living_thread(root, pid)
    found = regions.read(root, pid, tid) if tid is not None else []
    asked = asked_of(told)
    if asked.policy:
        # What the service issues on this kernel: without it, what hetmemd bound would pass for the application's.
        asked = replace(asked, policy=issuable(asked.policy, topology.read(root)))
    own = regions.task_policy(root, pid, tid) or DEFAULT
    allowed = procfs.mems_allowed(procfs.status(root, pid, tid))
    issued = {asked.policy} if asked.policy else set()
    is_foreign = asked.policy is not None and own != DEFAULT and not shows(own, asked.policy, allowed)
    decision = decide_regions(found, asked, allowed, issued=issued, is_foreign=is_foreign)
    return {
        "task_policy": str(own),
        "regions": [_region(verdict, asked) for verdict in decision.verdicts],
        "kinds": _kinds(found),
    }


def asked_of(told: JSONObject | None) -> Asked:
    """The policy in an answer of the service."""
    if told is None or told["state"] not in ("active", "conflict") or told["effective"]["mode"] == "default":
        return Asked(None, scope(("all",)))
    said = told["effective"]
    flags = NO_FLAGS
    for word in said["flags"]:
        flags |= language.FLAGS[word]
    mode: Mode = language.MODES[said["mode"]]
    handling = told.get("handling", {})
    return Asked(
        Mempolicy(mode, frozenset(said["nodes"]), flags),
        scope(tuple(said["memory"])),
        said["home_node"],
        handling.get("min_region", 0),
        handling.get("foreign") == "override",
    )


def _region(verdict: Verdict, asked: Asked) -> JSONObject:
    region = verdict.region
    return {
        "start": region.start,
        "end": region.end,
        "kind": region.kind,
        "permissions": region.permissions,
        "name": region.name,
        "policy": str(region.policy) if region.policy else "unknown",
        "is_bound": region.is_bound,
        "pages_by_node": {str(node): pages for node, pages in sorted(region.pages_by_node.items())},
        "page_size": region.page_size,
        "mapmax": region.mapmax,
        "state": verdict.state,
        "why": why(verdict, asked),
    }


_WHY = {
    "thread": "a thread has a policy of its own (T4)",
    "no-allowed-node": "its cpuset allows none of the policy's nodes (I6)",
    "shared": "other processes map it, or may",
    "no-huge-pages": "huge pages are bound only where its nodes have free ones",
    "min_region": "smaller than min_region",
}


def why(verdict: Verdict, asked: Asked) -> str:
    """One line: why the region has the policy that it has."""
    region, kind = verdict.region, verdict.region.kind
    if kind == "special":
        return "the kernel's own, or a device: never touched"
    if verdict.state == "foreign":
        by_region = "bound by the application (T4)"
        return _WHY.get(verdict.reason, by_region) if verdict.reason else by_region
    if verdict.state == "left":
        return _WHY[verdict.reason]
    if verdict.state == "change":
        return "not ours any more: to be undone" if verdict.reason == "undo" else f"to be bound: {verdict.wanted}"
    if verdict.state == "bound":
        return "kept local, as the policy leaves it out" if verdict.wanted != asked.policy else "bound by the policy"
    if asked.policy is None:
        return "the task's: no policy reaches it"
    if kind == "guard":
        return "no access: nothing to place"
    if kind in ("exec", "file"):
        return _of_file(region.left_out, kind in asked.scope.classes, asked)
    if kind not in asked.scope.classes:
        return "the policy is about other classes"
    return "the task's policy is the policy's"


def _of_file(left_out: str, is_in_scope: bool, asked: Asked) -> str:
    if left_out == "shared":
        return "shared with others: left alone"
    if is_in_scope:
        return "moved, not bound: the page cache ignores a region's policy"
    is_left = asked.scope.is_inclusive or asked.scope.is_all
    return "the policy is about other classes" if is_left else "moved home, as the policy leaves it out"


def _kinds(found: list[regions.Region]) -> JSONObject:
    """Pages of 4 KiB by node and the number of regions, for each kind that there is."""
    kinds: JSONObject = {}
    for region in found:
        told = kinds.setdefault(region.kind, {"regions": 0, "pages_by_node": {}})
        told["regions"] += 1
        for node, pages in region.pages_by_node.items():
            told["pages_by_node"][str(node)] = told["pages_by_node"].get(str(node), 0) + pages
    return kinds

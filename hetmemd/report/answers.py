"""What `hetmemctl` is told, as JSON: the shapes of `status` and `explain`, made from a snapshot. Pure.

`schema` is raised when something is renamed or taken away; something new does not raise it. Node ids are strings where
they are keys, as JSON has no others; sizes are bytes, times seconds since the epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hetmemd.policy.effective import Effective
from hetmemd.policy.explain import answer
from hetmemd.report.snapshot import CgroupView, Snapshot, TaskView

SCHEMA = 1

JSONObject = dict[str, Any]


def status(snapshot: Snapshot) -> JSONObject:
    """The whole daemon at a glance; cgroups in the order of their paths."""
    return {
        "schema": SCHEMA,
        "version": snapshot.version,
        "started_at": snapshot.started_at,
        "at": snapshot.at,
        "observing": snapshot.observing,
        "observing_by": snapshot.switched_by,
        "held": [
            {"kind": hold.kind, "what": hold.what, "why": hold.why, "since": hold.since, "detail": hold.detail}
            for hold in snapshot.holds
        ],
        "crashes_after_act": snapshot.crashes,
        "cgroups": [cgroup_summary(view) for view in sorted(snapshot.cgroups, key=lambda view: view.effective.cgroup)],
        "files": [{"path": file.path, "state": file.state, "faults": list(file.faults)} for file in snapshot.files],
        "sources": [
            {
                "name": source.name,
                "up": source.up,
                "events": source.events,
                "losses": source.losses,
                "note": source.note,
            }
            for source in snapshot.sources
        ],
        "notes": list(snapshot.notes),
        "movers": [{"name": mover.name, "state": mover.state, "how": mover.how} for mover in snapshot.movers],
        "kernel_weights": None if snapshot.kernel_weights is None else by_node(snapshot.kernel_weights),
        "scans": snapshot.scans,
        "last_scan_seconds": snapshot.last_scan_seconds,
    }


def cgroup_summary(view: CgroupView) -> JSONObject:
    """One line of `status`: what holds, where the memory is, and how many processes have which outcome."""
    told = answer(view.effective)
    return {
        "cgroup": view.effective.cgroup,
        "state": view.effective.state,
        "effective": told["effective"],
        "own": told["own"],
        "inherited_from": told["inherited_from"],
        "tasks": dict(sorted(Counter(task.outcome for task in view.tasks).items())),
        **_measured(view),
    }


def explain(effective: Effective, view: CgroupView | None, pid: int | None = None) -> JSONObject:
    """Why a cgroup has the policy that it has, and how its processes stand; with `pid`, that process alone.

    `view` is None for a cgroup that no policy reaches.
    """
    tasks = view.tasks if view else ()
    told: JSONObject = {
        "schema": SCHEMA,
        **answer(effective),
        **(_measured(view) if view else NOT_MEASURED),
    }
    told["notes"] += view.notes if view else ()
    if pid is None:
        return {**told, "tasks": [task_view(task) for task in tasks]}
    found = next((task for task in tasks if task.pid == pid), None)
    return {**told, "task": task_view(found) if found else None}


def task_view(task: TaskView) -> JSONObject:
    return {
        "pid": task.pid,
        "comm": task.comm,
        "outcome": task.outcome,
        "reason": task.reason,
        "note": task.note,
        "threads": task.threads,
        "policy_now": task.policy_now,
        "bytes_by_node": by_node(task.bytes_by_node),
        "left_out": dict(sorted(task.left_out.items())),
        "distance": task.distance,
        "measured_at": task.measured_at,
        "last_action": task.last_action,
        "last_action_at": task.last_action_at,
    }


def by_node(values: Mapping[int, Any]) -> JSONObject:
    return {str(node): value for node, value in sorted(values.items())}


NOT_MEASURED: JSONObject = {
    "bytes_by_node": {},
    "left_out": {},
    "target_shares": {},
    "distance": None,
    "measured_at": 0.0,
}


def _measured(view: CgroupView) -> JSONObject:
    return {
        "bytes_by_node": by_node(view.bytes_by_node),
        "left_out": dict(sorted(view.left_out.items())),
        "target_shares": by_node(view.target_shares),
        "distance": view.distance,
        "measured_at": view.measured_at,
    }

"""What a person sees of each verb, as lines of text. Pure: takes the JSON that `--json` prints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hetmemd.kernel import nodelist
from hetmemd.policy.faults import printable

Answer = Mapping[str, Any]

_MIB = 1 << 20
_COLOURS = {"good": "32", "doubtful": "33", "bad": "31", "title": "1"}
_STATES = {
    "active": "good",
    "applied": "good",
    "in-force": "good",
    "up": "good",
    "blocked": "bad",
    "conflict": "doubtful",
    "last-good": "bad",
    "rejected": "bad",
    "down": "bad",
    "on": "doubtful",
    "unknown": "doubtful",
    "refused": "bad",
    "contested": "doubtful",
    "unsteerable": "doubtful",
    "deferred": "doubtful",
    "foreign": "doubtful",
}


class Paint:
    """Colours, where they are wanted."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __call__(self, kind: str, text: str) -> str:
        colour = _COLOURS.get(_STATES.get(kind, kind))
        return f"\033[{colour}m{text}\033[0m" if self._wanted and colour else text


def status(told: Answer, paint: Paint, now: float | None = None) -> list[str]:
    now = time.time() if now is None else now
    lines = [f"hetmemd {told['version']}, started {_ago(told['started_at'], now)}, state of {_ago(told['at'], now)}"]
    if told["observing"]:
        by = f" (by {told['observing_by']})" if told.get("observing_by") else ""
        lines.append(paint("bad", "OBSERVING: nothing is applied or moved, only measured") + printable(by))
    if told.get("held"):
        lines.append(paint("bad", "HELD until hetmemctl release:"))
        for hold in told["held"]:
            words = f"{hold['kind']} {hold['what']}, since {_ago(hold['since'], now)}: {hold['why']}"
            lines.append("  " + printable(words))
    lines += ["", paint("title", "Cgroups"), *(_cgroups(told["cgroups"], paint) or ["  no policy reaches any cgroup"])]
    lines += ["", paint("title", "Policy files"), *(_files(told["files"], paint) or ["  none"])]
    lines += ["", paint("title", "Sources of events")]
    rows = [
        (
            source["name"],
            "up" if source["up"] else "down",
            f"{source['events']} events",
            f"{source['losses']} losses",
            source["note"],
        )
        for source in told["sources"]
    ]
    lines += table(rows, paint, coloured=1)
    lines.append(f"  {told['scans']} scans, the last took {told['last_scan_seconds'] * 1e3:.1f} ms")
    if told["kernel_weights"] is not None:
        lines += ["", "Kernel's weights: " + _weights(told["kernel_weights"])]
    if told.get("movers"):
        lines += ["", paint("title", "Others that move pages too"), *(_movers(told["movers"], paint) or ["  none"])]
    if told["notes"]:
        lines += ["", paint("title", "What this machine cannot do")]
        lines += [f"  - {printable(note)}" for note in told["notes"]]
    return lines


def explain(told: Answer, paint: Paint, now: float | None = None) -> list[str]:
    """Of a cgroup or, where the answer has a `pid`, of a process."""
    now = time.time() if now is None else now
    state = told["state"]
    lines = [f"{paint('title', printable(told['cgroup']))}: {paint(state, state)}"]
    facts = [("policy", policy_words(told["effective"]) + (", not applied" if state == "blocked" else ""))]
    if source := told["own"]:
        facts.append(("own", f"{source['file']}:{source['line']}"))
    if source := told["inherited_from"]:
        facts.append(("inherited", f"from {source['path']}, {source['file']}:{source['line']}"))
    if not told["own"] and not told["inherited_from"]:
        facts.append(("own", "none, and nothing to inherit: the kernel's default"))
    if "M2" in told["rules"]:
        facts.append(("exists", "no: there is no such cgroup now, and this is what would hold in it"))
    facts.append(("rules", " ".join(told["rules"]) or "none"))
    if told.get("wall") is not None:
        facts.append(("wall", f"nodes {nodelist.format_list(told['wall'])}"))
    if told.get("handling"):
        facts.append(("handling", _handling(told["handling"])))
    facts += [("lost", f"{loser['file']}:{loser['line']}: {loser['why']}") for loser in told["losers"]]
    facts += [("note", note) for note in told.get("notes", ())]
    lines += _facts(facts)
    if told.get("bytes_by_node") or told.get("target_shares"):
        lines += ["", *_nodes(told, told["target_shares"], now), *_left_out(told)]
    if "pid" in told:
        lines += ["", *_process(told, paint, now)]
    elif told.get("tasks"):
        lines += ["", *_tasks(told["tasks"], paint, now)]
    return lines


def check(findings: Iterable[Answer], paint: Paint) -> list[str]:
    """One line for each finding, as compilers write them."""
    lines = []
    for finding in findings:
        kind = "bad" if finding["severity"] == "error" else "doubtful"
        hint = f" ({finding['hint']})" if finding["hint"] else ""
        place = printable(f"{finding['file']}:{finding['line']}:")
        lines.append(f"{place} {paint(kind, finding['severity'] + ':')} {printable(finding['message'] + hint)}")
    return lines


def undo(told: Answer, paint: Paint) -> list[str]:
    if told["dry_run"]:
        rows = [("PID", "NAME", "CGROUP", "WHAT", "NOW", "THEN")]
        for plan in told["planned"]:
            what = f"{plan['count']} {plan['kind']}"
            rows.append((str(plan["pid"]), plan["comm"], plan["cgroup"], what, plan["now"], plan["then"]))
        held = "Without --dry-run a running service then gives nothing there any more, until hetmemctl release."
        return [*(table(rows) if told["planned"] else ["nothing is to be given back"]), held]
    counts = [(told["threads"], "thread"), (told["regions"], "region")]
    lines = ["given back: " + ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)]
    for left in told["left"]:
        sentence = f"left: {left['comm']}[{left['pid']}] in {left['cgroup']}: {left['reason']}"
        lines.append(paint("bad", printable(sentence + (f" ({left['note']})" if left.get("note") else ""))))
    if any(left.get("is_refused") for left in told["left"]):
        lines.append(
            "What is refused is not touched, and keeps what it was given until it ends; to insist: undo --force"
        )
    if told["held"] is not None:
        lines.append(printable(f"The service gives nothing there any more, until: hetmemctl release {told['held']}"))
    else:
        lines.append("The service does not run; when it is started, policy files hold again.")
    return lines


def released(told: Answer) -> list[str]:
    return [printable(f"released: {hold['kind']} {hold['what']}") for hold in told["released"]] or ["nothing was held"]


def observe(told: Answer, paint: Paint) -> list[str]:
    state = "on: nothing is applied or moved" if told["observing"] else "off"
    by = f" (by {told['by']})" if told["by"] else ""
    after = "" if told["running"] else "; the service does not run"
    return [f"the kill switch is {paint('bad' if told['observing'] else 'good', state)}{printable(by)}{after}"]


def policy_words(placement: Answer) -> str:
    """`weighted-interleave on nodes 0-1, weights 0=3 1=1, memory all`."""
    words = str(placement["mode"])
    if placement["nodes"]:
        nodes = placement["nodes"]
        words += f" on node{'s' if len(nodes) > 1 else ''} {nodelist.format_list(nodes)}"
    if placement["weights"]:
        words += ", weights " + _weights(placement["weights"])
    flags = [flag for flag in placement.get("flags", ()) if flag != "static"]
    if flags:
        words += ", " + " ".join(flags)
    if placement.get("home_node") is not None:
        words += f", home node {placement['home_node']}"
    if list(placement["memory"]) != ["all"]:
        words += ", memory " + " ".join(placement["memory"])
    return words


def _cgroups(cgroups: Sequence[Answer], paint: Paint) -> list[str]:
    if not cgroups:
        return []
    nodes = sorted({int(node) for view in cgroups for node in (*view["bytes_by_node"], *view["target_shares"])})
    rows = [("CGROUP", "STATE", "POLICY", "TASKS", "DISTANCE", *(f"NODE {node}" for node in nodes))]
    for view in cgroups:
        effective = view["effective"]
        words = effective["mode"] + (f" {nodelist.format_list(effective['nodes'])}" if effective["nodes"] else "")
        if effective["weights"]:
            words += " " + ":".join(str(weight) for _, weight in _sorted(effective["weights"]))
        distance = view["distance"]
        rows.append(
            (
                view["cgroup"],
                view["state"],
                words,
                ", ".join(f"{count} {outcome}" for outcome, count in view["tasks"].items()) or "none",
                "-" if distance is None else f"{distance:.3f}",
                *(_mib(view["bytes_by_node"].get(str(node))) for node in nodes),
            )
        )
    return table(rows, paint, coloured=1, right=4)


def _files(files: Sequence[Answer], paint: Paint) -> list[str]:
    lines = []
    rows = table([(file["path"], file["state"]) for file in files], paint, coloured=1)
    for row, file in zip(rows, files, strict=True):
        lines.append(row)
        lines += [f"      {printable(fault)}" for fault in file["faults"]]
    return lines


def _movers(movers: Sequence[Answer], paint: Paint) -> list[str]:
    rows = [(mover["name"], mover["state"], mover["how"]) for mover in movers if mover["state"] != "off"]
    return table(rows, paint, coloured=1)


def _nodes(figures: Answer, shares: Answer, now: float) -> list[str]:
    """A column for each node, as numastat(8) has them. What is moved is measured anew when the pass is over."""
    sizes, distance = figures["bytes_by_node"], figures["distance"]
    nodes = sorted({*map(int, sizes), *map(int, shares)})
    total = sum(sizes.values())
    rows = [("", *(f"node {node}" for node in nodes), "total")]
    rows.append(("memory, MiB", *(f"{sizes.get(str(node), 0) / _MIB:.1f}" for node in nodes), f"{total / _MIB:.1f}"))
    if total:
        rows.append(("is, %", *(f"{100 * sizes.get(str(node), 0) / total:.1f}" for node in nodes), "100.0"))
    if shares:
        rows.append(("should be, %", *(f"{100 * shares.get(str(node), 0):.1f}" for node in nodes), "100.0"))
    lines = table(rows, right=1)
    if distance is not None:
        when = f", measured {_ago(figures['measured_at'], now)}" if figures.get("measured_at") else ""
        lines.append(f"  distance {distance:.3f} (0: there, 1: all elsewhere){when}")
    return lines


def _left_out(told: Answer) -> list[str]:
    """Memory that no target is asked of, where there is much of it."""
    found = [(size, reason) for reason, size in told.get("left_out", {}).items() if size >= _MIB]
    if not found:
        return []
    parts = (f"{reason} {_mib(size)}" for size, reason in sorted(found, reverse=True))
    return [f"  left out, MiB: {', '.join(parts)}"]


def _process(told: Answer, paint: Paint, now: float) -> list[str]:
    task = told["task"]
    kernel = told.get("kernel") or {}
    name = kernel.get("name") or (task["comm"] if task else "")
    comm = f" ({printable(name)})" if name else ""
    since = f", of {printable(kernel['user'])}, started {_ago(kernel['started_at'], now)}" if kernel.get("user") else ""
    lines = [paint("title", f"Process {told['pid']}{comm}") + since]
    facts = []
    if task:
        reason = f": {task['reason']}" if task["reason"] else ""
        facts.append(("outcome", f"{task['outcome']}{reason}"))
        if task.get("note"):
            facts.append(("because", task["note"]))
    elif told["state"] == "default":
        facts.append(("outcome", "no policy reaches it"))
    else:
        facts.append(("outcome", "not looked at yet, or never touched (T5)"))
    policies = kernel.get("policies") or {}
    for policy, count in sorted(policies.items(), key=lambda item: -item[1]):
        facts.append(("kernel says", f"{policy} in {count} thread{'s' if count > 1 else ''}"))
    if not policies and task:
        facts.append(("kernel said", f"{task['policy_now']} in its main thread"))
    if kernel.get("mems_allowed"):
        facts.append(("cpuset", f"allows nodes {nodelist.format_list(kernel['mems_allowed'])}"))
    if kernel.get("note"):
        facts.append(("note", kernel["note"]))
    if task and task["last_action"]:
        facts.append(("last action", f"{task['last_action']}, {_ago(task['last_action_at'], now)}"))
    lines += _facts(facts)
    if task and task["bytes_by_node"]:
        lines += ["", *_nodes(task, told["target_shares"], now), *_left_out(task)]
    return lines


def _tasks(tasks: Sequence[Answer], paint: Paint, now: float) -> list[str]:
    rows = [("PID", "NAME", "OUTCOME", "THREADS", "DISTANCE", "KERNEL SAYS", "LAST ACTION")]
    for task in tasks:
        distance = task["distance"]
        action = f"{task['last_action']}, {_ago(task['last_action_at'], now)}" if task["last_action"] else "-"
        rows.append(
            (
                str(task["pid"]),
                task["comm"],
                task["outcome"] + (f" ({task['reason']})" if task["reason"] else ""),
                str(task["threads"]),
                "-" if distance is None else f"{distance:.3f}",
                task["policy_now"],
                action,
            )
        )
    return table(rows, paint, coloured=2)


def _handling(handling: Answer) -> str:
    words = [f"existing {handling['existing']}", f"rate {_size(handling['rate'])}/s"]
    if handling.get("rate_total") is not None:
        words.append(f"rate_total {_size(handling['rate_total'])}/s")
    if handling.get("burst") is not None:
        words.append(f"burst {_size(handling['burst'])}")
    words += [f"tolerance {handling['tolerance']:g}", f"foreign {handling['foreign']}", f"shared {handling['shared']}"]
    return ", ".join(words)


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:<12}{printable(text)}" for name, text in facts]


def table(
    rows: Sequence[Sequence[str]], paint: Paint | None = None, coloured: int | None = None, right: int | None = None
) -> list[str]:
    """Columns as wide as they need to be; `coloured` is the one with a state, those from `right` on are numbers."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded = cell.rjust(width) if right is not None and column >= right else cell.ljust(width)
            if paint and column == coloured:
                padded = paint(cell.split(" ")[0], padded)
            parts.append(padded)
        lines.append("  " + "  ".join(parts).rstrip())
    return lines


def _weights(weights: Answer) -> str:
    return " ".join(f"{node}={weight}" for node, weight in _sorted(weights))


def _sorted(by_node: Answer) -> list[tuple[str, Any]]:
    return sorted(by_node.items(), key=lambda item: int(item[0]))


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / _MIB:.1f} MiB"


def _size(size: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def _ago(then: float, now: float) -> str:
    seconds = max(now - then, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"

"""`hetmemctl explain PID --regions`: read here, with the rights of whoever asks."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Mapping
from typing import Any

from hetmemd.ctl import client
from hetmemd.ctl.text import Paint
from hetmemd.engine import view
from hetmemd.kernel.root import Root
from hetmemd.policy.faults import printable

Show = Callable[[argparse.Namespace, Any, Callable[[Paint], list[str]]], None]
Answer = Mapping[str, Any]


def explain(chosen: argparse.Namespace, pid: int, show: Show) -> int:
    """0. `OSError` where the process is gone, or may not be looked at."""
    told = asked(pid, chosen.socket)
    note = "" if told else "the service does not answer, or knows nothing of the process: why is not known"
    source = (told.get("own") or told.get("inherited_from")) if told else None
    shown = view.of_process(Root(), pid, told)
    if not shown["regions"]:
        note = "it has no memory: a kernel thread, or a process that has ended"
    found = {
        "schema": 1,
        "pid": pid,
        "cgroup": told["cgroup"] if told else None,
        "effective": told["effective"] if told else None,
        "source": source,
        "note": note,
        **shown,
    }
    show(chosen, found, lambda paint: lines(found, paint))
    return 0


def asked(pid: int, socket: str) -> dict[str, Any] | None:
    """The service's answer about a process, None where it has none."""
    try:
        return client.explain_process(pid, socket)
    except (client.UnreachableError, client.UnknownError):
        return None


def refusal(error: Exception, pid: int) -> str:
    """For a person."""
    if isinstance(error, OSError):
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"process {pid}: its regions are shown to root, and to its own user while it may be dumped"
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return f"there is no process {pid}"
    return str(error)


def lines(found: Answer, paint: Paint) -> list[str]:
    rows = [f"{paint('title', 'task')}  {found['task_policy']}"]
    if found["source"]:
        rows.append(f"policy  {found['source']['file']}:{found['source']['line']}")
    if found["note"]:
        rows.append(f"note  {found['note']}")
    rows.append("")
    rows += [
        f"{kind:<8} {told['regions']:>6} regions  {pages(told['pages_by_node'])}"
        for kind, told in sorted(found["kinds"].items())
    ]
    rows.append("")
    for region in found["regions"]:
        span = f"{region['start']:x}-{region['end']:x}"
        where = pages(region["pages_by_node"]) or "empty"
        name = f"  {printable(region['name'])}" if region["name"] else ""
        own = "own " if region["is_bound"] else ""
        rows.append(f"{span:<27} {region['permissions']} {region['kind']:<7} {where}{name}")
        rows.append(f"    {own}{region['policy']}: {region['why']}")
    return rows


def pages(by_node: Mapping[str, int]) -> str:
    """`node 0 64.0 MiB, node 1 16.0 MiB` of pages of 4 KiB."""
    return ", ".join(f"node {node} {size(count * 4096)}" for node, count in by_node.items())


def size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:g} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.1f} GiB"

"""Why the service manager ends this service: a stop is something else than a restart (L2)."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping

from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root

SECONDS = 5.0
"""systemctl(1) has to answer within that."""
WITHOUT_MANAGER = 15.0
"""Seconds to give back where no manager sets a limit."""
_GOING_DOWN = ("shutdown.target", "reboot.target", "poweroff.target", "halt.target", "kexec.target")
_UNITS = {"y": 31557600.0, "month": 2629800.0, "w": 604800.0, "d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
_UNITS |= {"ms": 1e-3, "us": 1e-6}


async def time_to_give_back(root: Root, environment: Mapping[str, str] | None = None) -> tuple[float | None, str]:
    """(seconds, "") where this is a stop, (None, why) where policies stay: a restart, the end of the machine's life, a
    signal without a job, or an answer that nobody gave."""
    environment = os.environ if environment is None else environment
    if not environment.get("NOTIFY_SOCKET"):
        return WITHOUT_MANAGER, ""
    unit = (procfs.cgroup_path(root, os.getpid()) or "").rpartition("/")[2]
    try:
        async with asyncio.timeout(SECONDS):
            jobs, span = await asyncio.gather(
                _systemctl("list-jobs", "--no-legend", "--plain", "--full"),
                _systemctl("show", "--property=TimeoutStopUSec", "--value", unit),
            )
            limit = seconds(span)
    except (OSError, ValueError) as error:
        return None, f"systemctl does not say why it ends: {error or 'no answer'}"
    why = why_not(jobs, unit)
    # The rest of the time is for closing; a limit of a second or two is none to give back much in.
    return (None, why) if why else (max(limit * 0.75, limit - 5.0), "")


def why_not(jobs: str, unit: str) -> str:
    """Of `systemctl list-jobs`: why this is not a stop that somebody asked for; empty where it is.

    A restart is one job of type `restart` or `try-restart` until the unit has stopped, and only then becomes a start
    (src/core/job.c, job_finish_and_invalidate()).
    """
    # JOB UNIT TYPE STATE
    rows = [line.split() for line in jobs.splitlines()]
    kinds = {row[1]: row[2] for row in rows if len(row) >= 4 and row[0].isdigit()}
    if any(kinds.get(target) == "start" for target in _GOING_DOWN):
        return "the machine goes down"
    kind = kinds.get(unit, "")
    if kind == "stop":
        return ""
    return f"it is a {kind}" if kind else "no job of the service manager asks for a stop"


def seconds(span: str) -> float:
    """A time span as systemctl(1) shows it, `1min 30s`; a day for `infinity`. `ValueError`."""
    if span.strip() == "infinity":
        return 86400.0
    parts = re.findall(r"([0-9.]+)\s*([a-z]+)", span)
    if not parts or any(unit not in _UNITS for _, unit in parts):
        raise ValueError(f"TimeoutStopUSec is {span.strip()!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


async def _systemctl(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "systemctl",
        "--no-pager",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        out, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise OSError(0, f"systemctl {words[0]} failed ({process.returncode})")
    return out.decode(errors="replace")

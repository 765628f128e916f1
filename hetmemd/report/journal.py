"""The journal: who, what before, what now, why, as fields of fixed kinds of records (`report.messages`).

Under systemd with systemd-python, records go to the journal with their fields. Otherwise they go to stderr, with the
priority as `<N>` where the journal reads it (sd-daemon(3)), and their fields are in the sentence only.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.policy.faults import printable
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.report import messages
from hetmemd.report.snapshot import FileView

IDENTIFIER = "hetmemd"
REPEAT_SECONDS = 60.0
"""The same record of the same process is written once in this time; what was left out is counted in the next."""
_MOST_REMEMBERED = 4096

log = logging.getLogger("hetmemd")


def set_up(level: str = "info", stream: TextIO | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Sends all records of this process on their way; may be called again, such as at a reload."""
    handler = _journal_handler(os.environ if environment is None else environment) if stream is None else None
    if handler is None:
        handler = logging.StreamHandler(stream or sys.stderr)
        prefixed = "JOURNAL_STREAM" in (os.environ if environment is None else environment)
        handler.setFormatter(_Prefixed() if prefixed else _Plain())
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "hetmemd", False):
            root.removeHandler(old)
    handler.hetmemd = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """`debug`, `info`, `warning` or `error`; libraries speak from warnings on, unless all is debugged."""
    number = getattr(logging, level.upper())
    log.setLevel(number)
    logging.getLogger().setLevel(number if number == logging.DEBUG else max(number, logging.WARNING))


def _journal_handler(environment: Mapping[str, str]) -> logging.Handler | None:
    """None where the journal does not read this process's stderr, or systemd-python is not installed."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        stderr = os.fstat(2)
        if (int(device), int(inode)) != (stderr.st_dev, stderr.st_ino):
            return None
        from systemd import journal  # noqa: PLC0415 (an extra)
    except (ImportError, OSError, ValueError):
        return None
    handler: logging.Handler = journal.JournalHandler(
        SYSLOG_IDENTIFIER=IDENTIFIER, sender_function=_fields_only(journal.send)
    )
    return handler


def _fields_only(send: Callable[..., Any]) -> Callable[..., Any]:
    """JournalHandler hands over every attribute of a record; the journal has fields in upper case only."""

    def filtered(message: str, /, **fields: Any) -> Any:
        return send(_lines(message), **{name: value for name, value in fields.items() if name.isupper()})

    return filtered


def _lines(text: str) -> str:
    """Fit for a terminal, line by line: a traceback has several."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.splitlines())


class _Plain(logging.Formatter):
    """For a person at a terminal; control characters in foreign names are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return _lines(super().format(record))


class _Prefixed(_Plain):
    """For the journal at the other end of stderr: one `<N>` for each line."""

    _PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in self._PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def event(message_id: str, level: int, text: str, **fields: Any) -> None:
    """One record. Names of fields come out as `HETMEMD_NAME`; what is None is left out."""
    if not log.isEnabledFor(level):
        return
    extra = {f"HETMEMD_{name.upper()}": printable(str(value)) for name, value in fields.items() if value is not None}
    log.log(level, text, extra={"MESSAGE_ID": message_id, **extra})


def started(version: str, cgroups: int, files: int) -> None:
    event(
        messages.STARTED,
        logging.INFO,
        f"hetmemd {version} works: {files} policy {_plural('file', files)} in force, "
        f"{cgroups} {_plural('cgroup', cgroups)} reached",
        version=version,
    )


def stopped(kept: int) -> None:
    """`kept`: threads whose policies stay in force (L2)."""
    event(messages.STOPPED, logging.INFO, f"hetmemd stops; policies stay in force in {kept} threads", kept=kept)


def kept(why: str) -> None:
    """Policies stay in force though `on_stop` is restore."""
    event(messages.KEPT, logging.INFO, f"policies stay in force: {why}")


def given_back(threads: int, left: Sequence[tuple[int, str, str]]) -> None:
    """At a stop (L2). `left`: what could not be rid of its policy in time, as (pid, comm, reason)."""
    text = f"what was replaced was given back to {threads} {_plural('thread', threads)}"
    if left:
        shown = ", ".join(f"{comm}[{pid}] ({reason})" for pid, comm, reason in left[:20])
        more = f" and {len(left) - 20} more" if len(left) > 20 else ""
        text += f"; left, and kept in the ledger: {shown}{more}"
    event(messages.GIVEN_BACK, logging.WARNING if left else logging.INFO, text, threads=threads, left=len(left))


def reloaded() -> None:
    event(messages.RELOADED, logging.INFO, "settings and policy files were read again")


def settings_refused(faults: Sequence[object]) -> None:
    """At a reload: the old settings stay."""
    for fault in faults:
        event(messages.SETTINGS_REFUSED, logging.ERROR, f"{fault}; the settings from before stay in force", fault=fault)


_FILE_STATES = {"in-force": "in force", "mask": "a mask, a link to /dev/null"}


def policy_file(view: FileView) -> None:
    """What became of a file that is new or changed."""
    if view.faults:
        held = "its last good version stays in force" if view.state == "last-good" else "it is not in force"
        for fault in view.faults:
            event(messages.FILE_REJECTED, logging.ERROR, f"{fault}; {held}", policy_file=view.path, fault=fault)
    else:
        state = _FILE_STATES.get(view.state, view.state)
        event(messages.FILE_IN_FORCE, logging.INFO, f"{view.path} is {state}", policy_file=view.path)


def observing(on: bool, why: str) -> None:
    """`why` names the setting or the file."""
    what = "nothing is applied or moved, only measured" if on else "policies are applied and pages moved again"
    event(messages.OBSERVING, logging.WARNING, f"{why}: {what}", observing=int(on))


def held(kind: str, what: str, why: str) -> None:
    """Stopped until somebody releases it; `kind` as in `snapshot.HoldView`."""
    level = logging.WARNING if kind in ("cgroup", "process") else logging.ERROR
    text = f"{kind} {what} is held: {why}; hetmemctl release {what}"
    event(messages.HELD, level, text, held=kind, what=what)


def released(kind: str, what: str) -> None:
    event(messages.RELEASED, logging.WARNING, f"{kind} {what} is released", held=kind, what=what)


def limitation(note: str) -> None:
    """What this machine cannot do, once (L5)."""
    event(messages.LIMITATION, logging.WARNING, note)


def events_lost(source: str, note: str = "") -> None:
    text = f"{source}: events were lost" + (f": {note}" if note else ", everything is scanned")
    event(messages.EVENTS_LOST, logging.WARNING, text, source=source)


def pages_moved(
    cgroup: str,
    comm: str,
    process: ProcessId,
    moved: int,
    failed: Mapping[str, int],
    before: float,
    now: float,
    why: str,
) -> None:
    """The end of a pass over one process: `moved` in bytes, `failed` in pages by reason, distances before and now."""
    text = f"{comm}[{process.pid}] in {cgroup}: moved {moved / (1 << 20):.1f} MiB, "
    text += f"distance {before:.3f} -> {now:.3f} ({why})"
    if failed:
        text += ", not moved: " + _counts(failed) + " pages"
    event(
        messages.PAGES_MOVED,
        logging.INFO,
        text,
        cgroup=cgroup,
        pid=process.pid,
        comm=comm,
        moved_bytes=moved,
        failed_pages=sum(failed.values()),
        distance_before=f"{before:.6f}",
        distance=f"{now:.6f}",
        policy=why,
    )


def regions_bound(
    cgroup: str, comm: str, process: ProcessId, why: str, bound: int, undone: int, failed: Mapping[str, int]
) -> None:
    """Ranges of one process that were given a policy of their own, or rid of one; `failed` by reason."""
    text = f"{comm}[{process.pid}] in {cgroup}: {bound} {_plural('range', bound)} bound, {undone} undone ({why})"
    if failed:
        text += ", failed: " + _counts(failed)
    event(
        messages.REGIONS_BOUND,
        logging.WARNING if failed else logging.INFO,
        text,
        cgroup=cgroup,
        pid=process.pid,
        start=process.start,
        comm=comm,
        bound=bound,
        undone=undone,
        failed=sum(failed.values()) or None,
        policy=why,
    )


class Applications:
    """Records of applications: one for each process and call, however many threads it has."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: OrderedDict[ProcessId, tuple[str, float, int]] = OrderedDict()
        """What was written last of a process, when, and how often the same was left out since."""

    def application(
        self,
        cgroup: str,
        comm: str,
        process: ProcessId,
        policy: Mempolicy,
        why: str,
        results: Sequence[ThreadResult],
    ) -> None:
        """`why` is the `file:line` of the policy's table, or the rule that takes it away."""
        if not results:
            return
        outcomes = Counter(
            f"{result.outcome}" + (f" ({_because(result)})" if result.outcome is not Outcome.APPLIED else "")
            for result in results
        )
        before = sorted({str(result.before) for result in results if result.before is not None})
        after = sorted({str(result.after) for result in results if result.after is not None})
        good = all(result.outcome in (Outcome.APPLIED, Outcome.GONE) for result in results)
        text = f"{comm}[{process.pid}] in {cgroup}: {policy} (before: {', '.join(before) or 'not read'}): "
        text += f"{_counts(outcomes)} of {len(results)} {_plural('thread', len(results))}; {why}"
        left_out = self._left_out(process, text)
        if left_out is None:
            return
        if left_out:
            text += f" (said {left_out} times more)"
        worst = max(results, key=lambda result: _SEVERITY.index(result.outcome))
        event(
            messages.APPLICATION if good else messages.APPLICATION_FAILED,
            logging.INFO if good or worst.outcome in (Outcome.DEFERRED, Outcome.FOREIGN) else logging.WARNING,
            text,
            cgroup=cgroup,
            pid=process.pid,
            start=process.start,
            comm=comm,
            asked=policy,
            before=", ".join(before),
            after=", ".join(after),
            outcome=worst.outcome,
            reason=worst.reason or None,
            errno=worst.errno or None,
            threads=len(results),
            applied=sum(result.outcome is Outcome.APPLIED for result in results),
            pause_max_nsec=max(result.pause_ns for result in results),
            policy=why,
        )

    def _left_out(self, process: ProcessId, text: str) -> int | None:
        """None where the same was written a moment ago; else how often it was left out since."""
        now = self._clock()
        same, at, count = self._written.pop(process, ("", 0.0, 0))
        if same == text and now - at < REPEAT_SECONDS:
            self._written[process] = (same, at, count + 1)
            return None
        self._written[process] = (text, now, 0)
        while len(self._written) > _MOST_REMEMBERED:
            self._written.popitem(last=False)
        return count if same == text else 0


_SEVERITY = (
    Outcome.APPLIED,
    Outcome.GONE,
    Outcome.DEFERRED,
    Outcome.FOREIGN,
    Outcome.CONTESTED,
    Outcome.UNSTEERABLE,
    Outcome.REFUSED,
)


def _because(result: ThreadResult) -> str:
    if result.errno:
        return f"{result.reason}: {os.strerror(result.errno)}" if result.reason else os.strerror(result.errno)
    return result.reason or "no reason given"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"

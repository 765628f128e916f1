"""Records of the journal: one for each process and application, with their fields."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.report import journal, messages
from hetmemd.report.journal import Applications
from hetmemd.report.snapshot import FileView
from tests.unit.report.sample import WEIGHTED

CATALOG = Path(__file__).parents[3] / "systemd/hetmemd.catalog"
REDIS = ProcessId(812, 100)
IDS = {name: value for name, value in vars(messages).items() if name.isupper()}


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    root, before = logging.getLogger(), logging.getLogger("hetmemd").level
    handlers, level = list(root.handlers), root.level
    caplog.set_level(logging.INFO, "hetmemd")
    yield
    logging.getLogger("hetmemd").setLevel(before)
    root.handlers[:], root.level = handlers, level


def applied(tid: int, outcome: Outcome = Outcome.APPLIED, reason: str = "", errno: int = 0) -> ThreadResult:
    return ThreadResult(
        tid, outcome, reason, errno, DEFAULT, WEIGHTED if outcome is Outcome.APPLIED else DEFAULT, 40_000
    )


def test_a_thousand_threads_are_one_record(caplog: pytest.LogCaptureFixture) -> None:
    results = [applied(tid) for tid in range(997)] + [applied(tid, Outcome.DEFERRED, "frozen") for tid in range(3)]
    Applications().application("/a", "redis", REDIS, WEIGHTED, "/etc/hetmemd.d/a.toml:3", results)
    (record,) = caplog.records
    assert record.getMessage() == (
        "redis[812] in /a: weighted interleave=static:0-1 (before: default): "
        "997 applied, 3 deferred (frozen) of 1000 threads; /etc/hetmemd.d/a.toml:3"
    )
    told = record.__dict__
    assert told["MESSAGE_ID"] == messages.APPLICATION_FAILED
    assert told["HETMEMD_CGROUP"] == "/a"
    assert told["HETMEMD_PID"] == "812"
    assert told["HETMEMD_BEFORE"] == "default"
    assert told["HETMEMD_AFTER"] == "default, weighted interleave=static:0-1"
    assert told["HETMEMD_POLICY"] == "/etc/hetmemd.d/a.toml:3"
    assert (told["HETMEMD_OUTCOME"], told["HETMEMD_REASON"]) == ("deferred", "frozen")
    assert (told["HETMEMD_THREADS"], told["HETMEMD_APPLIED"]) == ("1000", "997")
    assert told["HETMEMD_PAUSE_MAX_NSEC"] == "40000"


def test_a_refusal_names_its_errno_and_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    refused = [applied(1), applied(2, Outcome.REFUSED, "set_mempolicy", 22)]
    Applications().application("/a", "redis", REDIS, WEIGHTED, "f:1", refused)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "1 refused (set_mempolicy: Invalid argument)" in record.getMessage()
    assert record.__dict__["HETMEMD_ERRNO"] == "22"


def test_what_is_said_again_and_again_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    records = Applications(clock=lambda: now)
    for second in range(120):
        now = float(second)
        records.application("/a", "redis", REDIS, WEIGHTED, "f:1", [applied(1, Outcome.DEFERRED, "frozen")])
    assert len(caplog.records) == 2
    assert caplog.records[1].getMessage().endswith("(said 59 times more)")


def test_what_differs_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    records = Applications(clock=lambda: 0.0)
    records.application("/a", "redis", REDIS, WEIGHTED, "f:1", [applied(1, Outcome.DEFERRED, "frozen")])
    records.application("/a", "redis", REDIS, WEIGHTED, "f:1", [applied(1)])
    records.application("/a", "redis", ProcessId(813, 1), WEIGHTED, "f:1", [applied(1)])
    records.application("/a", "redis", REDIS, WEIGHTED, "f:1", [])
    assert len(caplog.records) == 3


def test_memory_of_repeats_is_bounded() -> None:
    records = Applications(clock=lambda: 0.0)
    for pid in range(10_000):
        records.application("/a", "x", ProcessId(pid, 1), WEIGHTED, "f:1", [applied(1)])
    assert len(records._written) <= 4096


def test_a_broken_file_is_one_record_for_each_fault(caplog: pytest.LogCaptureFixture) -> None:
    journal.policy_file(FileView("/etc/hetmemd.d/a.toml", "last-good", ("a:1: x", "a:2: y")))
    assert [record.getMessage() for record in caplog.records] == [
        "a:1: x; its last good version stays in force",
        "a:2: y; its last good version stays in force",
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_moved_pages(caplog: pytest.LogCaptureFixture) -> None:
    journal.pages_moved("/a", "redis", REDIS, 64 << 20, {"busy": 2}, 0.25, 0.001, "f:1")
    (record,) = caplog.records
    assert record.getMessage() == (
        "redis[812] in /a: moved 64.0 MiB, distance 0.250 -> 0.001 (f:1), not moved: 2 busy pages"
    )


def test_the_other_records_say_what_they_are_about(caplog: pytest.LogCaptureFixture) -> None:
    journal.started("1", 1, 2)
    journal.stopped(3)
    journal.reloaded()
    journal.settings_refused(["/etc/hetmemd.toml:1: no"])
    journal.policy_file(FileView("/a.toml", "mask", ()))
    journal.observing(True, "/run/hetmemd/observe")
    journal.limitation("no weighted interleave")
    journal.events_lost("proc-connector")
    ids = [record.__dict__["MESSAGE_ID"] for record in caplog.records]
    assert len(set(ids)) == len(ids) == 8
    assert "/a.toml is a mask, a link to /dev/null" in [record.getMessage() for record in caplog.records]
    assert set(ids) <= set(IDS.values())


def test_stderr_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    journal.set_up("info", stream, {})
    logging.getLogger("hetmemd").warning("a \x1b[2J b")
    logging.getLogger("hetmemd").debug("not asked for")
    logging.getLogger("library").info("not asked for")
    logging.getLogger("library").warning("asked for")
    assert stream.getvalue() == "a \\x1b[2J b\nasked for\n"


def test_stderr_that_the_journal_reads() -> None:
    stream = io.StringIO()
    journal.set_up("debug", stream, {"JOURNAL_STREAM": "1:2"})
    try:
        raise RuntimeError("no")
    except RuntimeError:
        logging.getLogger("hetmemd").exception("failed")
    logging.getLogger("hetmemd").info("fine")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<3>failed"
    assert all(line.startswith("<3>") for line in lines[:-1])
    assert lines[-1] == "<6>fine"


def test_set_up_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    journal.set_up("info", first, {})
    journal.set_up("info", second, {})
    logging.getLogger("hetmemd").info("once")
    assert (first.getvalue(), second.getvalue()) == ("", "once\n")


def test_the_journal_gets_fields_in_upper_case_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real JournalHandler, which hands over every attribute of the record, `message` among them."""
    from systemd import journal as systemd_journal

    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(systemd_journal, "send", lambda message, **fields: sent.append((message, fields)))
    stderr = os.fstat(2)
    journal.set_up("info", environment={"JOURNAL_STREAM": f"{stderr.st_dev}:{stderr.st_ino}"})
    journal.event(messages.LIMITATION, logging.WARNING, "100 % of \x07", cgroup="/a\n", pid=None)
    ((message, fields),) = sent
    assert message == "100 % of \\x07"
    assert fields["MESSAGE_ID"] == messages.LIMITATION
    assert fields["SYSLOG_IDENTIFIER"] == "hetmemd"
    assert fields["PRIORITY"] == "4"
    assert fields["HETMEMD_CGROUP"] == "/a\\n"
    assert "HETMEMD_PID" not in fields
    assert all(name.isupper() for name in fields)


def test_the_catalog_explains_every_kind_of_record_and_no_other() -> None:
    text = CATALOG.read_text()
    assert sorted(re.findall(r"^-- ([0-9a-f]{32})$", text, flags=re.MULTILINE)) == sorted(IDS.values())
    assert len(set(IDS.values())) == len(IDS)
    fields = set(re.findall(r"@(HETMEMD_[A-Z_]+)@", text))
    source = Path(journal.__file__).read_text()
    for field in fields:
        assert re.search(rf"\b{field.removeprefix('HETMEMD_').lower()}=", source), field

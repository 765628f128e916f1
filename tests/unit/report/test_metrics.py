"""The metrics as a whole: a golden file, what promtool says of it, and the contract in the README.

`HETMEMD_GOLDEN=write` writes the golden file anew; the difference is then in the commit, for a person to judge.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import hetmemd
from hetmemd import service
from hetmemd.kernel.mempolicy import DEFAULT
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote.result import Outcome, ThreadResult
from hetmemd.report import metrics
from hetmemd.report.metrics import DECLARATIONS, Metrics, Moment, named_cgroups
from hetmemd.report.publish import Publisher
from hetmemd.report.snapshot import Snapshot
from hetmemd.report.tally import OTHER, Tally
from tests.unit.report.sample import heir, owner, snapshot, tally, task

GOLDEN = Path(__file__).with_name("metrics.golden")
README = Path(__file__).parents[3] / "README.md"


def scrape(shown: Snapshot | None, counted: Tally | None = None, limit: int = 200) -> str:
    publisher = Publisher()
    if shown:
        publisher.publish(shown)
    ticks = count(step=0.125)
    collector = Metrics(publisher, counted or Tally(), limit, clock=lambda: next(ticks))
    return generate_latest(metrics.registry(collector)).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


def test_the_whole_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hetmemd, "__version__", "0.0.0")
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.0")
    text = scrape(snapshot(), tally())
    if os.environ.get("HETMEMD_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("shown", [None, snapshot()], ids=["before the first pass", "full"])
def test_promtool_takes_it(shown: Snapshot | None) -> None:
    promtool = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=scrape(shown, tally()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_family_is_declared_and_every_declaration_has_a_family() -> None:
    families = {family.name: family for family in text_string_to_metric_families(scrape(snapshot(), tally()))}
    assert set(families) == {entry.name.removesuffix("_total") for entry in DECLARATIONS.values()}
    for entry in DECLARATIONS.values():
        family = families[entry.name.removesuffix("_total")]
        assert family.type == entry.kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(entry.labels)


def test_names_follow_the_conventions() -> None:
    for entry in DECLARATIONS.values():
        assert (entry.kind == "counter") == entry.name.endswith("_total")
        assert not {"type", "zone", "service", "pid"} & set(entry.labels)
        assert entry.meaning.endswith(".")


def test_no_created_series() -> None:
    assert "_created" not in scrape(snapshot(), tally())


def test_what_is_gone_vanishes() -> None:
    publisher = Publisher()
    collector = metrics.registry(Metrics(publisher, Tally()))
    publisher.publish(snapshot())
    assert 'cgroup="/system.slice' in generate_latest(collector).decode()
    publisher.publish(dataclasses.replace(snapshot(), cgroups=()))
    assert 'cgroup="/system.slice' not in generate_latest(collector).decode()


def test_a_failing_part_fails_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(moment: Moment) -> object:
        yield "policy_files", ("in-force",), 1
        raise RuntimeError("no")

    monkeypatch.setitem(metrics.COLLECTORS, "files", broken)
    publisher = Publisher()
    publisher.publish(snapshot())
    collector = metrics.registry(Metrics(publisher, Tally()))
    text = generate_latest(collector).decode()
    assert value(text, "hetmemd_scrape_collector_success", collector="files") == 0
    assert value(text, "hetmemd_scrape_collector_success", collector="cgroups") == 1
    assert value(text, "hetmemd_policy_files", state="in-force") is None, "half a part is no part"
    assert value(text, "hetmemd_applications_total") == 0
    generate_latest(collector)
    assert len(caplog.records) == 1, "said once, not at each scrape"


def test_the_cap_keeps_owners_and_counts_the_rest() -> None:
    many = [heir(f"/a/{number:03}") for number in range(50)] + [owner(f"/z/{number}") for number in range(3)]
    shown = snapshot(*many)
    assert [view.effective.cgroup for view in named_cgroups(shown, 4)] == ["/z/0", "/z/1", "/z/2", "/a/000"]
    text = scrape(shown, limit=4)
    assert value(text, "hetmemd_cgroups_left_out") == 49
    assert value(text, "hetmemd_cgroups", state="blocked") == 50
    assert len({dict(labels)["cgroup"] for name, labels in samples(text) if name == "hetmemd_cgroup_policy_info"}) == 4


def test_hostile_names_do_not_break_the_scrape() -> None:
    hostile = os.fsdecode(b'/a\xff"\n\x1b[2J\\x2d.service')
    shown = snapshot(owner(hostile, tasks=(task(comm="\n"),)))
    text = scrape(shown)
    named = {dict(labels)["cgroup"] for name, labels in samples(text) if name == "hetmemd_cgroup_memory_bytes"}
    assert named == {'/a\\xff"\\n\\x1b[2J\\x2d.service'}


def test_sources_count_once_however_they_are_counted() -> None:
    counted = Tally()
    counted.event("proc-connector", 10)
    counted.lost("perf", 1)
    text = scrape(snapshot(), counted)
    assert value(text, "hetmemd_events_total", source="proc-connector") == 10
    assert value(text, "hetmemd_event_losses_total", source="perf") == 1
    assert value(text, "hetmemd_source_up", source="perf") == 0


def test_every_reason_that_is_ever_given_is_counted_from_zero() -> None:
    from hetmemd.memory.moving import REASONS

    assert {*metrics.PAGE_FAILURES, OTHER} == {*REASONS}
    pattern = re.compile(r'Outcome\.([A-Z]+), "([a-z-]+)"')
    given = {
        (str(Outcome[outcome]), reason)
        for path in (README.parent / "hetmemd/remote").glob("*.py")
        for outcome, reason in pattern.findall(path.read_text())
    }
    assert ("deferred", "frozen") in given
    assert given <= {(str(outcome), reason) for outcome, reasons in metrics.FAILURES.items() for reason in reasons}
    text = scrape(None)
    for outcome, reason in given:
        assert value(text, "hetmemd_application_failures_total", outcome=outcome, reason=reason) == 0


SELDOM = [
    (Outcome.DEFERRED, "mmap-lock"),
    (Outcome.DEFERRED, "sigsys-blocked"),
    (Outcome.DEFERRED, "stub"),
    (Outcome.DEFERRED, "timeout"),
    (Outcome.DEFERRED, "tracer-died"),
    (Outcome.UNSTEERABLE, "stub-fault"),
    (Outcome.UNSTEERABLE, "tampered"),
    (Outcome.REFUSED, "internal-error"),
    (Outcome.REFUSED, "kcmp"),
    (Outcome.REFUSED, "permission"),
    (Outcome.REFUSED, "readback"),
    (Outcome.GONE, "executed"),
]


@pytest.mark.parametrize(("outcome", "reason"), SELDOM, ids=[reason for _, reason in SELDOM])
def test_a_reason_that_no_act_is_easily_brought_to_is_counted(outcome: Outcome, reason: str) -> None:
    """From zero, once for each thread, and for no other reason."""
    counted = Tally()
    before = samples(scrape(None, counted))
    labels = {"outcome": outcome.value, "reason": reason}
    assert value(scrape(None, counted), "hetmemd_application_failures_total", **labels) == 0
    results = [ThreadResult(tid, outcome, reason, stops=1) for tid in (7, 8)]
    service._Witness(counted).application("/a", "x", ProcessId(7, 1), DEFAULT, "a.toml:1", results)
    after = samples(scrape(None, counted))
    assert {key: count - before[key] for key, count in after.items() if count != before[key]} == {
        ("hetmemd_application_failures_total", frozenset(labels.items())): 2,
        ("hetmemd_applications_total", frozenset()): 2,
    }


def test_names_can_be_picked() -> None:
    registry = metrics.registry(Metrics(Publisher(), Tally()))
    text = generate_latest(registry.restricted_registry(["hetmemd_scans_total"])).decode()
    assert set(samples(text)) == {("hetmemd_scans_total", frozenset())}


def test_the_readme_has_the_table() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "hetmemd.report.metrics", "--table"],
        cwd=README.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == metrics.table()
    assert printed in README.read_text(), "python -m hetmemd.report.metrics --table prints what belongs there"

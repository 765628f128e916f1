"""A slice of the campaign in which tracers are killed: tests/campaigns/tracer_kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.campaigns import kills
from tests.machine import dying_tracer

pytestmark = pytest.mark.root


def test_killing_the_tracer_harms_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert kills.main(["--rounds", "1000", "--seed", "2", "--log", str(log)]) == 0
    batches = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(sum(batch["kills"].values()) for batch in batches) >= 1000
    steps = {int(step) for batch in batches for step in batch["kills"] if step.isdigit()}
    assert steps >= set(range(dying_tracer.STEPS - 4)), "every step of an act on a blocked thread"


def test_a_campaign_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text(json.dumps({"batch": 6, "kills": {"3": 900}, "injections": 5, "harm": [], "seconds": 1.0}) + "\n")
    assert kills.main(["--rounds", "900", "--log", str(log)]) == 0
    told = capsys.readouterr().out
    assert "going on after batch 6" in told
    assert "900 kills, 5 whole injections, harm: 0" in told
    log.write_text(json.dumps({"batch": 6, "kills": {"3": 900}, "injections": 5, "harm": ["x"], "seconds": 1.0}) + "\n")
    assert kills.main(["--rounds", "900", "--log", str(log)]) == 1

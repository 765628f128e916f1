"""`tests/lab/run --service`, as it is: by `packaging/try`, and where the service does not start."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.hetmemlab.cli import STATUS_LAB_FAILED

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[2]
SECONDS = 600.0


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_the_demonstration_ends_with_figures_that_are_right() -> None:
    done = run("packaging/try")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hetmemd 0.1.0" in done.stdout or "active (running)" in done.stdout
    figures = done.stdout.partition("== The figures")[2]
    threads = re.search(r"threads treated +(\d+), policy in force ([\d.]+) s after the move", figures)
    shares = re.search(r"on node 1 ([\d.]+)%, the policy asks for ([\d.]+)%", figures)
    assert threads and shares, figures
    assert int(threads[1]) >= 1
    there, wanted = map(float, shares.groups())
    assert 0 < wanted < 100
    assert abs(there - wanted) <= 2
    assert re.search(r"Redis' data +as before", figures)
    assert "The pages are where the policy says." in figures


def test_a_service_that_does_not_start_shows_its_journal() -> None:
    """Without cgroup v2, which systemd takes away by these parameters, it refuses to."""
    without = ["systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1"]
    appended = [word for parameter in without for word in ("--append", parameter)]
    done = run("tests/lab/run", "--service", *appended, "--timeout", "120", "--", "echo", "it", "ran")
    assert done.returncode == STATUS_LAB_FAILED, done.stdout + done.stderr
    assert "lab: hetmemd.service did not start" in done.stdout
    journal = done.stdout.partition("hetmemd.service did not start")[2]
    assert re.search(r"hetmemd\[\d+\]: .*cgroup", journal), journal
    assert "it ran" not in done.stdout

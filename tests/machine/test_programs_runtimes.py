"""Programs of language runtimes that check what they do: correct to the last, whatever is done to their threads."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.remote.result import Outcome
from tests.lab.hetmemlab.targets import SOURCES
from tests.machine.real_program import Pressure
from tests.machine.remote_target import numbers
from tests.machine.trap import Trap

pytestmark = pytest.mark.root

JAVA = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java"
GO = "/usr/lib/go-1.19/bin/go"


def checks_itself(pressure: Pressure, words: list[str]) -> None:
    with pressure.start(words) as program:
        program.expect("ready")
        pressure.during(lambda: time.sleep(0.1))
        told = numbers(program.finish())
    assert told.pop("rounds") > 0
    assert told == {"wrong": 0, "lost": 0}


def test_a_jvm(pressure: Pressure) -> None:
    shutil.copy(SOURCES / "Workers.java", pressure.folder)
    checks_itself(pressure, [JAVA, "-Xmx128m", "-XX:+UseG1GC", "-XX:ParallelGCThreads=2", "Workers.java"])


def test_go(pressure: Pressure) -> None:
    shutil.copy(SOURCES / "workers.go", pressure.folder)
    build = f"CGO_ENABLED=0 GOCACHE=/tmp/go-cache {GO} build -o workers workers.go"
    pressure.tool(["/bin/sh", "-c", build])
    checks_itself(pressure, ["./workers"])


def test_node(pressure: Pressure) -> None:
    shutil.copy(SOURCES / "workers.js", pressure.folder)
    checks_itself(pressure, ["/usr/bin/node", "workers.js"])


def test_valgrind(pressure: Pressure, trap: Trap, built: Callable[..., Path]) -> None:
    """It takes the vdso away from the program, so there is nowhere to call from."""
    shutil.copy(built("family"), pressure.folder)
    with pressure.start(["/usr/bin/valgrind", "--error-exitcode=9", "--log-file=log", "./family", "churn"]) as program:
        program.expect("ready")
        for _ in range(5):
            trap.catches(program.pid, Outcome.UNSTEERABLE, "vdso")
            pressure.group.take(program.pid)
        told = numbers(program.finish())
    assert told["made"] > 0
    assert told["failed"] == 0
    assert "ERROR SUMMARY: 0 errors" in (pressure.folder / "log").read_text()

"""`tests/lab/suite`: all tests marked `lab`, in the guests that they ask for, counted from the JUnit reports."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from . import cli, kernels, marks, targets
from .marks import Guest
from .say import LabError, say

REPORT = "junit.xml"
DEFAULT_SECONDS = 2400.0
# pytest's own exit status.
NO_TESTS = 5


@dataclass(frozen=True)
class Counts:
    """What a JUnit report says, with the names of the tests that were skipped."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.errors + other.errors,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
        )

    def is_empty(self) -> bool:
        """Whether no test ran, not even to be skipped."""
        return self.passed + self.failed + self.errors + len(self.skipped) == 0

    def words(self) -> str:
        """In the words of pytest's own closing line."""
        numbers = (
            (self.failed, "failed"),
            (self.passed, "passed"),
            (len(self.skipped), "skipped"),
            (self.errors, "error" if self.errors == 1 else "errors"),
        )
        said = ", ".join(f"{number} {word}" for number, word in numbers if number) or "no tests ran"
        return f"{said} in {self.seconds:.2f}s"

    def line(self) -> str:
        """As pytest's own closing line."""
        return f" {self.words()} ".center(80, "=")


def read_report(root: ElementTree.Element) -> Counts:
    """Count a report's cases."""
    passed = failed = errors = 0
    skipped = []
    for case in root.iter("testcase"):
        if case.find("error") is not None:
            errors += 1
        elif case.find("failure") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            passed += 1
    seconds = sum(float(suite.get("time", "0")) for suite in root.iter("testsuite"))
    return Counts(passed, failed, errors, tuple(skipped), seconds)


def verdict(status: int, counts: Counts, *, strict: bool) -> int:
    """The exit status: pytest's own, and never 0 when nothing ran or, where that counts, something was skipped."""
    if status != 0:
        return status
    if counts.failed or counts.errors or counts.is_empty():
        return 1
    return 1 if strict and counts.skipped else 0


def is_strict() -> bool:
    """Whether a test that skips has failed."""
    return os.environ.get("CI") == "true" or any(
        os.environ.get(name) == "1" for name in ("HETMEMD_STRICT", "HETMEMD_LAB_STRICT")
    )


@dataclass(frozen=True)
class Run:
    """What came of one guest: its exit status, and its report if it handed one back."""

    guest: Guest
    status: int
    report: ElementTree.Element | None
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Run as a program; the exit status."""
    parser = argparse.ArgumentParser(
        prog="tests/lab/suite",
        description="Run the tests marked `lab`, each in the guests that its mark names, one guest after the other.",
        epilog="What is not known here goes to pytest: tests/lab/suite -k redis -x",
    )
    parser.add_argument("--topology", metavar="NAME", help="only guests of that topology")
    parser.add_argument("--kernel", metavar="NAME", help="only guests with that kernel")
    parser.add_argument("--timeout", type=float, default=DEFAULT_SECONDS, metavar="SECONDS", help="for each guest")
    parser.add_argument("--fetch", action="store_true", help="only fetch and build what the guests are booted from")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="keep the report there")
    options, rest = parser.parse_known_args(argv)
    if is_strict():
        os.environ["HETMEMD_STRICT"] = "1"
    words = _with_default_paths(rest)
    try:
        guests = [
            guest
            for guest in marks.asked_for([Path(word.partition("::")[0]) for word in words if _is_path(word)])
            if options.kernel in (None, guest.kernel) and options.topology in (None, guest.topology)
        ]
    except LabError as error:
        say(f"error: {error}")
        return cli.STATUS_LAB_FAILED
    if options.fetch:
        return _fetch(guests)
    runs = []
    with tempfile.TemporaryDirectory(prefix="hetmemd-suite-") as folder:
        built = Path(folder) / targets.FOLDER
        built.mkdir()
        targets.build_all(built)
        for guest in guests:
            say(f"guest {guest}")
            runs.append(_in_guest(guest, words, options.timeout, built))
            if runs[-1].status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                break
    whole = ElementTree.Element("testsuites")
    for run in runs:
        whole.extend(run.report if run.report is not None else ())
    if options.junit is not None:
        ElementTree.ElementTree(whole).write(options.junit, encoding="utf-8", xml_declaration=True)
    return conclude(runs, strict=is_strict())


def _fetch(guests: Sequence[Guest]) -> int:
    try:
        for name in sorted({guest.kernel for guest in guests}):
            cli.ready(kernels.named(name))
    except (LabError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        return cli.STATUS_LAB_FAILED
    return 0


def _in_guest(guest: Guest, words: list[str], timeout: float, built: Path) -> Run:
    pytest = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-m", "lab", f"--junitxml=/lab/results/{REPORT}"]
    pytest += ["--durations=15", "--durations-min=5"]
    command = ["--topology", guest.topology, "--kernel", guest.kernel, "--timeout", str(timeout), "--time"]
    command += ["--with", str(built)]
    if guest.append:
        command += ["--append", guest.append]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hetmemd-suite-") as folder:
        status = cli.main([*command, "--results", folder, "--", *pytest, *words])
        report = Path(folder) / REPORT
        text = report.read_text("utf-8") if report.is_file() else ""
    try:
        root = ElementTree.fromstring(text) if text else None
    except ElementTree.ParseError as error:
        say(f"error: the report is not XML: {error}")
        root = None
    return Run(guest, status, root, time.monotonic() - begun)


def conclude(runs: Sequence[Run], *, strict: bool) -> int:
    """Say what came of each guest and of all together; the exit status, 0 only if each passed and something ran."""
    total = Counts()
    worst = 0
    for run in runs:
        if run.report is None:
            say(f"error: {run.guest}: no report came back from the guest (status {run.status})")
            worst = worst or run.status or 1
            continue
        counts = read_report(run.report)
        total += counts
        say(f"{run.guest}: {counts.words()}, {run.seconds:.0f} s with its boot")
        if strict and counts.skipped:
            say(f"error: skipped where nothing may be: {', '.join(counts.skipped)}")
        # That words for pytest select nothing in one guest is no failure if they do in another.
        nothing = run.status == NO_TESTS and counts.is_empty()
        worst = worst or (0 if nothing else verdict(run.status, counts, strict=strict))
    print(total.line())
    sys.stdout.flush()
    return worst or (1 if total.is_empty() else 0)


def _is_path(word: str) -> bool:
    return word.startswith("tests/")


def _with_default_paths(rest: list[str]) -> list[str]:
    """The tests that were named, or all."""
    return rest if any(map(_is_path, rest)) else [*rest, "tests/guest", "tests/machine"]

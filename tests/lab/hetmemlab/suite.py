"""`tests/lab/suite`: all tests marked `lab`, in one guest, counted from the JUnit report that comes back."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from . import cli
from .say import say

REPORT = "junit.xml"
DEFAULT_SECONDS = 1200.0


class ReportError(Exception):
    """There is no report, or it is not one."""


@dataclass(frozen=True)
class Counts:
    """What a JUnit report says, with the names of the tests that were skipped."""

    passed: int
    failed: int
    errors: int
    skipped: tuple[str, ...]
    seconds: float

    def line(self) -> str:
        """In the words of pytest's own closing line."""
        numbers = (
            (self.failed, "failed"),
            (self.passed, "passed"),
            (len(self.skipped), "skipped"),
            (self.errors, "error" if self.errors == 1 else "errors"),
        )
        said = ", ".join(f"{number} {word}" for number, word in numbers if number) or "no tests ran"
        return f" {said} in {self.seconds:.2f}s ".center(80, "=")


def read_report(text: str) -> Counts:
    """Count a report's cases; ReportError when it is none."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ReportError(f"the report is not XML: {error}") from error
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
    if counts.failed or counts.errors or counts.passed + len(counts.skipped) == 0:
        return 1
    return 1 if strict and counts.skipped else 0


def is_strict() -> bool:
    """Whether a test that skips has failed."""
    return os.environ.get("CI") == "true" or any(
        os.environ.get(name) == "1" for name in ("HETMEMD_STRICT", "HETMEMD_LAB_STRICT")
    )


def main(argv: Sequence[str]) -> int:
    """Run as a program; the exit status."""
    parser = argparse.ArgumentParser(
        prog="tests/lab/suite",
        description="Run the tests marked `lab` in one guest.",
        epilog="What is not known here goes to pytest: tests/lab/suite -k redis -x",
    )
    parser.add_argument("--topology", default="dram+cxl", metavar="NAME")
    parser.add_argument("--kernel", default="6.12", metavar="NAME")
    parser.add_argument("--timeout", type=float, default=DEFAULT_SECONDS, metavar="SECONDS")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="keep the report there")
    options, rest = parser.parse_known_args(argv)
    if is_strict():
        os.environ["HETMEMD_STRICT"] = "1"
    pytest = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-m", "lab", f"--junitxml=/lab/results/{REPORT}"]
    guest = ["--topology", options.topology, "--kernel", options.kernel, "--timeout", str(options.timeout), "--time"]
    with tempfile.TemporaryDirectory(prefix="hetmemd-suite-") as folder:
        status = cli.main([*guest, "--results", folder, "--", *pytest, *_with_default_paths(rest)])
        report = Path(folder) / REPORT
        if not report.is_file():
            say(f"error: no report came back from the guest (status {status})")
            return status or 1
        text = report.read_text("utf-8")
    if options.junit is not None:
        options.junit.write_text(text, encoding="utf-8")
    try:
        counts = read_report(text)
    except ReportError as error:
        say(f"error: {error}")
        return status or 1
    strict = is_strict()
    if strict and counts.skipped:
        say(f"error: skipped where nothing may be: {', '.join(counts.skipped)}")
    print(counts.line())
    sys.stdout.flush()
    return verdict(status, counts, strict=strict)


def _with_default_paths(rest: list[str]) -> list[str]:
    """The tests that were named, or all."""
    return rest if any(word.startswith("tests/") for word in rest) else [*rest, "tests/guest"]

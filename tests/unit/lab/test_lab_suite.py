"""What the report from the guest means."""

from __future__ import annotations

import pytest

from tests.lab.hetmemlab.suite import Counts, ReportError, read_report, verdict

REPORT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5" time="12.345">
<testcase classname="a" name="one"/><testcase classname="a" name="two"/>
<testcase classname="a" name="three"><failure message="no">trace</failure></testcase>
<testcase classname="a" name="four"><skipped message="why"/></testcase>
<testcase classname="b" name="five"><error message="setup"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted() -> None:
    counts = read_report(REPORT)
    assert counts == Counts(passed=2, failed=1, errors=1, skipped=("a::four",), seconds=12.345)
    assert counts.line().strip("= ") == "1 failed, 2 passed, 1 skipped, 1 error in 12.35s"
    assert len(counts.line()) == 80


@pytest.mark.parametrize("text", ["", "<testsuites>", "not xml"])
def test_a_torn_report_is_refused(text: str) -> None:
    with pytest.raises(ReportError):
        read_report(text)


def counts(passed: int = 0, failed: int = 0, errors: int = 0, skipped: int = 0) -> Counts:
    return Counts(passed, failed, errors, ("x",) * skipped, 1.0)


@pytest.mark.parametrize(
    ("status", "what", "strict", "expected"),
    [
        (0, counts(passed=3), True, 0),
        (0, counts(passed=3, skipped=1), False, 0),
        (0, counts(passed=3, skipped=1), True, 1),
        (0, counts(), False, 1),
        (0, counts(passed=3, failed=1), False, 1),
        (0, counts(passed=3, errors=1), False, 1),
        (1, counts(passed=3, failed=1), False, 1),
        (124, counts(passed=3), False, 124),
    ],
)
def test_only_a_full_pass_is_a_pass(status: int, what: Counts, strict: bool, expected: int) -> None:
    assert verdict(status, what, strict=strict) == expected

"""Which guests tests ask for, and what the reports from them mean."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab.hetmemlab import kernels, topology
from tests.lab.hetmemlab.marks import Guest, asked_for
from tests.lab.hetmemlab.say import LabError
from tests.lab.hetmemlab.suite import NO_TESTS, Counts, Run, conclude, read_report, verdict

REPORT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="5" time="12.345">
<testcase classname="a" name="one"/><testcase classname="a" name="two"/>
<testcase classname="a" name="three"><failure message="no">trace</failure></testcase>
<testcase classname="a" name="four"><skipped message="why"/></testcase>
<testcase classname="b" name="five"><error message="setup"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted() -> None:
    counts = read_report(ElementTree.fromstring(REPORT))
    assert counts == Counts(passed=2, failed=1, errors=1, skipped=("a::four",), seconds=12.345)
    assert counts.line().strip("= ") == "1 failed, 2 passed, 1 skipped, 1 error in 12.35s"
    assert len(counts.line()) == 80


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


def run(status: int, passed: int = 0, skipped: int = 0) -> Run:
    cases = '<testcase classname="a" name="x"/>' * passed
    cases += '<testcase classname="a" name="y"><skipped/></testcase>' * skipped
    report = ElementTree.fromstring(f'<testsuites><testsuite time="1">{cases}</testsuite></testsuites>')
    return Run(Guest(), status, report, 9.0)


LOST = Run(Guest("6.1"), 125, None, 9.0)


@pytest.mark.parametrize(
    ("runs", "strict", "expected"),
    [
        ([run(0, 3), run(0, 1)], True, 0),
        ([run(0, 3), run(NO_TESTS)], True, 0),
        ([run(NO_TESTS), run(NO_TESTS)], False, 1),
        ([], False, 1),
        ([run(0, 3), run(0, 1, skipped=1)], True, 1),
        ([run(0, 3), run(0, 1, skipped=1)], False, 0),
        ([run(0, 3), LOST], False, 125),
        ([run(1, 3), run(0, 2)], False, 1),
    ],
)
def test_each_guest_must_pass(runs: list[Run], strict: bool, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude(runs, strict=strict) == expected
    told = capsys.readouterr()
    assert "=" in told.out
    assert ("no report came back" in told.err) == (LOST in runs)


def test_guests_are_found_in_the_marks(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        'pytestmark = [pytest.mark.lab(kernel="6.1"), pytest.mark.lab(topology="two-sockets")]\n'
        '@pytest.mark.lab(append="a=b c")\ndef test_x(): pass\n'
    )
    (tmp_path / "test_b.py").write_text("import pytest\n@pytest.mark.lab\ndef test_y(): pass\n")
    (tmp_path / "other.py").write_text('import pytest\nx = pytest.mark.lab(kernel="2.4")\n')
    four = [Guest("6.1"), Guest("6.12", "dram+cxl", "a=b c"), Guest("6.12", "two-sockets")]
    assert asked_for([tmp_path]) == [Guest(), *four]
    assert asked_for([tmp_path / "test_a.py"]) == four
    assert [str(guest) for guest in four] == ["6.1 dram+cxl", "6.12 dram+cxl a=b c", "6.12 two-sockets"]


@pytest.mark.parametrize("mark", ['lab(kernels="6.1")', "lab(kernel=NAME)", "lab(**words)"])
def test_marks_that_cannot_be_read_are_told(tmp_path: Path, mark: str) -> None:
    (tmp_path / "test_a.py").write_text(f"import pytest\n\n@pytest.mark.{mark}\ndef test_x(): pass\n")
    with pytest.raises(LabError, match=r"test_a\.py:3: a mark names"):
        asked_for([tmp_path])
    with pytest.raises(LabError, match="no such file"):
        asked_for([tmp_path / "test_b.py"])


def test_the_marks_that_there_are_name_real_guests() -> None:
    for guest in asked_for([Path(__file__).parents[2] / name for name in ("guest", "machine")]):
        kernels.named(guest.kernel)
        topology.load(guest.topology)

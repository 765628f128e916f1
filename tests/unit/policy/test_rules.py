"""Each numbered rule has a test that is named after it, and no test is named after a rule that there is not.

Those that need nothing but values are here, in test_rules_*.py and test_properties.py; T and L are about tasks and the
life of the daemon, and are tested where these are: in tests/unit/engine, tests/machine and tests/guest.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "packaging/man/hetmemd.policy.5"
RULES = re.findall(r"^\.It ([FMITL][0-9])$", PAGE.read_text("ascii"), re.MULTILINE)


def named(pattern: str) -> dict[str, list[str]]:
    """By rule: the tests in files of this pattern that have its number in their names."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for rule in re.findall(r"(?<=_)[FMITL][0-9](?=_|$)", node.name):
                    found.setdefault(rule, []).append(f"{path.name}::{node.name}")
    return found


def test_the_page_has_the_rules() -> None:
    assert len(RULES) == len(set(RULES)) == 26


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_has_its_tests(rule: str) -> None:
    pure = rule[0] in "FMI"
    assert named("unit/policy/test_rules_*.py" if pure else "**/test_*.py").get(rule), f"no test is named after {rule}"


def test_no_test_is_named_after_a_rule_that_there_is_not() -> None:
    assert set(named("**/test_*.py")) <= set(RULES)

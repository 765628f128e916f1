"""What holds for all tests: strictness about skipping, and hypothesis' pace.

In a guest of the lab a test runs if one of its `lab` marks names that guest:
`lab(kernel="6.1", topology="two-sockets", append="...")`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine, or an emulated one, is slow in bursts: time is never asserted here, so it fails nothing either.
# In CI the examples are the same each time, for a change is judged there; elsewhere each run looks for new ones.
settings.register_profile(
    "hetmemd",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("hetmemd")

STRICT = os.environ.get("CI") == "true" or os.environ.get("HETMEMD_STRICT") == "1"
"""A test that skips for want of a right or a program has tested nothing: with this it fails."""


HERE = os.environ.get("HETMEMD_LAB_GUEST")
"""The guest that this is, as tests/lab/run names it: kernel, topology and what was appended. None outside of it."""


def named(mark: pytest.Mark) -> str:
    """The guest of a mark, in the words of HERE; a mark without arguments names the default."""
    words = {"kernel": "6.12", "topology": "dram+cxl", "append": "", **mark.kwargs}
    return " ".join(filter(None, words.values()))


# The older form of a wrapper: Debian 12's pluggy, which the lab's guest has, knows no other.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HERE is not None:
        kept = [item for item in items if any(named(mark) == HERE for mark in item.iter_markers("lab"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))

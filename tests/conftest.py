"""What holds for all tests: strictness about skipping, and hypothesis' pace."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine, or an emulated one, is slow in bursts: time is never asserted here, so it fails nothing either.
settings.register_profile("hetmemd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hetmemd")

STRICT = os.environ.get("CI") == "true" or os.environ.get("HETMEMD_STRICT") == "1"
"""A test that skips for want of a right or a program has tested nothing: with this it fails."""


# The older form of a wrapper: Debian 12's pluggy, which the lab's guest has, knows no other.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))

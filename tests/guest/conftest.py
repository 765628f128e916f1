"""Fixtures for tests in a guest that has the service installed."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.daemon import FILES, MEASURED_SOON, Group, systemctl
from tests.running import running

# What is known of a failure once the guest is gone.
_EVIDENCE = (
    ("hetmemctl", "status"),
    ("systemctl", "status", "--no-pager", "--lines=0", "hetmemd"),
    ("journalctl", "--no-pager", "--lines=60", "--unit=hetmemd"),
    ("dmesg", "--level=emerg,alert,crit,err,warn"),
)


# The older form of a wrapper, as in tests/conftest.py.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    report: pytest.TestReport = (yield).get_result()
    if report.failed:
        for command in _EVIDENCE:
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            report.sections.append((" ".join(command), (told.stdout + told.stderr)[-8000:]))


OBSERVE = Path("/run/hetmemd/observe")
SETTINGS = Path("/etc/hetmemd.toml")


@pytest.fixture(scope="session", autouse=True)
def as_fast_as_it_can() -> None:
    """Moving is ten times slower where processors are emulated, and nobody is to wait here for it or for a figure."""
    quick = f"moving_share = 0.5\nmeasuring_share = 0.1\n{MEASURED_SOON}\n"
    if not SETTINGS.read_text().startswith(quick):
        SETTINGS.write_text(quick + SETTINGS.read_text())


@pytest.fixture(scope="session", autouse=True)
def huge_pages_are_those_of_page_faults() -> None:
    """khugepaged takes pages of a heap together when it comes to it, on one node: no count of pages would be exact."""
    # The most that it takes: 50 days until it looks the next time.
    Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs").write_text(str((1 << 32) - 1))


@pytest.fixture
def service() -> Generator[None, None, None]:
    """The service runs, without policies; afterwards nothing of the test is left."""
    systemctl("start", "hetmemd")
    yield
    OBSERVE.unlink(missing_ok=True)
    for file in FILES.glob("*"):
        file.unlink()


@pytest.fixture
def group() -> Generator[Group, None, None]:
    group = Group("/test.slice/work")
    yield group
    group.remove()
    group.folder.parent.rmdir()


@pytest.fixture
def task() -> Generator[subprocess.Popen[bytes], None, None]:
    with running(["sleep", "10000"]) as popen:
        yield popen

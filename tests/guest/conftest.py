"""Fixtures for tests in a guest that has the service installed."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.guest.daemon import FILES, Group, systemctl

OBSERVE = Path("/run/hetmemd/observe")


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
    with subprocess.Popen(["sleep", "10000"]) as popen:
        yield popen
        popen.kill()

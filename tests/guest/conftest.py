"""A test runs in the guests that its `lab` marks name: `lab(kernel="6.1", topology="two-sockets", append="...")`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.guest.daemon import FILES, Group, systemctl

OBSERVE = Path("/run/hetmemd/observe")

HERE = os.environ.get("HETMEMD_LAB_GUEST")
"""The guest that this is, as tests/lab/run names it: kernel, topology and what was appended. None outside of it."""


def named(mark: pytest.Mark) -> str:
    """The guest of a mark, in the words of HERE; a mark without arguments names the default."""
    words = {"kernel": "6.12", "topology": "dram+cxl", "append": "", **mark.kwargs}
    return " ".join(filter(None, words.values()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HERE is None:
        return
    kept = [item for item in items if any(named(mark) == HERE for mark in item.iter_markers("lab"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


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

"""A test runs in the guests that its `lab` marks name: `lab(kernel="6.1", topology="two-sockets", append="...")`."""

from __future__ import annotations

import os

import pytest

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

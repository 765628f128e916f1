"""Fixtures for tests on this machine's own kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machine.remote_target import Acting, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(NAME, OPTION...)`: the program of targets/NAME.c."""
    folder = tmp_path_factory.mktemp("targets")
    return lambda name, *options: build(folder, name, *options)


@pytest.fixture
def acting() -> Iterator[Acting]:
    with Acting() as acting:
        yield acting

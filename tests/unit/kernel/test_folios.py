"""Flags of frames from a file that stands for /proc/kpageflags."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetmemd.kernel import folios
from hetmemd.kernel.root import Root

COUNT = 1000


@pytest.fixture
def known(tmp_path: Path) -> Generator[folios.Frames, None, None]:
    (tmp_path / "proc").mkdir()
    np.arange(COUNT, dtype=np.uint64).tofile(tmp_path / "proc/kpageflags")
    frames = folios.Frames(Root(tmp_path))
    yield frames
    frames.close()


@given(st.lists(st.integers(0, COUNT + 50), max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flags_come_in_the_order_asked_for(known: folios.Frames, wanted: list[int]) -> None:
    found = known.values(np.array(wanted, dtype=np.int64))
    assert found.tolist() == [frame if frame < COUNT else 0 for frame in wanted]


def test_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folios.Frames(Root(tmp_path))

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


@given(st.lists(st.tuples(st.integers(0, 11), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=30))
def test_a_folio_is_as_large_as_it_is_however_little_of_it_is_mapped(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, float]]
) -> None:
    flags: list[int] = []
    heads, upto, sizes = [], [], []
    for order, part in wanted:
        size = 1 << order
        flags += [0] * (-len(flags) % size)
        if order:
            heads.append(len(flags))
            upto.append(len(flags) + int(part * size))
            sizes.append(size)
        flags += [int(folios._HEAD), *[int(folios._TAIL)] * (size - 1)] if order else [0]
    top = tmp_path_factory.mktemp("flags")
    (top / "proc").mkdir()
    np.array(flags, dtype=np.uint64).tofile(top / "proc/kpageflags")
    known = folios.Frames(Root(top))
    found = folios._sizes(known, np.array(heads, dtype=np.int64), np.array(upto, dtype=np.int64))
    known.close()
    assert found.tolist() == sizes

"""What moving takes does not grow with what is moved."""

from __future__ import annotations

import pytest

from tests.bench import footprint

pytestmark = pytest.mark.lab
MIB = 1 << 20


def test_memory_does_not_grow_with_what_is_moved() -> None:
    small, large = footprint.looks(192 * MIB, 768 * MIB, 0, 1)
    for size, look in ((192, small), (768, large)):
        assert look.moved == pytest.approx(size // 4 * MIB, rel=0.05)
        assert look.refused <= MIB
        assert look.examined >= size * MIB
    assert large.peak - small.peak <= 2 * MIB, (small, large)

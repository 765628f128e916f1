"""What measuring and planning take does not grow with the process that is looked at. tests/guest has it with moves."""

from __future__ import annotations

import pytest

from tests.bench import footprint

pytestmark = pytest.mark.root
MIB = 1 << 20


def test_memory_does_not_grow_with_the_target() -> None:
    # A node that is not there: all that would go to it is planned, asked for once more, and refused.
    small, large = footprint.looks(1024 * MIB, 4096 * MIB, 0, footprint.ELSEWHERE)
    assert large.examined - small.examined >= 3072 * MIB - 256 * MIB
    assert large.measured - small.measured == pytest.approx(3072 * MIB, rel=0.01)
    assert large.peak - small.peak <= 2 * MIB, (small, large)

"""What a sample says, and how sure it is of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.memory import plan
from hetmemd.memory.sample import FEWEST, PAGES, Estimate


@pytest.mark.parametrize("share", [0.0, 0.02, 0.25, 0.5, 0.98])
@pytest.mark.parametrize("count", [FEWEST, PAGES])
def test_95_of_100_intervals_hold_the_truth(share: float, count: int) -> None:
    generator = np.random.default_rng(7)
    held = 0
    for hit in generator.binomial(count, share, 2000).tolist():
        low, high = Estimate({0: count - hit, 1: hit}).interval(1)
        held += low - 1e-12 <= share <= high + 1e-12
    assert held / 2000 >= 0.93


def test_the_stated_error_is_that_of_theory() -> None:
    assert Estimate({0: 2048, 1: 2048}).error(1) == pytest.approx(0.0153, abs=0.0002)
    assert Estimate({0: 384, 1: 128}).error(1) == pytest.approx(0.0375, abs=0.0005)
    assert Estimate({}).interval(0) == (0.0, 1.0)


def test_a_sample_tells_only_what_it_can() -> None:
    target = plan.ratio({0: 3, 1: 1})
    assert Estimate({0: 3072, 1: 1024}).is_within(target, 0.02) is True
    assert Estimate({0: 4096}).is_within(target, 0.02) is False
    assert Estimate({0: 3160, 1: 936}).is_within(target, 0.02) is None
    assert Estimate({0: 30, 1: 10}).is_within(target, 0.02) is None


def told_of(share: float, seed: int) -> bool | None:
    hit = int(np.random.default_rng(seed).binomial(PAGES, share))
    return Estimate({0: PAGES - hit, 1: hit}).is_within(plan.ratio({0: 3, 1: 1}), 0.02)


# More than four standard errors (of 0.0068) from the truth would have to come together for a wrong answer: one of them
# is half of the 95 % interval, and the other the luck of the draw.


@given(st.floats(0, 0.21) | st.floats(0.29, 1), st.integers(0, 1000))
def test_what_is_far_off_is_rarely_said_to_be_right(share: float, seed: int) -> None:
    assert told_of(share, seed) is not True


@given(st.floats(0.247, 0.253), st.integers(0, 1000))
def test_what_is_right_is_rarely_said_to_be_far_off(share: float, seed: int) -> None:
    assert told_of(share, seed) is not False

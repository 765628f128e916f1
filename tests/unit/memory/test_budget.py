"""Token buckets under a clock of our own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.memory.budget import Budgets

MOST = 1 << 40


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_begins_full_and_fills_at_its_rate() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", 100, 50)
    assert budgets.allowance(["a"], MOST) == 50
    assert budgets.allowance(["a"], 20) == 20
    budgets.pay(["a"], 50)
    assert budgets.allowance(["a"], MOST) == 0
    assert budgets.wait(["a"], 20) == 0.2
    clock.now += 0.2
    assert budgets.allowance(["a"], MOST) == 20
    clock.now += 100
    assert budgets.allowance(["a"], MOST) == 50


def test_the_tightest_bucket_decides_and_all_are_paid() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("child", 1000, 1000)
    budgets.configure("parent", 10, 10)
    both = ["child", "parent", "never configured"]
    assert budgets.allowance(both, MOST) == 10
    budgets.pay(both, 10)
    assert budgets.allowance(["child"], MOST) == 990
    assert budgets.allowance(["parent"], MOST) == 0
    assert budgets.allowance(["never configured"], MOST) == MOST


def test_an_overdraft_is_waited_for() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", 100, 50)
    budgets.pay(["a"], 250)
    assert budgets.allowance(["a"], MOST) == 0
    # More than the burst is never there: it is not waited for.
    assert budgets.wait(["a"], 1000) == 2.5
    clock.now += 2.5
    assert budgets.allowance(["a"], MOST) == 50


def test_a_rate_of_nothing_never_gives() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", 0, 10)
    budgets.pay(["a"], 10)
    assert budgets.wait(["a"], 1) == float("inf")


def test_a_new_rate_keeps_the_level() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", 100, 100)
    budgets.pay(["a"], 90)
    budgets.configure("a", 100, 1000)
    assert budgets.allowance(["a"], MOST) == 10
    budgets.configure("a", 100, 5)
    assert budgets.allowance(["a"], MOST) == 5
    budgets.keep([])
    assert budgets.allowance(["a"], MOST) == MOST


@given(
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500)), min_size=1, max_size=40),
)
def test_no_more_than_the_rate_is_paid(rate: int, burst: int, tries: list[tuple[float, int]]) -> None:
    """Whoever asks before each move pays at most burst and rate over the whole time."""
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", rate, burst)
    begin, paid = clock.now, 0
    for pause, wanted in tries:
        clock.now += pause
        size = budgets.allowance(["a"], wanted)
        assert size <= wanted
        budgets.pay(["a"], size)
        paid += size
    assert paid <= burst + rate * (clock.now - begin) + 1e-6


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 3000), st.integers(1, 2000))
def test_waiting_is_enough(rate: int, burst: int, paid: int, size: int) -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("a", rate, burst)
    budgets.pay(["a"], paid)
    clock.now += budgets.wait(["a"], size) + 1e-6
    assert budgets.allowance(["a"], MOST) >= min(size, burst) - 1


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.integers(1, 500)), min_size=1, max_size=60),
)
def test_I7_children_together_do_not_outspend_their_parent(
    rate: int, burst: int, tries: list[tuple[float, int, int]]
) -> None:
    """Four cgroups with rates far above their parent's, and a table's bucket between."""
    clock = Clock()
    budgets = Budgets(clock)
    budgets.configure("parent", rate, burst)
    budgets.configure("table", 10 * rate, 10 * burst)
    for child in range(4):
        budgets.configure(f"child {child}", 100 * rate, 100 * burst)
    begin, paid = clock.now, 0
    for pause, child, wanted in tries:
        clock.now += pause
        keys = [f"child {child}", "table", "parent"]
        size = budgets.allowance(keys, wanted)
        budgets.pay(keys, size)
        paid += size
        assert paid <= burst + rate * (clock.now - begin) + 1e-6

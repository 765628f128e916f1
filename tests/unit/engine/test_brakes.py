"""What keeps an act from being done: deaths after acts, first tasks, stops per second, the deny-list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.brakes import Act, Stops, Trials, Watch, denied
from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.policy.pattern import parse

PROGRAM = Executable("/usr/bin/redis-server", 8, 42)
POLICY = "bind=static:1 of /etc/hetmemd.d/50-a.toml"


def process(number: int) -> ProcessId:
    return ProcessId(number, 1000 + number)


# -- deaths


@given(st.floats(0.1, 60), st.floats(0, 100))
def test_a_death_counts_within_the_window_and_once(window: float, after: float) -> None:
    watch = Watch(window)
    act = Act(PROGRAM, POLICY, 100.0)
    watch.acted(process(7), act)
    assert watch.died(8, 100.0 + after) is None, "another process"
    found = watch.died(7, 100.0 + after)
    assert found == ((process(7), act) if after <= window else None) or abs(after - window) < 1e-6
    assert watch.died(7, 100.0 + after) is None


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 5)), max_size=60))
def test_only_the_acts_of_the_window_are_remembered(steps: list[tuple[int, float]]) -> None:
    watch, at, last = Watch(10.0), 0.0, {}
    for number, wait in steps:
        at += wait
        watch.acted(process(number), Act(PROGRAM, "", at))
        last[number] = at
    for number, when in last.items():
        assert (watch.died(number, at) is not None) == (at - when <= 10.0)


def test_an_act_that_touched_nothing_is_none() -> None:
    watch = Watch(10.0)
    watch.forget(process(7), watch.acted(process(7), Act(PROGRAM, POLICY, 1.0)))
    assert watch.died(7, 1.5) is None
    first = Act(PROGRAM, POLICY, 2.0)
    assert watch.acted(process(7), first) is None
    watch.forget(process(7), watch.acted(process(7), Act(PROGRAM, "", 3.0)))
    assert watch.died(7, 4.0) == (process(7), first)


def test_of_two_processes_with_one_pid_the_later_one_died() -> None:
    watch = Watch(10.0)
    watch.acted(ProcessId(7, 1), Act(PROGRAM, "first", 1.0))
    watch.acted(ProcessId(7, 2), Act(PROGRAM, "second", 2.0))
    found = watch.died(7, 3.0)
    assert found is not None and found[1].policy == "second"


# -- first tasks


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 0.5)), max_size=40), st.integers(1, 5))
def test_a_policy_goes_to_a_few_first_and_to_all_when_its_time_is_over(
    asks: list[tuple[int, float]], most: int
) -> None:
    trials, at, began = Trials(most=most, seconds=2.0), 50.0, None
    admitted: set[int] = set()
    over = False
    for number, wait in asks:
        at += wait
        over = over or POLICY in trials.finished(at)
        allowed = trials.admits(POLICY, process(number), at)
        began = at if began is None else began
        if over:
            assert allowed
        else:
            assert allowed == (number in admitted or len(admitted) < most)
            admitted |= {number} if allowed else set()
            assert at - began < 2.0
            end = trials.next_end()
            assert end is not None and abs(end - (began + 2.0)) < 1e-9


def test_what_was_tried_is_not_tried_again_and_zero_tries_nothing() -> None:
    assert Trials({POLICY}, 1).admits(POLICY, process(1), 0.0)
    assert all(Trials({POLICY}, 1).admits(POLICY, process(number), 0.0) for number in range(9))
    none = Trials(most=0)
    assert all(none.admits("another", process(number), 0.0) for number in range(9))
    assert none.next_end() is None


def test_policies_are_tried_each_for_itself() -> None:
    trials = Trials(most=1)
    assert trials.admits("a", process(1), 0.0)
    assert not trials.admits("a", process(2), 0.0)
    assert trials.admits("b", process(2), 1.0)
    assert trials.finished(2.5) == ["a"]
    assert trials.admits("a", process(2), 2.5)
    assert not trials.admits("b", process(3), 2.5)


def test_a_trial_fails_by_its_own_processes_only_and_begins_anew() -> None:
    trials = Trials(most=1)
    assert trials.admits(POLICY, process(1), 0.0)
    assert not trials.failed(POLICY, process(2))
    assert not trials.failed("another", process(1))
    assert trials.failed(POLICY, process(1))
    assert trials.finished(100.0) == [], "it was not tried without harm"
    assert trials.admits(POLICY, process(3), 100.0)
    assert not trials.admits(POLICY, process(4), 100.0)


def test_a_process_to_which_nothing_was_done_gives_its_place_up() -> None:
    trials = Trials(most=1)
    assert trials.admits(POLICY, process(1), 0.0)
    trials.withdraw(POLICY, process(1))
    assert trials.finished(10.0) == []
    assert trials.admits(POLICY, process(2), 10.0)


# -- stops per second


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 300), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_no_second_has_more_stops_than_it_may(machine: int, each: int, asks: list[tuple[int, int, float]]) -> None:
    """A bucket of one second's worth: in any time T at most (1 + T) times the rate, for the machine and for each."""
    stops, at = Stops(machine, each), 10.0
    made: list[tuple[float, int, int]] = []
    for number, count, wait in asks:
        at += wait
        granted = stops.take(process(number), count, at)
        assert 0 <= granted <= count
        made.append((at, number, granted))
    for index, (begin, _, _) in enumerate(made):
        total = 0
        by_process: dict[int, int] = {}
        for when, number, granted in made[index:]:
            total += granted
            by_process[number] = by_process.get(number, 0) + granted
            assert total <= machine * (1 + when - begin) + 1
            assert by_process[number] <= each * (1 + when - begin) + 1


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 500))
def test_what_is_deferred_is_not_lost(machine: int, each: int, threads: int) -> None:
    stops, at, left, rounds = Stops(machine, each), 0.0, threads, 0
    while left:
        left -= stops.take(process(1), left, at)
        at += 0.25
        rounds += 1
        assert rounds <= 4 * threads / min(machine, each) + 8


def test_stops_that_were_not_made_are_put_back() -> None:
    stops = Stops(10, 10)
    assert stops.take(process(1), 10, 0.0) == 10
    assert stops.take(process(1), 1, 0.0) == 0
    stops.put_back(process(1), 4)
    assert stops.take(process(2), 10, 0.0) == 4
    stops.put_back(process(2), 100)
    assert stops.take(process(3), 100, 0.0) == 10, "never more than a second's worth"


def test_many_processes_leave_no_trace() -> None:
    stops = Stops(1e9, 10)
    for number in range(5000):
        stops.take(process(number), 1, number / 100)
    assert len(stops._processes) < 2048


# -- the deny-list


def test_the_deny_list() -> None:
    patterns = [parse("/usr/lib/jvm/**"), parse("/opt/db-*/bin/db")]
    uids = frozenset({1001})
    jvm, shell = Executable("/usr/lib/jvm/17/bin/java", 1, 1), Executable("/bin/sh", 1, 2)
    assert denied(jvm, frozenset({0}), patterns, uids) == "denied-executable"
    assert denied(shell, frozenset({0}), patterns, uids) == ""
    assert denied(shell, frozenset({0, 1001}), patterns, uids) == "denied-user"
    assert denied(None, frozenset({0}), patterns, uids) == ""

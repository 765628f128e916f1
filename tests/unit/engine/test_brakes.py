"""What keeps an act from being done: deaths after acts, first tasks, stops per second, the deny-list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.brakes import DOUBTS, Act, Stops, Trials, Watch, denied
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


def test_what_was_told_to_have_ended_is_found_by_its_pid_once() -> None:
    watch = Watch(10.0)
    watch.acted(process(7), Act(PROGRAM, POLICY, 1.0))
    assert watch.find(7) == process(7)
    assert watch.find(8) is None
    assert set(watch.within(5.0)) == {process(7)}
    assert watch.within(12.0) == {}
    watch.forget(process(7))
    assert watch.find(7) is None
    assert watch.within(5.0) == {}


def test_a_core_that_takes_long_to_dump_is_of_a_death_in_time() -> None:
    watch = Watch(10.0)
    act = Act(PROGRAM, POLICY, 1.0)
    watch.acted(process(7), act)
    watch.dumps(7, 5.0)
    watch.dumps(8, 5.0)
    watch.acted(process(9), Act(PROGRAM, POLICY, 100.0))
    assert watch.died(7, 300.0) == (process(7), act)
    assert watch.died(7, 300.0) is None
    watch.acted(process(10), Act(PROGRAM, POLICY, 100.0))
    watch.dumps(10, 101.0)
    watch.forget(process(10))
    assert watch.died(10, 102.0) is None, "it ended of something else"
    watch.dumps(9, 111.0)
    assert watch.died(9, 112.0) is None, "what begins after the window is nobody's fault"


def test_a_word_that_was_lost_is_not_awaited_for_ever() -> None:
    """The core is dumped, the end is lost: an hour later the pid is another program's."""
    watch = Watch(10.0)
    act = Act(PROGRAM, POLICY, 1.0)
    for number in (7, 8, 9):
        watch.acted(process(number), act)
        assert watch.dumps(number, 2.0) == (process(number), act)
    assert set(watch.dying()) == {process(7), process(8), process(9)}
    for number in (7, 8):
        watch.expect(process(number), 31.0)
        watch.expect(process(number), 61.0)
    assert watch.died(7, 30.0) == (process(7), act), "it was not lost, only late"
    assert watch.died(8, 3600.0) is None
    assert watch.died(9, 3600.0) == (process(9), act)
    assert watch.dying() == []


def test_of_two_processes_with_one_pid_the_later_one_died() -> None:
    watch = Watch(10.0)
    watch.acted(ProcessId(7, 1), Act(PROGRAM, "first", 1.0))
    watch.acted(ProcessId(7, 2), Act(PROGRAM, "second", 2.0))
    found = watch.died(7, 3.0)
    assert found is not None and found[1].policy == "second"
    watch.acted(ProcessId(7, 3), Act(PROGRAM, "third", 4.0))
    watch.dumps(7, 4.5)
    watch.acted(ProcessId(7, 4), Act(PROGRAM, "fourth", 5.0))
    assert watch.find(7) == ProcessId(7, 4)


# -- first tasks


def alive(process: ProcessId) -> bool:
    return False


def gives(trials: Trials, policy: str, number: int, at: float) -> bool:
    """Whether a process that asks is given the policy: then it is, at once."""
    if not trials.admits(policy, process(number)):
        return False
    trials.begins(policy, process(number))
    trials.given(policy, process(number), at)
    return True


def over(trials: Trials, at: float) -> list[str]:
    return trials.finished(at, alive, alive).over


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 0.5)), max_size=40), st.integers(1, 5))
def test_a_policy_goes_to_a_few_first_and_to_all_when_its_time_is_over(
    asks: list[tuple[int, float]], most: int
) -> None:
    trials, at, began = Trials(most=most, seconds=2.0), 50.0, None
    admitted: set[int] = set()
    is_over = False
    for number, wait in asks:
        at += wait
        is_over = is_over or POLICY in over(trials, at)
        allowed = gives(trials, POLICY, number, at)
        began = at if began is None else began
        if is_over:
            assert allowed
        else:
            assert allowed == (number in admitted or len(admitted) < most)
            admitted |= {number} if allowed else set()
            assert at - began < 2.0
            end = trials.next_end()
            assert end is not None and abs(end - (began + 2.0)) < 1e-9


ACTS = st.lists(
    st.tuples(
        st.integers(1, 8), st.floats(0, 1), st.sampled_from(["given", "not given", "under way", "ends", "vanishes"])
    ),
    max_size=60,
)


@given(ACTS, st.integers(1, 4))
def test_what_is_over_was_had_for_its_time_by_one_that_is_known_to_be_well(
    acts: list[tuple[int, float, str]], most: int
) -> None:
    trials, at = Trials(most=most, seconds=2.0), 10.0
    has: dict[int, float] = {}
    told: set[int] = set()
    gone: set[ProcessId] = set()
    doubts = 0
    for number, wait, what in acts:
        at += wait
        finished, unknown, _ = trials.finished(at, gone.__contains__, alive)
        assert not {each.pid for _, each in unknown} & told
        if finished:
            assert any(at - since >= 2.0 for since in has.values())
            lost = {each.pid for each in gone} & (has.keys() - told)
            assert lost == {each.pid for _, each in unknown}, "one that vanished is never passed over in silence"
            assert not lost or doubts == DOUBTS
            return
        doubts += bool(unknown)
        for _, each in unknown:
            has.pop(each.pid, None)
        if process(number) in gone or number in told:
            continue
        if what == "ends":
            trials.ended(process(number))
            told |= {number}
            gone |= {process(number)}
        elif what == "vanishes":
            gone |= {process(number)}
        elif trials.admits(POLICY, process(number)):
            trials.begins(POLICY, process(number))
            if what == "given":
                trials.given(POLICY, process(number), at)
                has.setdefault(number, at)
            elif what == "not given":
                trials.withdraw(POLICY, process(number))
        assert len(has) <= most


def test_what_was_tried_is_not_tried_again_and_zero_tries_nothing() -> None:
    assert all(gives(Trials({POLICY}, 1), POLICY, number, 0.0) for number in range(9))
    tried = Trials({POLICY}, 1)
    assert all(gives(tried, POLICY, number, 0.0) for number in range(9))
    none = Trials(most=0)
    assert all(gives(none, "another", number, 0.0) for number in range(9))
    assert none.next_end() is tried.next_end() is None


def test_policies_are_tried_each_for_itself() -> None:
    trials = Trials(most=1)
    assert gives(trials, "a", 1, 0.0)
    assert not gives(trials, "a", 2, 0.0)
    assert gives(trials, "b", 2, 1.0)
    assert over(trials, 2.5) == ["a"]
    assert gives(trials, "a", 2, 2.5)
    assert not gives(trials, "b", 3, 2.5)


def test_a_trial_fails_by_its_own_processes_only_and_begins_anew() -> None:
    trials = Trials(most=1)
    assert gives(trials, POLICY, 1, 0.0)
    assert not trials.failed(POLICY, process(2))
    assert not trials.failed("another", process(1))
    assert trials.failed(POLICY, process(1))
    assert over(trials, 100.0) == [], "it was not tried without harm"
    assert gives(trials, POLICY, 3, 100.0)
    assert not gives(trials, POLICY, 4, 100.0)


def test_who_asked_and_was_given_nothing_tries_nothing() -> None:
    trials = Trials(most=1)
    assert trials.admits(POLICY, process(1))
    assert (trials.next_end(), over(trials, 100.0)) == (None, [])
    trials.begins(POLICY, process(1))
    assert (trials.next_end(), over(trials, 200.0)) == (None, [])
    trials.given(POLICY, process(1), 200.0)
    assert trials.next_end() == 202.0


def test_a_process_to_which_nothing_was_done_gives_its_place_to_who_waits() -> None:
    trials = Trials(most=1)
    trials.begins(POLICY, process(1))
    assert not trials.admits(POLICY, process(2))
    assert not trials.admits(POLICY, process(3))
    assert trials.withdraw(POLICY, process(1)) == [process(2)]
    assert gives(trials, POLICY, 2, 10.0)
    assert trials.withdraw(POLICY, process(2)) == [], "it was given it: a later act that does nothing takes no place"
    assert trials.failed(POLICY, process(2))
    trials.begins(POLICY, process(4))
    assert trials.withdraw(POLICY, process(4)) == []
    assert over(trials, 100.0) == []


def test_who_waits_for_a_place_and_is_gone_keeps_nobody_waiting() -> None:
    trials = Trials(most=2)
    for number in (1, 2):
        trials.begins(POLICY, process(number))
    for number in (3, 4, 5):
        assert not trials.admits(POLICY, process(number))
    assert trials.withdraw(POLICY, process(1)) == [process(3), process(4)]
    assert gives(trials, POLICY, 4, 1.0)
    assert trials.withdraw(POLICY, process(2)) == [process(5)]


def test_a_trial_waits_for_the_word_of_who_is_dying() -> None:
    trials = Trials(most=1)
    assert gives(trials, POLICY, 1, 0.0)
    assert not trials.admits(POLICY, process(2))
    assert trials.finished(2.0, lambda each: True, lambda each: True) == ([], [], [])
    assert trials.next_end() == 4.0
    assert trials.failed(POLICY, process(1))


def test_the_time_is_that_of_a_process_that_has_it() -> None:
    """Not of one that was to be given it first."""
    trials = Trials(most=2)
    trials.begins(POLICY, process(1))
    assert gives(trials, POLICY, 2, 1.9)
    trials.withdraw(POLICY, process(1))
    assert over(trials, 3.0) == []
    assert over(trials, 3.9) == [POLICY]


def test_of_whom_nobody_knows_how_it_ended_another_tries_it() -> None:
    trials = Trials(most=2)
    for number in (1, 2):
        gives(trials, POLICY, number, 0.0)
    trials.ended(process(1))
    assert not trials.admits(POLICY, process(3))
    assert trials.finished(2.0, lambda each: True, alive) == ([], [(POLICY, process(2))], [process(3)])
    assert gives(trials, POLICY, 3, 2.5)
    assert over(trials, 3.9) == []
    assert over(trials, 4.0) == [POLICY], "the one that ended well counts"
    gives(trials, "another", 4, 5.0)
    assert trials.finished(7.0, lambda each: True, alive) == ([], [("another", process(4))], [])
    assert trials.next_end() is None


@given(st.lists(st.booleans(), min_size=20, max_size=20))
def test_a_trial_comes_to_an_end_though_nobody_ever_tells(is_withdrawn: list[bool]) -> None:
    """Short processes, one after the other."""
    trials, at = Trials(most=1), 0.0
    for number, withdrawn in enumerate(is_withdrawn):
        if withdrawn:
            trials.begins(POLICY, process(100 + number))
            trials.withdraw(POLICY, process(100 + number))
        assert gives(trials, POLICY, number, at)
        at += 2.0
        finished = trials.finished(at, lambda each: True, alive)
        assert finished.unknown == [(POLICY, process(number))]
        if finished.over:
            break
    assert number == DOUBTS
    assert all(gives(trials, POLICY, number, at) for number in range(200, 300))


def test_who_died_of_one_policy_did_not_end_well_with_another() -> None:
    trials = Trials(most=1)
    assert gives(trials, "a", 1, 0.0)
    assert gives(trials, "b", 1, 0.0)
    assert trials.find(1) == process(1)
    assert trials.find(2) is None
    assert trials.failed("b", process(1))
    trials.ended(process(1))
    assert trials.finished(2.0, lambda each: True, alive) == ([], [("a", process(1))], [])


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
    stops.settle(process(1), 10, 6)
    assert stops.take(process(2), 10, 0.0) == 4
    stops.settle(process(2), 100, 0)
    assert stops.take(process(3), 100, 0.0) == 10, "never more than a second's worth"


@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 64), st.integers(0, 200), st.floats(0, 2)), max_size=60),
)
def test_what_an_act_took_too_much_is_paid_by_those_after_it(
    machine: int, each: int, acts: list[tuple[int, int, int, float]]
) -> None:
    """In any time at most what may be, and what the last act alone took beyond what it was granted."""
    stops, at = Stops(machine, each), 10.0
    made: list[tuple[float, int, int]] = []
    for number, count, wanted, wait in acts:
        at += wait
        granted = stops.take(process(number), count, at)
        if granted:
            stops.settle(process(number), granted, wanted)
            made.append((at, number, wanted))
    for begin, (first, number, _) in enumerate(made):
        total = mine = 0
        for when, other, count in made[begin:]:
            assert total < machine * (1 + when - first) + 1
            if other == number:
                assert mine < each * (1 + when - first) + 1
                mine += count
            total += count


def test_a_debt_is_not_forgotten_with_time_alone() -> None:
    stops = Stops(1000, 10)
    assert stops.take(process(1), 1, 0.0) == 1
    stops.settle(process(1), 1, 50)
    assert stops.take(process(2), 1, 2.0) == 1
    assert stops.take(process(1), 1, 2.0) == 0
    assert stops.take(process(1), 1, 4.2) == 1


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

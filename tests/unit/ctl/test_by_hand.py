"""What a person may ask of `bind` and `move`, and what they are told."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from hetmemd.ctl import by_hand as commands
from hetmemd.ctl import regions as shown
from hetmemd.ctl import text
from hetmemd.engine import by_hand
from hetmemd.engine.by_hand import Choice, Found
from hetmemd.engine.by_hand_brakes import RefusedError
from hetmemd.engine.regionwise import Change
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.memory import measure, plan
from hetmemd.memory.rebalance import StepResult
from hetmemd.memory.regions import Region
from hetmemd.policy.effective import Placement
from tests.unit.policy.given import DRAM_CXL

PAGE = 4096
BIND = Mempolicy(Mode.BIND, frozenset({1}), Flag.STATIC_NODES)
ALLOWED = frozenset({0, 1})


def region(start: int, end: int, kind: str = "anon", policy: Mempolicy = DEFAULT) -> Region:
    return Region(start * PAGE, end * PAGE, kind, "", policy, policy != DEFAULT, {0: end - start}, PAGE, False, 1)


def found(*regions: Region) -> Found:
    return Found(ProcessId(1, 1), 1, list(regions), ALLOWED, frozenset({0}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Choice(by_hand.PRIVATE)),
        ("stack", Choice(frozenset({"stack"}))),
        ("heap,anon", Choice(frozenset({"heap", "anon"}))),
        ("7f0000000000-7f0000002000", Choice(span=(0x7F0000000000, 0x7F0000002000))),
        ("0x1000-0x3000", Choice(span=(0x1000, 0x3000))),
    ],
)
def test_what_is_chosen(text: str | None, expected: Choice) -> None:
    assert commands.choice_of(text, by_hand.PRIVATE) == expected


@pytest.mark.parametrize("text", ["3000-1000", "1001-2000", "heap,stak", "0-0", ""])
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        commands.choice_of(text, by_hand.PRIVATE)


def test_requests() -> None:
    assert commands.bind_request("bind", "1", 0).home_node == 0
    assert commands.move_request("1", None).mode is Mode.BIND
    weighted = commands.move_request(None, "0=3,1=1")
    assert weighted.mode is Mode.WEIGHTED_INTERLEAVE
    assert isinstance(weighted.weights, tuple)
    assert [weight for _, weight in weighted.weights] == [3, 1]
    assert commands.move_request(None, "bandwidth").weights == "bandwidth"


@pytest.mark.parametrize(
    ("mode", "nodes", "home"),
    [("bnid", "1", None), ("bind", None, None), ("local", "1", None), ("interleave", "0-1", 0), ("bind", "x", None)],
)
def test_binds_that_cannot_be(mode: str, nodes: str | None, home: int | None) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        commands.bind_request(mode, nodes, home)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (None, None),
        (None, "0=3,1"),
        (None, "0=0"),
        ("x", None),
        (None, "0=256"),
        (None, "0=3,0=1"),
        (None, "0-1=3,1=1"),
        ("0", "0=3,1=1"),
    ],
)
def test_moves_that_cannot_be(nodes: str | None, weights: str | None) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        commands.move_request(nodes, weights)


def test_what_is_cut_from_a_request_is_told() -> None:
    request = commands.bind_request("bind", "1", 9)
    placement, notes = by_hand.placement_of(request, found(region(0, 1)), DRAM_CXL)
    assert (placement.mempolicy, placement.home_node) == (BIND, None)
    told = {"policy": "", "ranges": [], "bytes": 0, "left": {}, "notes": notes, "dry_run": True}
    said = "\n".join(commands.bind_lines(told, text.Paint(False)))
    assert "home" in said


def test_a_node_that_is_named_is_meant() -> None:
    for request in (commands.bind_request("bind", "1,7", None), commands.move_request(None, "0=3,7=1")):
        with pytest.raises(RefusedError, match=r"node 7 .* may use 0-1"):
            by_hand.placement_of(request, found(region(0, 1)), DRAM_CXL)


def test_regions_are_cut_to_a_range_and_joined() -> None:
    process = found(region(0, 10), region(10, 20, "heap"), region(20, 30, "exec"), region(40, 50, policy=BIND))
    chosen = Choice(span=(5 * PAGE, 25 * PAGE)).cut(process.regions)
    made = by_hand.changes(chosen, Placement(BIND), process, DRAM_CXL, False)
    assert made.made == (Change(5 * PAGE, 20 * PAGE, BIND, DEFAULT),)
    assert made.left == {"exec: cannot be bound": 1}


def test_what_the_application_bound_is_left_unless_told_otherwise() -> None:
    own = Mempolicy(Mode.INTERLEAVE, frozenset({0, 1}))
    process = found(region(0, 10, policy=own), region(20, 30, policy=BIND), region(30, 40))
    left = by_hand.changes(process.regions, Placement(BIND), process, DRAM_CXL, False)
    assert [(change.start, change.end) for change in left.made] == [(30 * PAGE, 40 * PAGE)]
    assert sum(left.left.values()) == 2
    every = by_hand.changes(process.regions, Placement(BIND), process, DRAM_CXL, True)
    assert [(change.start, change.end) for change in every.made] == [(0, 10 * PAGE), (30 * PAGE, 40 * PAGE)]
    # Taking away is no contest with anybody who has nothing.
    gone = by_hand.changes(process.regions, Placement(DEFAULT), process, DRAM_CXL, True)
    assert [(change.start, change.end) for change in gone.made] == [(0, 10 * PAGE), (20 * PAGE, 30 * PAGE)]


def test_shared_and_huge_memory_only_where_it_is_cleared() -> None:
    process = found(region(0, 10, "shm"), region(20, 30, "shm"), region(40, 50, "hugetlb"))
    told = by_hand.changes(process.regions, Placement(BIND), process, DRAM_CXL, True, frozenset({20 * PAGE}))
    assert [(change.start, change.end) for change in told.made] == [(20 * PAGE, 30 * PAGE)]
    assert [why.partition(":")[0] for why in told.left] == ["shm", "hugetlb"]


@pytest.mark.parametrize(("first", "last", "is_bound"), [(512, 1024, True), (512, 1000, False), (600, 1024, False)])
def test_a_huge_page_of_hugetlb_is_bound_whole_or_not_at_all(first: int, last: int, is_bound: bool) -> None:
    whole = replace(region(512, 2048, "hugetlb"), page_size=2 << 20)
    process = found(whole)
    chosen = Choice(span=(first * PAGE, last * PAGE)).cut(process.regions)
    told = by_hand.changes(chosen, Placement(BIND), process, DRAM_CXL, True, frozenset({each.start for each in chosen}))
    assert (len(told.made), len(told.left)) == ((1, 0) if is_bound else (0, 1))


class _Mover:
    """Pages that are busy until a while has passed."""

    def __init__(self, *results: StepResult) -> None:
        self.results = list(results)
        self.steps = 0
        self.until = 0.0

    def step(self, allow_bytes: int) -> StepResult:
        self.steps += 1
        if time.monotonic() < self.until:
            return StepResult(wait=self.until - time.monotonic())
        result = self.results.pop(0)
        self.until = time.monotonic() + max(result.wait, result.seconds)
        return result


@pytest.mark.parametrize("result", [StepResult(wait=0.2), StepResult(bytes_moved=PAGE, seconds=0.2)])
def test_moving_waits_for_busy_pages_and_leaves_the_target_half_of_the_time(result: StepResult) -> None:
    mover = _Mover(result, StepResult(bytes_moved=PAGE, done=True))
    told = by_hand.move(mover, 1 << 30, lambda: "", lambda moved: None)  # type: ignore[arg-type]
    assert mover.steps <= 3
    assert told["stopped"] is None


def test_moving_stops_when_it_has_to() -> None:
    words = iter(["", "", "the kill switch is on"])
    mover = _Mover(*[StepResult(bytes_moved=PAGE)] * 9)
    told = by_hand.move(mover, 1 << 30, lambda: next(words), lambda moved: None)  # type: ignore[arg-type]
    assert (told["stopped"], told["moved_bytes"], mover.steps) == ("the kill switch is on", 2 * PAGE, 2)
    before = {"bytes_by_node": {}, "distance": 0.0}
    told = {"before": before, "notes": [], "left": {"shm": 8192}, "dry_run": False, **told}
    lines = commands.move_lines(told, text.Paint(False))
    assert "stopped: the kill switch is on" in lines
    assert "  left: 8.0 KiB, shm" in lines


def test_what_was_moved_is_told_when_somebody_has_waited_enough() -> None:
    def interrupt(moved: int) -> None:
        raise KeyboardInterrupt

    mover = _Mover(*[StepResult(bytes_moved=PAGE)] * 3)
    told = by_hand.move(mover, 1 << 30, lambda: "", interrupt)  # type: ignore[arg-type]
    assert (told["moved_bytes"], told["stopped"]) == (PAGE, "interrupted")


def test_what_lies_wrong_is_what_would_move() -> None:
    process = found(region(0, 100), region(200, 300, "stack"), region(300, 350, policy=BIND))
    share = by_hand.share_of(Choice(), plan.ratio({0: 3, 1: 1}))
    where = by_hand.placed(measure.of_regions(process.regions, share))
    assert where["bytes_by_node"] == {"0": 150 * PAGE}
    assert where["misplaced_bytes"] == pytest.approx(150 * PAGE / 4, abs=1)


def test_who_owns_the_process_is_said() -> None:
    told = {"own": {"file": "/etc/hetmemd.d/5.toml", "line": 2}, "state": "active"}
    assert "/etc/hetmemd.d/5.toml:2" in commands.owner_of(told, True)
    assert commands.owner_of(None, True) == ""
    assert commands.owner_of({"own": None, "inherited_from": None, "state": "default"}, False) == ""


def test_sizes() -> None:
    assert [shown.size(count) for count in (5, 4096, 5 << 20, 3 << 30)] == ["5 B", "4.0 KiB", "5.0 MiB", "3.0 GiB"]

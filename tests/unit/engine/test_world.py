"""What should be, read from a machine in a folder; and the snapshot made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hetmemd.engine.measuring import target_of
from hetmemd.engine.publishing import Progress, snapshot
from hetmemd.engine.record import Record, worst
from hetmemd.engine.world import World
from hetmemd.kernel.cgroupfs import NoCgroup2
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.machine.topology import Machine, Node
from hetmemd.memory import plan
from hetmemd.policy.effective import Handling, Placement
from hetmemd.remote.result import Outcome
from hetmemd.report import answers
from hetmemd.report.snapshot import Snapshot

BOTH = frozenset({0, 1})
POLICY = '[[policy]]\ncgroup = "/a"\nmode = "weighted-interleave"\nnodes = "all"\nweights = { 0 = 3, 1 = 1 }\n'


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two nodes, node 1 without CPUs; cgroups /a, /a/b and /c."""
    node = tmp_path / "sys/devices/system/node"
    for number, cpus in ((0, "0-1"), (1, "")):
        folder = node / f"node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
        (folder / "meminfo").write_text(f"Node {number} MemTotal:       1048576 kB\n")
        (folder / "distance").write_text("10 20\n" if number == 0 else "20 10\n")
    for name in ("online", "has_memory", "possible"):
        (node / name).write_text("0-1\n")
    (node / "has_cpu").write_text("0\n")
    weights = tmp_path / "sys/kernel/mm/mempolicy/weighted_interleave"
    weights.mkdir(parents=True)
    for number in (0, 1):
        (weights / f"node{number}").write_text("1\n")
    for path in ("a/b", "c"):
        (tmp_path / "sys/fs/cgroup" / path).mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "etc/hetmemd.d").mkdir(parents=True)
    return Root(tmp_path)


@pytest.fixture
def world(root: Root) -> World:
    world = World(root, Handling())
    world.look("/")
    return world


def drop(root: Root, text: str) -> None:
    root.path("/etc/hetmemd.d/50-a.toml").write_text(text)


def test_a_machine_without_cgroup2_is_refused(root: Root) -> None:
    root.path("/proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n")
    with pytest.raises(NoCgroup2):
        World(root, Handling())


def test_what_changes_is_named_and_nothing_else(root: Root, world: World) -> None:
    drop(root, POLICY)
    assert world.read_files() == {"/a", "/a/b"}
    assert world.read_files() == set()
    assert world.wanted("/a/b").policy == Mempolicy(Mode.WEIGHTED_INTERLEAVE, BOTH, Flag.STATIC_NODES)
    assert world.wanted("/a/b").why == "/etc/hetmemd.d/50-a.toml:1"
    assert world.wanted("/c").policy is None
    root.path("/etc/hetmemd.d/50-a.toml").unlink()
    assert world.read_files() == {"/a", "/a/b"}
    assert not world.reached("/a")


def test_M2_a_cgroup_that_comes_and_goes_and_comes_again(root: Root, world: World) -> None:
    drop(root, POLICY)
    world.read_files()
    new = root.path("/sys/fs/cgroup/a/new")
    new.mkdir()
    assert world.look("/a/new") == {"/a/new"}
    assert world.reached("/a/new")
    assert world.look("/a/new") == set()
    new.rmdir()
    assert world.look("/a/new") == set()
    assert not world.reached("/a/new")
    assert world.explain("/a/new").placement == world.placement("/a")


def test_L5_without_weighted_interleave_it_is_interleave_and_said(root: Root) -> None:
    for file in root.path("/sys/kernel/mm/mempolicy/weighted_interleave").iterdir():
        file.unlink()
    root.path("/sys/kernel/mm/mempolicy/weighted_interleave").rmdir()
    root.path("/sys/kernel/mm/mempolicy").rmdir()
    drop(root, POLICY)
    world = World(root, Handling())
    world.look("/")
    wanted = world.wanted("/a").policy
    assert wanted is not None
    assert wanted.mode is Mode.INTERLEAVE
    told = snapshot(world, [], (), Progress(0.0, False, 0, 0.0), ())
    assert any("moving" in note for note in told.notes)
    placement = world.placement("/a")
    assert placement is not None
    assert target_of(placement, BOTH, world.machine) == plan.ratio({0: 3, 1: 1})


def test_a_snapshot_sums_up_what_is_known(root: Root, world: World) -> None:
    drop(root, POLICY)
    world.read_files()
    records = [
        Record(
            ProcessId(number, 1),
            "x",
            "/a",
            world.placement("/a"),
            Outcome.APPLIED,
            "",
            allowed=BOTH,
            bytes_by_node={0: 4096 * number},
            distance=0.25,
        )
        for number in (10, 11)
    ]
    told = snapshot(world, records, (), Progress(0.0, True, 3, 0.5), ("a note",))
    by_path = {view.effective.cgroup: view for view in told.cgroups}
    assert set(by_path) == {"/a", "/a/b"}
    assert by_path["/a"].bytes_by_node == {0: 4096 * 21}
    assert by_path["/a"].distance == pytest.approx(0.25)
    assert by_path["/a"].target_shares == {0: 0.75, 1: 0.25}
    assert by_path["/a/b"].distance is None
    assert told.observing
    assert "a note" in told.notes


def test_L6_who_else_moves_pages_is_read_again_with_the_machine_and_told(
    root: Root, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    drop(root, POLICY)
    world.read_files()
    held = Record(ProcessId(10, 1), "x", "/a", world.placement("/a"), went_back=3, bytes_by_node={0: 1}, distance=0.25)

    def told() -> Snapshot:
        return snapshot(world, [held], (), Progress(0.0, False, 0, 0.0), ())

    def notes() -> list[str]:
        view = next(view for view in told().cgroups if view.effective.cgroup == "/a")
        found: list[str] = answers.explain(view.effective, view)["notes"]
        return [note for note in found if "moved back" in note]

    assert {mover["state"] for mover in answers.status(told())["movers"]} == {"off"}
    assert "no mover of the kernel" in notes()[0]
    switch = root.path("/sys/kernel/mm/numa/demotion_enabled")
    switch.parent.mkdir(parents=True)
    switch.write_text("true\n")
    assert "no mover of the kernel" in notes()[0]
    with caplog.at_level("INFO"):
        world.read_machine()
        world.read_machine()
    assert [record.message.split(" ")[0] for record in caplog.records] == ["demotion"], "once, when it is turned on"
    assert {mover["name"]: mover["state"] for mover in answers.status(told())["movers"]}["demotion"] == "on"
    assert "demotion" in notes()[0]


def test_where_pages_should_be_by_mode(world: World) -> None:
    def target(mode: Mode, nodes: set[int], allowed: frozenset[int] = BOTH) -> plan.Target | None:
        return target_of(Placement(Mempolicy(mode, frozenset(nodes))), allowed, world.machine)

    assert target(Mode.INTERLEAVE, {0, 1}) == plan.ratio({0: 1, 1: 1})
    assert target(Mode.INTERLEAVE, {0, 1}, frozenset({1})) == plan.ratio({1: 1})
    bound = target(Mode.BIND, {1})
    assert isinstance(bound, plan.Within)
    assert bound.nodes == (1,)
    assert target(Mode.BIND, {1}, frozenset({0})) is None
    assert target(Mode.DEFAULT, set()) is None
    assert target(Mode.LOCAL, set()) is None
    home = target_of(Placement(Mempolicy(Mode.LOCAL)), BOTH, world.machine, frozenset({1}))
    assert isinstance(home, plan.Within)
    assert (home.nodes, home.destination(1)) == ((0,), 0)
    assert target_of(Placement(Mempolicy(Mode.LOCAL)), frozenset({1}), world.machine, frozenset({1})) is None


def test_what_is_local_to_cpus_without_memory_is_the_nearest() -> None:
    distances = {0: 21, 1: 10, 2: 31}
    machine = Machine(
        {
            0: Node(0, frozenset({0}), 1 << 30),
            1: Node(1, frozenset({1}), 0, distances, has_memory=False),
            2: Node(2, frozenset(), 1 << 30),
        }
    )
    local = Placement(Mempolicy(Mode.LOCAL))
    home = target_of(local, frozenset({0, 2}), machine, frozenset({1}))
    assert isinstance(home, plan.Within)
    assert home.nodes == (0,)


def test_the_worst_thread_speaks_for_a_process() -> None:
    assert worst([(Outcome.APPLIED, ""), (Outcome.FOREIGN, "own-bind"), (Outcome.DEFERRED, "frozen")]) == (
        Outcome.FOREIGN,
        "own-bind",
    )
    assert worst([]) == (Outcome.GONE, "")
    for outcome in Outcome:
        assert worst([(outcome, "x")]) == (outcome, "x"), "every outcome has its place"


def test_a_new_address_space_or_placement_is_measured_anew() -> None:
    record = Record(ProcessId(1, 1), "x", "/a", None, measure_at=99.0, idle_passes=3)
    before = dataclasses.replace(record)
    record.renew()
    assert (record.measure_at, record.idle_passes) == (0.0, 0)
    assert record.process == before.process


BINDS = '[[policy]]\ncgroup = "/a"\nmode = "bind"\nnodes = "0"\nmemory = ["heap"]\n'
OTHERS = {
    "the value": BINDS.replace('"0"', '"1"'),
    "memory": BINDS.replace("heap", "anon"),
    "home_node": BINDS + "home_node = 0\n",
    "min_region": BINDS + 'min_region = "2MiB"\n',
    "min_age": BINDS + 'min_age = "1s"\n',
    "foreign": BINDS + 'foreign = "override"\n',
    "the cgroups": BINDS.replace('"/a"', '"/a*"'),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_changes_what_is_done_to_tasks_is_a_new_policy(root: Root, world: World, other: str) -> None:
    drop(root, BINDS)
    world.read_files()
    before = world.wish("/a").key
    drop(root, other)
    world.read_files()
    assert world.wish("/a").key not in ("", before)
    assert world.wish("/a").key == world.wanted("/a").key


def test_what_only_moves_pages_or_moves_in_its_file_is_the_same_policy(root: Root, world: World) -> None:
    drop(root, BINDS)
    world.read_files()
    before = world.wanted("/a").key
    assert before == "bind=static:0, memory heap for /a of /etc/hetmemd.d/50-a.toml"
    drop(root, f'# About it.\n\n{BINDS}rate = "1MiB/s"\nexisting = "leave"\n')
    world.read_files()
    assert world.wanted("/a").key == world.wanted("/a/b").key == before


def test_a_new_table_in_the_same_file_is_a_new_policy(root: Root, world: World) -> None:
    drop(root, BINDS + BINDS.replace('"/a"', '"/c"'))
    world.read_files()
    assert world.wanted("/a").key != world.wanted("/c").key

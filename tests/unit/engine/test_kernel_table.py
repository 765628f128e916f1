"""`[kernel] weights` on a small tree; what the kernel makes of the writes is seen in tests/guest/test_weights.py."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.engine.kernel_table import PATH, KernelTable
from hetmemd.kernel.root import Root
from hetmemd.machine import table, topology
from hetmemd.policy import nodes
from hetmemd.policy.language import Weights
from tests.unit.machine.sysfs import DRAM_AND_CXL, FakeNode, build

GIVEN = ((nodes.parse("dram"), 7), (nodes.parse("1"), 2))


class Kept:
    """A tree whose table one `KernelTable` keeps."""

    def __init__(self, top: Path) -> None:
        self.root = Root(top)
        self.off = False
        self.start()

    def start(self) -> None:
        self.table = KernelTable(self.root, lambda: self.off)

    def hold(self, setting: Weights, insist: bool = False) -> bool:
        return self.table.hold(setting, topology.read(self.root), insist)

    def held(self) -> tuple[dict[int, int] | None, bool | None]:
        return topology.kernel_table(self.root)

    def write(self, **files: object) -> None:
        """What somebody else writes."""
        for name, value in files.items():
            table.write(self.root, (name, str(value)))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(build(tmp_path, DRAM_AND_CXL, weights={0: 1, 1: 1}))


def test_leave_touches_nothing(kept: Kept) -> None:
    assert not kept.hold("leave")
    assert kept.held() == ({0: 1, 1: 1}, None)
    assert not kept.root.path(PATH).exists()


def test_weights_by_hand_and_what_was_there_is_given_back(kept: Kept) -> None:
    kept.write(node1=5)
    assert kept.hold(GIVEN) and kept.held() == ({0: 7, 1: 2}, None)
    assert not kept.hold(GIVEN), "once"
    assert kept.table.give_back() and kept.held() == ({0: 1, 1: 5}, None)
    assert not kept.table.give_back() and not kept.root.path(PATH).exists()


def test_bandwidth_without_a_switch_is_the_kernels_reduction(kept: Kept) -> None:
    assert kept.hold("bandwidth") and kept.held() == ({0: 25, 1: 6}, None)
    assert kept.table.notes == ()


def test_bandwidth_where_there_is_a_switch_turns_it(tmp_path: Path) -> None:
    kept = Kept(build(tmp_path, DRAM_AND_CXL, weights={0: 1, 1: 1}, auto="false"))
    assert kept.hold("bandwidth") and kept.held() == ({0: 1, 1: 1}, True), "the kernel computes"
    assert not kept.hold("bandwidth")
    assert kept.table.give_back() and kept.held()[1] is False


def test_a_switch_that_was_on_is_turned_on_again_last(tmp_path: Path) -> None:
    kept = Kept(build(tmp_path, DRAM_AND_CXL, weights={0: 25, 1: 6}, auto="true"))
    assert kept.hold(GIVEN) and kept.held() == ({0: 7, 1: 2}, False)
    assert kept.table.give_back() and kept.held() == ({0: 25, 1: 6}, True)


def test_bandwidth_without_figures_changes_nothing_and_says_so(tmp_path: Path) -> None:
    kept = Kept(build(tmp_path, {0: FakeNode("0"), 1: FakeNode("")}, weights={0: 1, 1: 1}))
    assert not kept.hold("bandwidth")
    assert "node 0, 1" in kept.table.notes[0] and kept.held() == ({0: 1, 1: 1}, None)


def test_a_kernel_that_has_no_figures_is_given_those_of_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENODEV from `auto`: no kernel of the lab has figures in sysfs and none inside."""
    kept = Kept(build(tmp_path, DRAM_AND_CXL, weights={0: 1, 1: 1}, auto="false"))
    honest = table.write

    def write(root: Root, step: table.Write) -> None:
        if step == ("auto", "true"):
            raise OSError(errno.ENODEV, "No such device", "auto")
        honest(root, step)

    monkeypatch.setattr(table, "write", write)
    assert kept.hold("bandwidth") and kept.held() == ({0: 25, 1: 6}, False)
    assert not kept.hold("bandwidth"), "what could be done was done"
    monkeypatch.undo()
    kept.write(auto="true")
    assert not kept.hold("bandwidth") and kept.table.notes == ()


def test_a_switch_that_cannot_be_turned_back_on_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(build(tmp_path, {0: FakeNode("0"), 1: FakeNode("")}, weights={0: 1, 1: 1}, auto="true"))
    assert kept.hold(GIVEN)
    honest = table.write

    def write(root: Root, step: table.Write) -> None:
        if step == ("auto", "true"):
            raise OSError(errno.ENODEV, "No such device", "auto")
        honest(root, step)

    monkeypatch.setattr(table, "write", write)
    assert kept.table.give_back() and kept.held() == ({0: 1, 1: 1}, False)
    assert "until the next boot" in kept.table.notes[0]


def test_before_6_9_there_is_no_table(tmp_path: Path) -> None:
    kept = Kept(build(tmp_path, DRAM_AND_CXL))
    assert not kept.hold(GIVEN) and "6.9" in kept.table.notes[0]


def test_the_kill_switch_leaves_it(kept: Kept) -> None:
    kept.off = True
    assert not kept.hold(GIVEN) and kept.held() == ({0: 1, 1: 1}, None)
    kept.off = False
    kept.hold(GIVEN)
    kept.off = True
    assert not kept.hold("leave") and not kept.table.give_back() and kept.held() == ({0: 7, 1: 2}, None)


def test_somebody_elses_word_stays_until_a_reload(kept: Kept) -> None:
    kept.hold(GIVEN)
    kept.write(node0=9)
    assert not kept.hold(GIVEN) and kept.held() == ({0: 9, 1: 2}, None)
    assert "somebody else" in kept.table.notes[0]
    assert kept.hold(GIVEN, insist=True) and kept.held() == ({0: 7, 1: 2}, None)
    kept.write(node0=9)
    assert kept.table.give_back() and kept.held() == ({0: 9, 1: 1}, None), "what they wrote is theirs"


def test_a_restart_knows_what_was_there(kept: Kept) -> None:
    kept.hold(GIVEN)
    kept.start()
    assert not kept.hold(GIVEN)
    assert kept.hold("leave") and kept.held() == ({0: 1, 1: 1}, None), "a setting that goes is undone"


class KilledError(Exception):
    pass


@pytest.mark.parametrize("is_asked_still", [True, False])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_killed_amid_its_writes_it_goes_on_or_gives_back(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, done: int, is_asked_still: bool
) -> None:
    """After the record of what was there, after one of the two weights, after both."""
    steps = iter(range(done))

    def then_killed(act: Callable[..., object]) -> Callable[..., object]:
        def act_or_die(*what: object) -> object:
            if next(steps, None) is None:
                raise KilledError
            return act(*what)

        return act_or_die

    with monkeypatch.context() as patch:
        patch.setattr(table, "write", then_killed(table.write))
        patch.setattr(kept.table, "_keep", then_killed(kept.table._keep))
        with pytest.raises(KilledError):
            kept.hold(GIVEN)
    kept.start()
    if is_asked_still:
        kept.hold(GIVEN)
        assert kept.held() == ({0: 7, 1: 2}, None) and kept.table.notes == ()
    kept.hold("leave")
    assert kept.held() == ({0: 1, 1: 1}, None) and not kept.root.path(PATH).exists()


def test_another_setting_keeps_what_was_there_first(kept: Kept) -> None:
    kept.hold(GIVEN)
    assert kept.hold("bandwidth") and kept.held() == ({0: 25, 1: 6}, None)
    assert kept.table.give_back() and kept.held() == ({0: 1, 1: 1}, None)


def test_selectors_that_disagree_change_nothing(kept: Kept) -> None:
    both = ((nodes.parse("dram"), 7), (nodes.parse("all"), 2))
    assert not kept.hold(both) and "two weights" in kept.table.notes[0]
    assert kept.held() == ({0: 1, 1: 1}, None)


def test_a_node_that_does_not_exist_is_said_for_as_long_as_it_is_asked_for(kept: Kept) -> None:
    more = (*GIVEN, (nodes.parse("5,7"), 2))
    assert kept.hold(more) and kept.held() == ({0: 7, 1: 2}, None)
    assert not kept.hold(more)
    assert kept.table.notes == ("[kernel] weights: there is no node 5,7 on this machine",)


def test_without_a_place_to_remember_nothing_is_written(kept: Kept) -> None:
    kept.root.path("/run").write_text("in the way")
    assert not kept.hold(GIVEN) and kept.held() == ({0: 1, 1: 1}, None)
    assert PATH in kept.table.notes[0]


def test_what_could_not_be_given_back_is_tried_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """EROFS, as where a unit of one's own leaves /sys read-only: root writes to every file of a small tree."""
    kept.hold(GIVEN)

    def write(root: Root, step: table.Write) -> None:
        raise OSError(errno.EROFS, "Read-only file system", step[0])

    monkeypatch.setattr(table, "write", write)
    assert not kept.hold("leave") and "Read-only file system" in kept.table.notes[0]
    monkeypatch.undo()
    assert kept.hold("leave") and kept.held() == ({0: 1, 1: 1}, None)


def test_a_torn_record_is_told(kept: Kept) -> None:
    kept.hold(GIVEN)
    kept.root.path(PATH).write_text("{")
    assert not kept.table.give_back()
    assert "cannot be read" in kept.table.notes[0]

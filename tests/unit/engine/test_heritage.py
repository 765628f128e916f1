"""What a child has of its parent's regions, told from a small tree."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.engine import heritage as its_module
from hetmemd.engine.decide import Mark
from hetmemd.engine.heritage import Heritage
from hetmemd.engine.ledger import BOOT_ID, Ledger, Span
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

WEIGHTED = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)
MARKS = {Span(4096, 8192): Mark(WEIGHTED, Mempolicy(Mode.LOCAL))}
OTHERS = {Span(4096, 8192): Mark(Mempolicy(Mode.LOCAL))}

UNTOLD = 0
"""Of the address space nothing is told."""


class Counting(Root):
    """Counts what is read."""

    readings = 0

    def read_bytes(self, path: str) -> bytes:
        self.readings += 1
        return super().read_bytes(path)


class Tree:
    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = Counting(top)
        self.root.path(BOOT_ID).parent.mkdir(parents=True)
        self.root.path(BOOT_ID).write_text("boot")
        self.ledger = Ledger(self.root)

    def process(self, pid: int, ppid: int = 1, start: int | None = None, program: int = 1) -> ProcessId:
        """Its address space begins at `program`."""
        start = 100 * pid if start is None else start
        fields = ["S", str(ppid), *["0"] * 17, str(start), *["0"] * 30]
        if program == UNTOLD:
            fields[23] = "1"
        else:
            fields[23], fields[25], fields[44] = f"{program}1", f"{program}2", f"{program}3"
        folder = self.top / f"proc/{pid}/task/{pid}"
        folder.mkdir(parents=True, exist_ok=True)
        (self.top / f"proc/{pid}/stat").write_text(f"{pid} (a) b) " + " ".join(fields))
        (folder / "children").touch()
        if (mother := self.top / f"proc/{ppid}/task/{ppid}/children").exists():
            mother.write_text(f"{mother.read_text()}{pid} ")
        return ProcessId(pid, start)

    def end(self, pid: int) -> None:
        (self.top / f"proc/{pid}/stat").unlink()


@pytest.fixture
def tree(tmp_path: Path) -> Generator[Tree, None, None]:
    tree = Tree(tmp_path)
    yield tree
    tree.ledger.close()


def bound(tree: Tree, heritage: Heritage, pid: int) -> ProcessId:
    process = tree.process(pid)
    heritage.bound(process)
    tree.ledger.set_regions(process, MARKS)
    return process


def test_a_child_that_was_heard_of_has_what_its_parent_had_then(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    parent = bound(tree, heritage, 10)
    child, grandchild = tree.process(11, 10), tree.process(12, 11)
    heritage.forked(11, 10)
    heritage.forked(12, 11)
    # The policy goes, and so do the parents, before anybody looks at the children.
    tree.ledger.set_regions(parent, dict.fromkeys(MARKS))
    tree.end(10)
    assert not heritage.take(child)
    assert not heritage.take(grandchild)
    assert tree.ledger.regions(child) == tree.ledger.regions(grandchild) == MARKS


def test_an_exec_ends_it(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    bound(tree, heritage, 10)
    heard, unheard = tree.process(11, 10), tree.process(12, 10)
    heritage.forked(11, 10)
    heritage.executed(11)
    heritage.forked(12, 10)
    tree.process(12, 10, program=2)
    assert not heritage.take(heard)
    assert not heritage.take(unheard)
    assert not tree.ledger.regions(heard)
    assert not tree.ledger.regions(unheard)


def test_the_child_of_one_that_has_nothing_need_not_be_read(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    assert not heritage.take(tree.process(9)), "nothing was ever bound"
    bound(tree, heritage, 10)
    tree.process(5)
    child = tree.process(11, 5)
    heritage.forked(11, 5)
    assert not heritage.take(child)
    assert not heritage.take(tree.process(6)), "older than whatever was bound"


def test_a_child_that_nobody_heard_of(tree: Tree) -> None:
    """A daemon that was away: the parent tells, or a relative, or else it has to be read, once."""
    tree.ledger.set_regions(tree.process(10), MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    child, orphan = tree.process(11, 10), tree.process(12, 1)
    assert not heritage.take(child)
    assert not heritage.take(orphan)
    assert tree.ledger.regions(child) == tree.ledger.regions(orphan) == MARKS
    stranger = tree.process(13, 10, program=3)
    assert heritage.take(stranger)
    heritage.settle(stranger)
    assert not heritage.take(stranger)
    assert heritage.take(tree.process(13, 10, start=1400, program=3)), "another process has that pid"


def test_what_is_about_to_change_is_left_to_the_children_as_it_was(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    parent = bound(tree, heritage, 10)
    child, grandchild, looked_at = tree.process(11, 10), tree.process(12, 11), tree.process(13, 10)
    tree.ledger.set_regions(looked_at, OTHERS)
    heritage.bequeath(parent)
    tree.ledger.set_regions(parent, dict.fromkeys(MARKS))
    # The fork is heard of only now.
    heritage.forked(11, 10)
    for process in (child, grandchild, looked_at):
        assert not heritage.take(process)
    assert tree.ledger.regions(child) == tree.ledger.regions(grandchild) == MARKS
    assert tree.ledger.regions(looked_at) == OTHERS


def test_a_daemon_that_ends_writes_down_what_it_knows(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    bound(tree, heritage, 10)
    child, ended = tree.process(11, 10), tree.process(12, 10)
    heritage.forked(11, 10)
    heritage.forked(12, 10)
    tree.end(12)
    heritage.keep()
    assert tree.ledger.regions(child) == MARKS
    assert not tree.ledger.regions(ended)


def test_the_child_of_one_that_is_not_known_itself_is_not_known(tree: Tree) -> None:
    tree.ledger.set_regions(tree.process(10), MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    tree.process(11, 1, program=4)
    heritage.forked(12, 11)
    child = tree.process(12, 11, program=4)
    heritage.forked(12, 11)
    assert heritage.take(child)


def test_relatives_are_read_once_however_many_look_for_one(tree: Tree) -> None:
    many = 40
    relatives = [tree.process(pid, program=pid) for pid in range(100, 100 + many)]
    for relative in relatives:
        tree.ledger.set_regions(relative, MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    strangers = [tree.process(pid, start=99999, program=pid) for pid in range(500, 500 + many)]
    orphans = [tree.process(pid, start=99999, program=pid - 500) for pid in range(600, 600 + many)]
    tree.root.readings = 0
    assert all(heritage.take(stranger) for stranger in strangers)
    assert tree.root.readings <= 3 * many, "each its own and its parent's, and each relative's once"
    for relative in relatives:
        heritage.bound(relative)  # once more
    assert all(heritage.take(stranger) for stranger in strangers[:2])
    tree.root.readings = 0
    assert not any(heritage.take(orphan) for orphan in orphans)
    assert all(tree.ledger.regions(orphan) == MARKS for orphan in orphans)
    assert tree.root.readings <= 4 * many


def test_a_relative_that_executes_another_program_is_one_no_more(tree: Tree) -> None:
    relative = tree.process(10)
    tree.ledger.set_regions(relative, MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    assert heritage.take(tree.process(11, program=3)), "a stranger"
    tree.process(10, program=2)
    assert heritage.take(tree.process(12)), "the address space is another"
    tree.end(10)
    assert heritage.take(tree.process(13, program=2)), "nobody is left to tell"


def test_one_that_was_read_after_an_exec_tells_what_it_has_now(tree: Tree) -> None:
    tree.ledger.set_regions(tree.process(5, program=4), MARKS)
    relative = tree.process(10)
    tree.ledger.set_regions(relative, MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    assert heritage.take(tree.process(11, program=3)), "a stranger"
    tree.process(10, program=2)
    tree.ledger.set_regions(relative, dict.fromkeys(MARKS))
    tree.ledger.set_regions(relative, OTHERS)
    heritage.settle(relative)
    child = tree.process(13, program=2)
    assert not heritage.take(child)
    assert tree.ledger.regions(child) == OTHERS
    assert heritage.take(tree.process(14, start=999, program=2)), "it is older than who might have forked it"


def test_the_oldest_relative_tells(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    for pid, marks in ((12, OTHERS), (10, MARKS), (11, OTHERS)):
        process = tree.process(pid)
        heritage.bound(process)
        tree.ledger.set_regions(process, marks)
        heritage.settle(process)
    orphan = tree.process(13)
    assert not heritage.take(orphan)
    assert tree.ledger.regions(orphan) == MARKS


def test_address_spaces_of_which_nothing_is_told_are_no_relatives(tree: Tree) -> None:
    tree.ledger.set_regions(tree.process(10, program=UNTOLD), MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    child, stranger = tree.process(11, 10, program=UNTOLD), tree.process(12, 1, program=UNTOLD)
    heritage.forked(11, 10)
    for process in (child, stranger):
        assert heritage.take(process), "it has to be read"
        assert not tree.ledger.regions(process)


def test_what_is_not_told_any_more_says_nothing_of_what_was_inherited(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    bound(tree, heritage, 10)
    tree.process(11, 10)
    heritage.forked(11, 10)
    assert heritage.take(tree.process(11, 10, program=UNTOLD))


def test_a_daemon_that_ends_writes_down_what_orphans_have(tree: Tree) -> None:
    heritage = Heritage(tree.root, tree.ledger)
    bound(tree, heritage, 10)
    child = tree.process(11, 10)
    heritage.forked(11, 10)
    tree.process(11, 1)  # its parent ended
    heritage.keep()
    assert tree.ledger.regions(child) == MARKS


def test_the_loop_has_its_turn_between_children_that_inherit_much(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its_module, "LONG", -1.0)
    tree.ledger.set_regions(tree.process(10), MARKS)
    heritage = Heritage(tree.root, tree.ledger)
    children = [tree.process(pid, 10) for pid in range(11, 31)]
    seen: list[int] = []

    async def inherit() -> None:
        looks = [asyncio.ensure_future(heritage.inherit(child)) for child in children]
        while not all(look.done() for look in looks):
            await asyncio.sleep(0)
            seen.append(len(tree.ledger.processes()) - 1)

    asyncio.run(inherit())
    assert seen[-1] == len(children)
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) == 1

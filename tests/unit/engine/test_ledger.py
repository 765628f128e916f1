"""The ledger over restarts, boots and torn files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.engine.decide import Mark
from hetmemd.engine.ledger import BOOT_ID, PATH, Ledger
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root

POLICY = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)
ONE, TWO = ProcessId(100, 5000), ProcessId(101, 5001)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    boot(root, "first")
    return root


def boot(root: Root, name: str) -> None:
    root.path(BOOT_ID).parent.mkdir(parents=True, exist_ok=True)
    root.path(BOOT_ID).write_text(name + "\n")


def test_L4_what_was_issued_is_known_after_a_restart(root: Root) -> None:
    ledger = Ledger(root)
    ledger.will_issue(POLICY)
    ledger.set_marks(ONE, {100: Mark(POLICY), 102: Mark(POLICY, Mempolicy(Mode.LOCAL))})
    ledger.set_marks(TWO, {101: Mark(POLICY)})
    ledger.forget([TWO])
    ledger.close()
    again = Ledger(root)
    assert again.issued == {POLICY}
    assert again.marks(ONE) == {100: Mark(POLICY), 102: Mark(POLICY, Mempolicy(Mode.LOCAL))}
    assert again.processes() == {ONE}
    again.set_marks(ONE, {100: None, 102: None})
    assert Ledger(root).processes() == set()


def test_a_value_is_known_before_it_is_issued_even_if_the_daemon_is_killed(root: Root) -> None:
    ledger = Ledger(root)
    ledger.will_issue(POLICY)
    assert Ledger(root).issued == {POLICY}  # the first was never closed


def test_the_default_is_nobodys(root: Root) -> None:
    ledger = Ledger(root)
    ledger.will_issue(DEFAULT)
    assert ledger.issued == set()


def test_another_boot_begins_anew(root: Root) -> None:
    ledger = Ledger(root)
    ledger.will_issue(POLICY)
    ledger.set_marks(ONE, {100: Mark(POLICY)})
    ledger.close()
    boot(root, "second")
    assert Ledger(root).issued == set()
    assert Ledger(root).processes() == set()


def test_a_torn_file_is_begun_anew_and_said(root: Root) -> None:
    root.path(PATH).parent.mkdir(parents=True)
    root.path(PATH).write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    ledger = Ledger(root)
    assert ledger.lost is not None
    assert PATH in ledger.lost
    ledger.will_issue(POLICY)
    assert ledger.issued == {POLICY}

"""The ledger over restarts, boots and torn files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from hetmemd.engine.brakes import Act
from hetmemd.engine.decide import Mark
from hetmemd.engine.ledger import BOOT_ID, PATH, Ledger, Span
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.kernel.root import Root

POLICY = Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES)
LOCAL = Mempolicy(Mode.LOCAL)
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


def test_regions_are_marked_like_threads_and_end_with_their_process(root: Root) -> None:
    ledger = Ledger(root)
    low, high = Span(0x7F00_0000_0000, 0x7F00_0020_0000), Span(1 << 55, (1 << 55) + 4096)
    ledger.set_regions(ONE, {low: Mark(POLICY, arrived=True), high: Mark(POLICY, LOCAL, strikes=2, at=7.5)})
    ledger.set_marks(ONE, {100: Mark(POLICY)})
    ledger.set_regions(TWO, {low: Mark(POLICY)})
    again = Ledger(root)
    assert again.regions(ONE) == {low: Mark(POLICY, arrived=True), high: Mark(POLICY, LOCAL, strikes=2, at=7.5)}
    assert again.marks(ONE) == {100: Mark(POLICY)}
    assert again.processes() == {ONE, TWO}
    again.set_regions(ONE, {low: None})
    assert Ledger(root).regions(ONE) == {high: Mark(POLICY, LOCAL, strikes=2, at=7.5)}
    again.forget([ONE, TWO])
    assert again.processes() == Ledger(root).processes() == set()


def test_an_upgrade_keeps_what_an_older_release_wrote(root: Root) -> None:
    root.path(PATH).parent.mkdir(parents=True)
    with sqlite3.connect(root.path(PATH)) as old:
        old.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        old.execute("INSERT INTO meta VALUES ('boot', 'first'), ('format', '2')")
        old.execute("CREATE TABLE issued (policy TEXT PRIMARY KEY)")
        old.execute("INSERT INTO issued VALUES (?)", (str(POLICY),))
        old.execute(
            "CREATE TABLE mark (pid INTEGER, start INTEGER, tid INTEGER, issued TEXT NOT NULL,"
            " replaced TEXT NOT NULL, earlier TEXT, PRIMARY KEY (pid, start, tid))"
        )
        old.execute("INSERT INTO mark VALUES (100, 5000, 101, ?, 'local', NULL)", (str(POLICY),))
    old.close()
    for ledger in (Ledger(root), Ledger(root)):
        assert ledger.lost is None
        assert ledger.issued == {POLICY}
        assert ledger.marks(ONE) == {101: Mark(POLICY, LOCAL)}


def test_another_releases_format_is_begun_anew_and_said(root: Root) -> None:
    Ledger(root).will_issue(POLICY)
    with sqlite3.connect(root.path(PATH)) as newer:
        newer.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    newer.close()
    ledger = Ledger(root)
    assert ledger.lost is not None
    assert "99" in ledger.lost
    assert ledger.issued == set()


def test_what_was_tried_is_known_until_the_next_boot(root: Root) -> None:
    Ledger(root).was_tried("a")
    assert Ledger(root).tried == {"a"}
    boot(root, "second")
    assert Ledger(root).tried == set()


def test_an_act_is_known_after_a_restart_for_as_long_as_it_matters(root: Root) -> None:
    ledger = Ledger(root)
    odd = Executable(b"/bin/\xff".decode(errors="surrogateescape"), 8, 42)
    first, second = Act(odd, "a", 100.0), Act(odd, "", 105.0)
    ledger.acted(ONE, first, 90.0)
    ledger.acted(TWO, second, 95.0)
    assert Ledger(root).acts() == [(ONE, first), (TWO, second)]
    later = Act(odd, "b", 110.0)
    ledger.acted(TWO, later, 101.0)
    assert Ledger(root).acts() == [(TWO, later)]
    ledger.forget_act(TWO)
    assert Ledger(root).acts() == []
    ledger.acted(TWO, later, 0.0)
    boot(root, "second")
    assert Ledger(root).acts() == []

"""What is held outlives restarts, and a damaged file stops everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.engine.holds import PATH, Hold, Holds
from hetmemd.kernel.procfs import Executable, ProcessId
from hetmemd.kernel.root import Root

PROGRAM = Executable("/usr/bin/redis-server", 8, 42)
CRASHED = Hold("executable", PROGRAM.path, "it died", 1.0, PROGRAM.device, PROGRAM.inode)
POLICY = Hold("policy", "/etc/hetmemd.d/50-a.toml", "it died", 1.0, detail="bind of /etc/hetmemd.d/50-a.toml")


def test_they_outlive_a_restart_until_they_are_released(tmp_path: Path) -> None:
    holds = Holds(Root(tmp_path), "first")
    assert holds.add(CRASHED)
    assert not holds.add(CRASHED)
    assert holds.add(POLICY)
    again = Holds(Root(tmp_path), "second")
    assert list(again) == [CRASHED, POLICY]
    assert again.executable(PROGRAM) == CRASHED
    assert again.executable(PROGRAM._replace(inode=43)) is None, "another file at the same path"
    assert again.policy(POLICY.detail) == POLICY
    assert again.policy("interleave of /etc/hetmemd.d/50-a.toml") is None, "a changed policy is another"
    assert again.release("/usr/bin/other") == []
    assert again.release(PROGRAM.path) == [CRASHED]
    assert list(Holds(Root(tmp_path), "second")) == [POLICY]
    assert again.release(None) == [POLICY]
    assert list(Holds(Root(tmp_path), "second")) == []


def test_a_cgroup_is_held_with_all_below_it(tmp_path: Path) -> None:
    holds = Holds(Root(tmp_path), "first")
    holds.add(Hold("cgroup", "/a/b", "undo", 1.0))
    held = [path for path in ("/", "/a", "/a/b", "/a/b/c", "/a/bc") if holds.cgroup(path)]
    assert held == ["/a/b", "/a/b/c"]
    holds.add(Hold("cgroup", "/", "undo", 1.0))
    assert all(holds.cgroup(path) for path in ("/", "/a", "/x/y"))


def test_a_process_is_held_for_its_life(tmp_path: Path) -> None:
    hold = Hold("process", "7", "undo", 1.0, detail="first", start=100)
    Holds(Root(tmp_path), "first").add(hold)
    again = Holds(Root(tmp_path), "first")
    assert again.process(ProcessId(7, 100)) == hold
    assert again.process(ProcessId(7, 101)) is None
    assert list(Holds(Root(tmp_path), "second")) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 99, "holds": []}', '{"schema": 1, "holds": [{"x": 1}]}']
)
def test_a_damaged_file_is_said_and_kept_until_all_is_released(tmp_path: Path, content: str) -> None:
    path = tmp_path / PATH.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    holds = Holds(Root(tmp_path), "first")
    assert PATH in holds.damage
    assert path.read_text() == content
    holds.release("/x")
    assert holds.damage
    holds.release(None)
    assert not holds.damage
    assert not Holds(Root(tmp_path), "first").damage

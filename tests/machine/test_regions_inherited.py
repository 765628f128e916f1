"""Regions that were bound in a parent and are in its children, and regions that move, when the policy goes.

The kernel copies a region's policy at a fork, and takes it along at an mremap.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, policy
from tests.machine.regions_program import Program

pytestmark = pytest.mark.root
CHECKOUT = Path(__file__).parents[2]
INCLUSIVE = 'memory = ["heap", "anon"]\n'
EXCLUSIVE = 'memory = ["all", "!stack", "!exec"]\n'
OVERRIDE = INCLUSIVE + 'foreign = "override"\n'


PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def reaper() -> Generator[None, None, None]:
    """Orphans come to this process: init may be one that not even root may look at."""
    libc = ctypes.CDLL(None)
    assert not libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    assert not libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def program(group: Group) -> Generator[Program, None, None]:
    program = Program()
    group.take(program.popen.pid)
    yield program
    program.end()


def bound(daemon: Daemon, group: Group, program: Program, more: str = INCLUSIVE) -> Path:
    file = daemon.drop("50-a.toml", policy(group.path, more=more))
    eventually("bound", lambda: program.all("heap", "anon") == {INTERLEAVE})
    return file


def test_L3_a_child_that_nobody_has_looked_at_yet(daemon: Daemon, group: Group, program: Program) -> None:
    file = bound(daemon, group, program)
    child = program.fork()
    file.unlink()
    assert program.all("heap", "anon", pid=child) == {INTERLEAVE}, "the kernel copied it"
    eventually("undone in both", lambda: program.all("heap", "anon") == {"default"})
    eventually("L3: in the child", lambda: program.all("heap", "anon", pid=child) == {"default"})
    assert program.policies("own", child) == {"bind:0"}


@pytest.mark.parametrize("how", ["fork", "orphan"])
def test_T3_a_child_that_is_moved_away_at_once(daemon: Daemon, group: Group, program: Program, how: str) -> None:
    bound(daemon, group, program)
    child = program.fork(how)
    group.leave(child)
    eventually("T3: undone", lambda: program.all("heap", "anon", pid=child) == {"default"})
    assert program.all("heap", "anon") == {INTERLEAVE}


def test_what_was_left_out_is_undone_in_a_child(daemon: Daemon, group: Group, program: Program) -> None:
    """The stacks of threads that the child does not have are still mapped there, and `local`."""
    file = bound(daemon, group, program, EXCLUSIVE)
    eventually("the stacks are local", lambda: program.all("asleep", "busy") == {"local"})
    child = program.fork()
    file.unlink()
    eventually("undone", lambda: program.all("asleep", "busy", "heap", pid=child) == {"default"})


@pytest.mark.parametrize("how", ["fork", "orphan"])
def test_T4_a_child_gets_back_what_the_application_had_set(
    daemon: Daemon, group: Group, program: Program, how: str
) -> None:
    file = bound(daemon, group, program, OVERRIDE)
    eventually("replaced", lambda: program.policies("own") == {INTERLEAVE})
    child = program.fork(how)
    file.unlink()
    eventually("given back", lambda: program.policies("own") == {"bind:0"})
    eventually("in the child as well", lambda: program.policies("own", child) == {"bind:0"})
    eventually("and the rest", lambda: program.all("heap", "anon", pid=child) == {"default"})


def undo(daemon: Daemon, *words: str) -> dict[str, Any]:
    """`hetmemctl undo`; without the service it does so by itself."""
    command = [sys.executable, "-m", "hetmemd.ctl.main", "undo", "--json", "--root", str(daemon.folder)]
    command += ["--socket", daemon.socket, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("how", ["fork", "orphan"])
def test_undo_without_the_service_reaches_who_was_forked_meanwhile(
    daemon: Daemon, group: Group, program: Program, how: str
) -> None:
    bound(daemon, group, program, OVERRIDE)
    eventually("replaced", lambda: program.policies("own") == {INTERLEAVE})
    daemon.stop()
    child = program.fork(how)
    planned = undo(daemon, "--dry-run")["planned"]
    assert {each["pid"] for each in planned if each["kind"] == "regions"} == {program.popen.pid, child}
    assert undo(daemon)["left"] == []
    for pid in (program.popen.pid, child):
        assert program.all("heap", "anon", pid=pid) == {"default"}
        assert program.policies("own", pid) == {"bind:0"}


def test_a_daemon_that_comes_back_undoes_in_who_was_forked_meanwhile(
    daemon: Daemon, group: Group, program: Program
) -> None:
    file = bound(daemon, group, program, EXCLUSIVE)
    eventually("the stacks are local", lambda: program.all("asleep", "busy") == {"local"})
    daemon.stop()
    child = program.fork()
    group.leave(child)
    daemon.start()
    eventually("T3: undone", lambda: program.all("asleep", "busy", "heap", pid=child) == {"default"})
    file.unlink()
    eventually("L3: undone", lambda: program.all("asleep", "busy", "heap") == {"default"})


@pytest.mark.parametrize(("name", "had"), [("own", "bind:0"), ("anon", "default")])
def test_a_region_that_moves_gets_back_what_it_had(
    daemon: Daemon, group: Group, program: Program, name: str, had: str
) -> None:
    file = bound(daemon, group, program, OVERRIDE)
    eventually("replaced", lambda: program.policies("own") == {INTERLEAVE})
    program.tell(f"remap {name}")
    assert program.policies(name) == {INTERLEAVE}, "the kernel took it along"
    file.unlink()
    eventually("given back", lambda: program.policies(name) == {had})


@pytest.mark.parametrize(("name", "had"), [("own", "bind:0"), ("anon", "default")])
def test_what_is_kept_local_may_move(daemon: Daemon, group: Group, program: Program, name: str, had: str) -> None:
    more = 'memory = ["all", "!anon"]\nforeign = "override"\n'
    file = daemon.drop("50-a.toml", policy(group.path, more=more))
    eventually("local", lambda: program.all("anon", "own") == {"local"})
    program.tell(f"remap {name}")
    assert program.policies(name) == {"local"}, "the kernel took it along"
    file.unlink()
    eventually("given back", lambda: program.policies(name) == {had})


def test_children_that_were_looked_at_have_their_own(daemon: Daemon, group: Group, program: Program) -> None:
    bound(daemon, group, program, OVERRIDE)
    child = program.fork()
    eventually("looked at", lambda: (daemon.explain(child)["task"] or {}).get("outcome") == "applied")
    group.leave(program.popen.pid)
    eventually("given back", lambda: program.policies("own") == {"bind:0"})
    assert program.policies("own", child) == {INTERLEAVE}
    group.leave(child)
    eventually("to the child too", lambda: program.policies("own", child) == {"bind:0"})

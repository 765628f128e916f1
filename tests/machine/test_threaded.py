"""T1: the threads of one process in different cgroups, each with the policy of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from hetmemd.kernel import cgroupfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, fresh_path, policy, shown
from tests.running import running

pytestmark = pytest.mark.root

TWO = (
    "import ctypes, sys, threading, time\n"
    "def run():\n"
    "    if len(sys.argv) > 1: ctypes.CDLL(None).syscall(238, 4, None, 0)\n"
    "    print(threading.get_native_id(), flush=True); time.sleep(1000)\n"
    "threading.Thread(target=run, daemon=True).start(); time.sleep(1000)"
)
"""Prints the id of its second thread, which has the policy `local` where an argument is given."""


@contextmanager
def two(*arguments: str) -> Generator[tuple[int, int], None, None]:
    """The ids of the first and the second thread."""
    with running([sys.executable, "-c", TWO, *arguments], stdout=subprocess.PIPE) as popen:
        assert popen.stdout
        yield popen.pid, int(popen.stdout.readline())


def threaded(path: str) -> Group:
    group = Group(path)
    (group.folder / "cgroup.type").write_text("threaded")
    return group


def take(group: Group, tid: int) -> None:
    (group.folder / "cgroup.threads").write_text(str(tid))


def test_T1_T3_a_thread_gets_the_policy_of_its_cgroup_and_gives_it_back(daemon: Daemon, group: Group) -> None:
    """No policy reaches the first thread's."""
    inside, beside = threaded(f"{group.path}/a"), threaded(f"{group.path}/b")
    daemon.drop("50-a.toml", policy(inside.path))
    with two() as (first, second):
        group.take(first)
        for _ in range(2):
            take(inside, second)
            eventually("it holds", lambda: shown(first, second) == INTERLEAVE)
            take(beside, second)
            eventually("it is given back, beside", lambda: shown(first, second) == "default")
            take(inside, second)
            eventually("it holds again", lambda: shown(first, second) == INTERLEAVE)
            take(group, second)
            eventually("it is given back, above", lambda: shown(first, second) == "default")
        assert shown(first) == "default"
        take(inside, first)
        eventually("the first as well", lambda: shown(first) == INTERLEAVE)
        assert shown(first, second) == "default"


def test_T1_T3_what_was_replaced_in_a_thread_is_given_back(daemon: Daemon, group: Group) -> None:
    inside = threaded(f"{group.path}/a")
    daemon.drop("50-a.toml", policy(inside.path, more='foreign = "override"\n'))
    with two("local") as (first, second):
        group.take(first)
        assert shown(first, second) == "local"
        take(inside, second)
        eventually("replaced", lambda: shown(first, second) == INTERLEAVE)
        eventually("said", lambda: (daemon.explain(first)["task"] or {}).get("outcome") == "applied")
        assert daemon.explain(first)["kernel"]["policies"] == {"default": 1, INTERLEAVE: 1}
        take(group, second)
        eventually("given back", lambda: shown(first, second) == "local")


def test_T1_a_file_that_comes_and_goes_concerns_threads_as_well(daemon: Daemon, group: Group) -> None:
    inside = threaded(f"{group.path}/a")
    with two() as (first, second):
        group.take(first)
        take(inside, second)
        file = daemon.drop("50-a.toml", policy(inside.path))
        eventually("it holds", lambda: shown(first, second) == INTERLEAVE)
        assert shown(first) == "default"
        file.unlink()
        eventually("L3: undone", lambda: shown(first, second) == "default")


def test_T1_threads_below_the_root_itself(daemon: Daemon) -> None:
    """The root serves threaded cgroups as their domain without saying so."""
    inside = threaded(fresh_path())
    try:
        daemon.drop("50-a.toml", policy(inside.path))
        with two() as (first, second):
            with open(f"{cgroupfs.directory(Root(), '/')}/cgroup.procs", "w") as root:
                root.write(str(first))
            take(inside, second)
            eventually("it holds", lambda: shown(first, second) == INTERLEAVE)
            assert shown(first) == "default"
            with open(f"{cgroupfs.directory(Root(), '/')}/cgroup.threads", "w") as root:
                root.write(str(second))
            eventually("it is given back", lambda: shown(first, second) == "default")
    finally:
        inside.remove()


def test_T1_undo_of_a_threaded_cgroup_is_about_its_threads(daemon: Daemon, group: Group) -> None:
    inside, beside = threaded(f"{group.path}/a"), threaded(f"{group.path}/b")
    daemon.drop("50-a.toml", policy(group.path))
    with two() as (first, second):
        group.take(first)
        take(inside, second)
        eventually("both", lambda: {shown(first), shown(first, second)} == {INTERLEAVE})
        command = [sys.executable, "-m", "hetmemd.ctl.main", "undo", "--cgroup", inside.path, "--socket", daemon.socket]
        undone = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert undone.returncode == 0, undone.stdout + undone.stderr
        assert (shown(first), shown(first, second)) == (INTERLEAVE, "default")
        take(beside, second)
        eventually("elsewhere it is given", lambda: shown(first, second) == INTERLEAVE)

"""Policies that applications set themselves: replaced, remembered, given back, and left to who insists (T3, T4)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hetmemd.engine.decide import STRIKES
from hetmemd.engine.ledger import Ledger
from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, policy, shown
from tests.running import ready, running

pytestmark = pytest.mark.root

Task = subprocess.Popen[bytes]

SET = "import ctypes, os, sys, time; own = lambda: ctypes.CDLL(None).syscall(238, 4, None, 0); own(); "
ONCE = SET + "print(flush=True); time.sleep(1000)"
ON_DEMAND = SET + "print(flush=True)\nfor line in sys.stdin: own(); print(flush=True)"
FORKING = (
    SET + "print(flush=True); sys.stdin.readline()\nif child := os.fork(): print(child, flush=True)\ntime.sleep(1000)"
)
PARTING = (
    SET + "print(flush=True); sys.stdin.readline()\nif not os.fork(): own(); print(os.getpid(), flush=True)\n"
    "time.sleep(1000)"
)
STUBBORN = SET + "print(flush=True)\nwhile True: own(); time.sleep(0.01)"
MANY = "prefer (many)=static:0"
OVERRIDE = 'foreign = "override"\n'


@contextmanager
def program(source: str) -> Generator[Task, None, None]:
    """A program with a policy of its own, `local`."""
    with ready([sys.executable, "-c", source], stdin=subprocess.PIPE) as popen:
        yield popen


@contextmanager
def forked(own: Task) -> Generator[int, None, None]:
    """The child that FORKING and PARTING make when they are told to."""
    assert own.stdin and own.stdout
    own.stdin.write(b"\n")
    own.stdin.flush()
    child = int(own.stdout.readline())
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)


def test_T3_T4_what_is_overridden_is_given_back_also_by_another_daemon(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(ONCE) as own:
        group.take(own.pid)
        eventually("replaced", lambda: shown(own.pid) == INTERLEAVE)
        daemon.drop("50-a.toml", policy(group.path, "bind", OVERRIDE))
        eventually("and once more", lambda: shown(own.pid) == "bind=static:0")
        daemon.stop()
        daemon.start()
        group.leave(own.pid)
        eventually("given back", lambda: shown(own.pid) == "local")


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_T3_T4_a_child_gets_back_what_was_replaced_in_its_parent(
    daemon: Daemon, group: Group, is_looked_at: bool
) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(FORKING) as own:
        group.take(own.pid)
        eventually("replaced", lambda: shown(own.pid) == INTERLEAVE)
        if not is_looked_at:
            daemon.stop()
        with forked(own) as child:
            assert shown(child) == INTERLEAVE
            if is_looked_at:
                eventually("it is known", lambda: daemon.explain(child)["task"])
            (daemon.files / "50-a.toml").unlink()
            if not is_looked_at:
                daemon.start()
            eventually("L3: given back", lambda: {shown(own.pid), shown(child)} == {"local"})


def test_T4_what_is_set_again_is_replaced_again_a_little_later(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(ON_DEMAND) as own:
        assert own.stdin and own.stdout
        group.take(own.pid)
        eventually("replaced", lambda: shown(own.pid) == INTERLEAVE)
        own.stdin.write(b"\n")
        own.stdin.flush()
        own.stdout.readline()
        assert shown(own.pid) == "local"
        daemon.drop("60-b.toml", policy("/nobody"))
        group.take(own.pid)
        eventually("replaced again", lambda: shown(own.pid) == INTERLEAVE)


def test_T4_who_insists_is_contested_and_left_alone(daemon: Daemon, group: Group) -> None:
    """The last of the strikes; the waits between them are those of `decide`, half a minute in all."""
    (daemon.folder / "etc/hetmemd.toml").write_text('listen = ""\nscan_interval = "1s"\n')
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(STUBBORN) as own:
        group.take(own.pid)
        eventually("tried", lambda: f"[{own.pid}]" in daemon.journal.read_text())
        daemon.stop()
        ledger = Ledger(Root(daemon.folder))
        process = procfs.identify(Root(), own.pid)
        mark = replace(ledger.marks(process)[own.pid], arrived=True, strikes=STRIKES - 1)
        assert str(mark.replaced) == "local"
        at = time.clock_gettime(time.CLOCK_BOOTTIME) - 100
        ledger.set_marks(process, {own.pid: replace(mark, at=at)})
        ledger.close()
        daemon.start()
        eventually("said", lambda: "contested (set-again)" in daemon.journal.read_text())
        times = daemon.journal.read_text().count(f"[{own.pid}]")
        group.leave(own.pid)
        group.take(own.pid)
        time.sleep(0.5)
        assert daemon.journal.read_text().count(f"[{own.pid}]") == times
        assert shown(own.pid) == "local"


# -- undo, and a stop that restores


def hetmemctl(daemon: Daemon, *words: str, status: int = 0) -> dict[str, Any]:
    """Against the daemon's socket and, where it is gone, on its folder."""
    alone = ("--socket", daemon.socket, "--root", str(daemon.folder))
    said = subprocess.run(
        [sys.executable, "-m", "hetmemd.ctl.main", *words, "--json", *alone],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == status, said.stdout + said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_undo_gives_back_and_the_service_gives_nothing_any_more_until_released(
    daemon: Daemon, group: Group, task: Task
) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    (group.folder / "below").mkdir()
    with program(ONCE) as own:
        (group.folder / "below/cgroup.procs").write_text(str(own.pid))
        group.take(task.pid)
        eventually("they hold", lambda: {shown(task.pid), shown(own.pid)} == {INTERLEAVE})
        planned = hetmemctl(daemon, "undo", "--cgroup", group.path, "--dry-run")["planned"]
        assert {(plan["pid"], plan["now"], plan["then"]) for plan in planned} == {
            (task.pid, INTERLEAVE, "default"),
            (own.pid, INTERLEAVE, "local"),
        }
        assert {shown(task.pid), shown(own.pid)} == {INTERLEAVE}
        told = hetmemctl(daemon, "undo", "--cgroup", f"{group.path}/below")
        assert (told["threads"], told["left"]) == (1, [])
        assert (shown(task.pid), shown(own.pid)) == (INTERLEAVE, "local")
        told = hetmemctl(daemon, "undo", "--cgroup", group.path)
        assert (told["threads"], told["left"], told["held"]) == (1, [], group.path)
        assert (shown(task.pid), shown(own.pid)) == ("default", "local")
        daemon.stop()
        daemon.start()
        eventually("said", lambda: daemon.explain(task.pid)["task"]["reason"] == "undone")
        assert (shown(task.pid), shown(own.pid)) == ("default", "local")
        hetmemctl(daemon, "release", group.path)
        eventually("released", lambda: shown(task.pid) == INTERLEAVE)
        assert shown(own.pid) == "local"
        hetmemctl(daemon, "release", "--all")
        eventually("all is released", lambda: shown(own.pid) == INTERLEAVE)


def test_undo_of_a_process_holds_it_alone_and_needs_no_kill_switch_off(
    daemon: Daemon, group: Group, task: Task
) -> None:
    daemon.drop("50-a.toml", policy(group.path))
    with running(["sleep", "10000"]) as other:
        for each in (task, other):
            group.take(each.pid)
        eventually("they hold", lambda: {shown(task.pid), shown(other.pid)} == {INTERLEAVE})
        (daemon.folder / "run/hetmemd/observe").touch()
        assert hetmemctl(daemon, "undo", "--pid", str(task.pid))["threads"] == 1
        assert (shown(task.pid), shown(other.pid)) == ("default", INTERLEAVE)


def test_undo_works_when_the_daemon_is_gone(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(FORKING) as own:
        group.take(own.pid)
        eventually("it holds", lambda: shown(own.pid) == INTERLEAVE)
        daemon.stop(signal.SIGKILL)
        with forked(own) as child:
            only = ("--cgroup", group.path)
            planned = hetmemctl(daemon, "undo", "--dry-run", *only)["planned"]
            assert {plan["pid"] for plan in planned} == {own.pid, child}
            told = hetmemctl(daemon, "undo", *only)
            assert (told["threads"], told["left"], told["held"]) == (2, [], None)
            assert {shown(own.pid), shown(child)} == {"local"}
            assert hetmemctl(daemon, "undo", *only)["threads"] == 0
        daemon.start()
        eventually("files hold again", lambda: shown(own.pid) == INTERLEAVE)


def test_undo_leaves_nothing_to_a_child_that_carries_nothing(daemon: Daemon, group: Group) -> None:
    """Also where the daemon died before it knew that what it gave to the parent had arrived."""
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(PARTING) as own:
        group.take(own.pid)
        eventually("it holds", lambda: shown(own.pid) == INTERLEAVE)
        daemon.stop(signal.SIGKILL)
        ledger = Ledger(Root(daemon.folder))
        process = procfs.identify(Root(), own.pid)
        ledger.set_marks(process, {own.pid: replace(ledger.marks(process)[own.pid], arrived=False)})
        ledger.close()
        with forked(own) as child:
            assert shown(child) == "local"
            told = hetmemctl(daemon, "undo", "--cgroup", group.path)
            assert (told["threads"], told["left"], told["held"]) == (1, [], None)


def soon_over(daemon: Daemon) -> None:
    """Started anew, so that it gives up sooner what it cannot give back at its stop."""
    daemon.stop()
    daemon.patch = "from hetmemd import manager; manager.WITHOUT_MANAGER = 4.0"
    daemon.start()


def test_L2_a_stop_restores_and_says_what_it_could_not(daemon: Daemon, group: Group, task: Task) -> None:
    settings = daemon.folder / "etc/hetmemd.toml"
    settings.write_text('on_stop = "restore"\n' + settings.read_text())
    soon_over(daemon)
    # A value that no other test of this machine uses: what a stop gives back is found by it as well (T4).
    daemon.drop("50-a.toml", policy(group.path, "preferred-many", OVERRIDE))
    group.take(task.pid)
    with program(ONCE) as own:
        (group.folder / "frozen").mkdir()
        (group.folder / "frozen/cgroup.procs").write_text(str(own.pid))
        eventually("they hold", lambda: {shown(task.pid), shown(own.pid)} == {MANY})
        (group.folder / "frozen/cgroup.freeze").write_text("1")
        try:
            daemon.stop()
            said = daemon.journal.read_text()
            assert "; left, and kept in the ledger" in said
            assert f"[{own.pid}] (frozen)" in said
            assert (shown(task.pid), shown(own.pid)) == ("default", MANY)
        finally:
            (group.folder / "frozen/cgroup.freeze").write_text("0")
        assert hetmemctl(daemon, "undo", "--cgroup", group.path)["threads"] == 1
        assert shown(own.pid) == "local"


def test_L2_a_stop_with_more_threads_than_it_has_time_for_ends_and_forgets_none(daemon: Daemon, group: Group) -> None:
    settings = daemon.folder / "etc/hetmemd.toml"
    before = settings.read_text()
    soon_over(daemon)
    daemon.drop("50-a.toml", policy(group.path, "preferred-many"))
    crowd = (
        "import threading, time\n"
        "for _ in range(299): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "print(flush=True); time.sleep(1000)"
    )
    with program(crowd) as many:

        def carrying() -> int:
            return sum(shown(many.pid, tid) == MANY for tid in procfs.tids(Root(), many.pid))

        group.take(many.pid)
        eventually("all have it", lambda: carrying() == 300)
        done = daemon.metric("reloads_total")
        settings.write_text(f'on_stop = "restore"\n{before}\n[brakes]\nstops_per_second = 10\n')
        eventually("the settings are taken", lambda: daemon.metric("reloads_total") > done)
        assert daemon.stop() == 0
        settings.write_text(before)
        left = carrying()
        assert 0 < left < 300
        said = daemon.journal.read_text().rpartition("given back to ")[2]
        given = re.match(r"(\d+) threads; left, and kept in the ledger: ", said)
        assert given, said
        # What was under way when the time was over, a second's stops at most, is done and not counted any more.
        assert 300 - left - 10 <= int(given[1]) <= 300 - left, said
        told = hetmemctl(daemon, "undo", "--cgroup", group.path)
        assert (told["threads"], told["left"], carrying()) == (left, [], 0)

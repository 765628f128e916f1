"""Policies that applications set themselves: replaced, remembered, given back, and left to who insists (T3, T4)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from hetmemd.engine.decide import STRIKES
from hetmemd.engine.ledger import Ledger
from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, policy, shown

pytestmark = pytest.mark.root

Task = subprocess.Popen[bytes]

SET = "import ctypes, os, sys, time; own = lambda: ctypes.CDLL(None).syscall(238, 4, None, 0); own(); "
ONCE = SET + "print(flush=True); time.sleep(1000)"
ON_DEMAND = SET + "print(flush=True)\nfor line in sys.stdin: own(); print(flush=True)"
FORKING = (
    SET + "print(flush=True); sys.stdin.readline()\nif child := os.fork(): print(child, flush=True)\ntime.sleep(1000)"
)
STUBBORN = SET + "print(flush=True)\nwhile True: own(); time.sleep(0.01)"
OVERRIDE = 'foreign = "override"\n'


@contextmanager
def program(source: str) -> Generator[Task, None, None]:
    """A program with a policy of its own, `local`."""
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        assert popen.stdout
        popen.stdout.readline()
        try:
            yield popen
        finally:
            popen.kill()


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


def test_T3_T4_a_child_gets_back_what_was_replaced_in_its_parent(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=OVERRIDE))
    with program(FORKING) as own:
        assert own.stdin and own.stdout
        group.take(own.pid)
        eventually("replaced", lambda: shown(own.pid) == INTERLEAVE)
        own.stdin.write(b"\n")
        own.stdin.flush()
        child = int(own.stdout.readline())
        try:
            assert shown(child) == INTERLEAVE
            (daemon.files / "50-a.toml").unlink()
            eventually("L3: given back", lambda: {shown(own.pid), shown(child)} == {"local"})
        finally:
            os.kill(child, 9)


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

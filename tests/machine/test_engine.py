"""The whole daemon on this machine's own kernel: real tasks, real cgroups, its files in a folder of the test's own.

One memory node is enough to see a policy in force; where pages go is seen in the lab (tests/guest).
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetmemd.kernel import cgroupfs, procfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, PATIENCE, Daemon, Group, eventually, policy, shown
from tests.running import ready, running

pytestmark = pytest.mark.root


Task = subprocess.Popen[bytes]


def test_T1_T3_a_task_gets_the_policy_of_its_cgroup_and_gives_it_back(daemon: Daemon, group: Group, task: Task) -> None:
    daemon.drop("50-a.toml", policy(group.path))
    group.take(task.pid)
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    group.leave(task.pid)
    eventually("it is given back", lambda: shown(task.pid) == "default")


def test_F3_files_that_come_change_and_go(daemon: Daemon, group: Group, task: Task) -> None:
    group.take(task.pid)
    file = daemon.drop("50-a.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    daemon.drop("50-a.toml", policy(group.path, "bind"))
    eventually("the change holds", lambda: shown(task.pid) == "bind=static:0")
    daemon.drop("50-a.toml", "[[policy]]\ncgroup = 1\n")
    daemon.drop("60-b.toml", policy(group.path, "local"))
    eventually("F2: reported with its line", lambda: "50-a.toml:2" in daemon.journal.read_text())
    eventually("M1: the later file wins", lambda: shown(task.pid) == "local")
    (daemon.files / "60-b.toml").unlink()
    eventually("F2: its last good version holds", lambda: shown(task.pid) == "bind=static:0")
    file.unlink()
    eventually("L3: undone", lambda: shown(task.pid) == "default")


def test_F3_SIGHUP_has_files_read_again_of_which_nobody_tells(tmp_path: Path, group: Group, task: Task) -> None:
    daemon = Daemon(tmp_path)
    settings = tmp_path / "etc/hetmemd.toml"
    settings.write_text(settings.read_text().replace('"5s"', '"1h"'))
    file = daemon.drop("50-a.toml", policy(group.path))
    group.take(task.pid)
    daemon.start()
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    other = tmp_path / "other.toml"
    other.write_text(policy(group.path, "bind"))
    # Of another file in its place the folder's watch does not tell, and no scan comes.
    subprocess.run(["mount", "--bind", other, file], check=True)
    try:
        time.sleep(1.0)
        assert shown(task.pid) == INTERLEAVE
        scans = daemon.metric("scans_total")
        assert daemon.popen
        daemon.popen.send_signal(signal.SIGHUP)
        eventually("the change holds", lambda: shown(task.pid) == "bind=static:0")
        eventually("all is looked at", lambda: daemon.metric("scans_total") > scans)
    finally:
        subprocess.run(["umount", file], check=True)
        daemon.end()


def test_T2_all_threads_and_children_of_a_busy_process_come_to_it(daemon: Daemon, group: Group) -> None:
    """Threads and children are made all the while, faster than anybody looks."""
    program = (
        "import os, threading, time\n"
        "def churn():\n"
        "    while True: threading.Thread(target=time.sleep, args=(0.02,)).start(); time.sleep(0.002)\n"
        "for _ in range(3): threading.Thread(target=churn, daemon=True).start()\n"
        "while True:\n"
        "    if os.fork() == 0: time.sleep(0.05); os._exit(0)\n"
        "    time.sleep(0.01)\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
    )
    daemon.drop("50-a.toml", policy(group.path))
    with running([sys.executable, "-W", "ignore", "-c", program]) as popen:
        group.take(popen.pid)

        def everybody() -> bool:
            found = set()
            for pid in cgroupfs.procs(Root(), group.path):
                try:
                    found |= {shown(pid, tid) for tid in procfs.tids(Root(), pid)}
                except (FileNotFoundError, ProcessLookupError):
                    continue
            return found - {"None"} == {INTERLEAVE}

        eventually("everybody has it", everybody)


def test_T4_an_applications_own_policy_stays(daemon: Daemon, group: Group) -> None:
    own = "import ctypes, time; ctypes.CDLL(None).syscall(238, 4, None, 0); print(flush=True); time.sleep(1000)"
    with ready([sys.executable, "-c", own]) as popen:
        assert shown(popen.pid) == "local"
        daemon.drop("50-a.toml", policy(group.path))
        group.take(popen.pid)
        with running(["sleep", "10000"]) as other:
            group.take(other.pid)
            eventually("the other has been treated", lambda: shown(other.pid) == INTERLEAVE)
        assert shown(popen.pid) == "local"


def test_M2_cgroups_that_come_later_and_I1_their_children(daemon: Daemon, group: Group, task: Task) -> None:
    daemon.drop("50-a.toml", policy(f"{group.path}/a*"))
    child = group.folder / "abc/below"
    child.mkdir(parents=True)
    (child / "cgroup.procs").write_text(str(task.pid))
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)


def test_L1_L4_a_killed_daemon_knows_its_own(daemon: Daemon, group: Group, task: Task) -> None:
    group.take(task.pid)
    daemon.drop("50-a.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    daemon.stop(signal.SIGKILL)
    before = daemon.journal.read_text()
    daemon.start()
    assert f"[{task.pid}]" not in daemon.journal.read_text().removeprefix(before)
    daemon.drop("50-a.toml", policy(group.path, "bind"))
    eventually("what it issued before is its own", lambda: shown(task.pid) == "bind=static:0")


def test_L4_a_daemon_whose_ledger_is_lost_takes_what_it_finds_for_the_applications(
    daemon: Daemon, group: Group, task: Task
) -> None:
    group.take(task.pid)
    daemon.drop("50-a.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    daemon.stop()
    before = daemon.journal.read_text()
    for file in (daemon.folder / "run/hetmemd").glob("ledger.sqlite*"):
        file.unlink()
    daemon.start()

    def said() -> tuple[str, str]:
        told = daemon.explain(task.pid)["task"]
        return told["outcome"], told["reason"]

    eventually("L1: it is as it should be", lambda: said() == ("applied", ""))
    assert f"[{task.pid}]" not in daemon.journal.read_text().removeprefix(before)
    daemon.drop("50-a.toml", policy(group.path, "bind"))
    eventually("T4: it is left", lambda: said() == ("foreign", "own-interleave"))
    with running(["sleep", "10000"]) as other:
        group.take(other.pid)
        eventually("what has none is served", lambda: shown(other.pid) == "bind=static:0")
        assert shown(task.pid) == INTERLEAVE
        daemon.drop("50-a.toml", policy(group.path))
        eventually("that is its own again", lambda: shown(other.pid) == INTERLEAVE)
        daemon.drop("50-a.toml", policy(group.path, "bind"))
        # No mark says so, but that value was issued by now.
        eventually("and so is what shows the same", lambda: shown(task.pid) == "bind=static:0")


def test_F2_a_broken_file_whose_last_good_version_is_lost_undoes_nothing(
    daemon: Daemon, group: Group, task: Task
) -> None:
    group.take(task.pid)
    file = daemon.drop("50-a.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
    daemon.stop()
    file.write_text("nonsense")
    shutil.rmtree(daemon.folder / "var/lib/hetmemd/last-good")
    daemon.start()
    assert shown(task.pid) == INTERLEAVE
    file.unlink()
    eventually("L3: undone when the file is gone", lambda: shown(task.pid) == "default")


def test_the_kill_switch_stops_everything_at_once(daemon: Daemon, group: Group, task: Task) -> None:
    switch = daemon.folder / "run/hetmemd/observe"
    switch.touch()
    eventually("said", lambda: "nothing is applied or moved" in daemon.journal.read_text())
    group.take(task.pid)
    daemon.drop("50-a.toml", policy(group.path))
    eventually("seen", lambda: re.search(r"deferred \(observe\)", daemon.journal.read_text()))
    assert shown(task.pid) == "default"
    switch.unlink()
    eventually("on again", lambda: shown(task.pid) == INTERLEAVE)


def test_one_daemon_at_a_time(daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "hetmemd.service", "--root", str(daemon.folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert second.returncode == 78
    assert "runs already" in second.stderr


def test_broken_settings_are_refused_with_their_line_and_at_a_reload_the_old_ones_stay(
    daemon: Daemon, group: Group, task: Task
) -> None:
    settings = daemon.folder / "etc/hetmemd.toml"
    settings.write_text('listen = ""\nrat = 3\n')
    eventually("said", lambda: re.search(r"hetmemd\.toml:2: .*rat", daemon.journal.read_text()))
    group.take(task.pid)
    daemon.drop("50-a.toml", policy(group.path))
    eventually("it works on", lambda: shown(task.pid) == INTERLEAVE)
    daemon.stop()
    refused = subprocess.run(
        [sys.executable, "-m", "hetmemd.service", "--root", str(daemon.folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert refused.returncode == 78
    assert "hetmemd.toml:2" in refused.stderr

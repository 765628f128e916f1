"""The straight line: a file is dropped, a task moves in, its policy holds, its pages follow, Prometheus sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hetmemd.kernel import pages
from tests.guest.daemon import (
    CGROUPS,
    FILES,
    PATIENCE,
    Child,
    Group,
    all_shown,
    drop,
    eventually,
    measured_anew,
    metrics,
    own_policy,
    pages_by_node,
    policy,
    shown,
    systemctl,
    told,
)
from tests.running import running

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("service")]

THREE_TO_ONE = "weighted interleave=static:0-1"
CHILD = Path(__file__).with_name("memory_child.py")
OBSERVE = Path("/run/hetmemd/observe")


Task = subprocess.Popen[bytes]


def test_a_task_that_runs_already_gets_a_dropped_policy_without_a_restart(group: Group, task: Task) -> None:
    group.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("the policy holds", lambda: shown(task.pid) == THREE_TO_ONE)


def test_a_task_that_moves_in_gets_it_and_one_that_moves_out_loses_it(group: Group, task: Task) -> None:
    drop("50-test.toml", policy(group.path))
    before = metrics()["hetmemd_cgroup_move_to_policy_seconds_count"]
    group.take(task.pid)
    eventually("T1: the policy holds", lambda: shown(task.pid) == THREE_TO_ONE)
    eventually("seen", lambda: metrics()["hetmemd_cgroup_move_to_policy_seconds_count"] > before)
    (CGROUPS / "cgroup.procs").write_text(str(task.pid))
    eventually("T3: the default is back", lambda: shown(task.pid) == "default")


def test_a_changed_a_masked_and_a_removed_file_take_effect(group: Group, task: Task) -> None:
    group.take(task.pid)
    run = Path("/run/hetmemd.d")
    weaker = drop("50-test.toml", policy(group.path, "interleave"), run)
    try:
        eventually("the weaker file holds", lambda: shown(task.pid) == "interleave=static:0-1")
        stronger = drop("50-test.toml", policy(group.path))
        eventually("F1: the stronger file masks it", lambda: shown(task.pid) == THREE_TO_ONE)
        drop("50-test.toml", policy(group.path, "bind", "1"))
        eventually("F3: the change holds", lambda: shown(task.pid) == "bind=static:1")
        stronger.unlink()
        eventually("the weaker file is back", lambda: shown(task.pid) == "interleave=static:0-1")
        stronger.symlink_to("/dev/null")
        eventually("F1: masked away", lambda: shown(task.pid) == "default")
    finally:
        weaker.unlink()


@pytest.mark.parametrize(
    ("mode", "nodes", "there"),
    [
        ("bind", "cpuless", "bind=static:1"),
        ("interleave", "0-1", "interleave=static:0-1"),
        ("preferred", "cpuless", "prefer=static:1"),
        ("weighted-interleave", "dram+cpuless", THREE_TO_ONE),
    ],
)
def test_each_mode(group: Group, task: Task, mode: str, nodes: str, there: str) -> None:
    group.take(task.pid)
    drop("50-test.toml", policy(group.path, mode, nodes))
    eventually(f"{there} holds", lambda: shown(task.pid) == there)


def test_local_and_default(group: Group, task: Task) -> None:
    group.take(task.pid)
    drop("50-test.toml", f'[[policy]]\ncgroup = "{group.path}"\nmode = "local"\n')
    eventually("local holds", lambda: shown(task.pid) == "local")
    drop("50-test.toml", f'[[policy]]\ncgroup = "{group.path}"\nmode = "default"\n')
    eventually("I8: default holds", lambda: shown(task.pid) == "default")


def test_I1_a_child_cgroup_inherits_and_I3_its_own_policy_replaces(group: Group, task: Task) -> None:
    child = Group(f"{group.path}/child")
    child.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("inherited", lambda: shown(task.pid) == THREE_TO_ONE)
    drop("60-child.toml", policy(child.path, "preferred", "1"))
    eventually("its own", lambda: shown(task.pid) == "prefer=static:1")
    (FILES / "60-child.toml").unlink()
    eventually("inherited again", lambda: shown(task.pid) == THREE_TO_ONE)
    task.kill()
    task.wait()


def test_every_thread_and_every_child_has_it(group: Group) -> None:
    """Threads that exist, threads that are made later, and children that are made before and after."""
    program = (
        "import os, sys, threading, time\n"
        "for _ in range(20): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "if os.fork() == 0: time.sleep(1000)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(5): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "if os.fork() == 0: time.sleep(1000)\n"
        "print('more', flush=True); sys.stdin.readline()\n"
    )
    with running(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as popen:
        assert popen.stdin and popen.stdout
        popen.stdout.readline()
        for pid in [popen.pid, *children(popen.pid)]:
            group.take(pid)
        drop("50-test.toml", policy(group.path))
        pids = group.pids()
        assert len(pids) == 2
        eventually("all threads hold it", lambda: all(set(all_shown(pid)) == {THREE_TO_ONE} for pid in pids))
        popen.stdin.write("\n")
        popen.stdout.readline()
        pids = group.pids()
        assert len(pids) == 3
        assert sum(sum(all_shown(pid).values()) for pid in pids) >= 28
        eventually("T2: the new ones too", lambda: all(set(all_shown(pid)) == {THREE_TO_ONE} for pid in pids))
        for pid in group.pids():
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_child_that_is_made_in_another_cgroup_is_found(group: Group) -> None:
    """As service managers do it: the child is in its cgroup from its first moment (CLONE_INTO_CGROUP or a move)."""
    drop("50-test.toml", policy("/system.slice/made-*.service"))
    subprocess.run(["systemd-run", "--quiet", "--unit=made-there", "sleep", "10000"], check=True)
    try:
        pid = int(systemctl("show", "-P", "MainPID", "made-there"))
        eventually("the service has it", lambda: shown(pid) == THREE_TO_ONE)
        assert shown(1) == "default"
    finally:
        systemctl("stop", "made-there")


def test_T4_a_foreign_policy_is_respected(group: Group) -> None:
    with running(["numactl", "--preferred=1", "sleep", "10000"]) as popen:
        own = own_policy(popen.pid)
        assert own.startswith("prefer")
        drop("50-test.toml", policy(group.path))
        group.take(popen.pid)
        eventually("shown", lambda: outcome(group, popen.pid) == "foreign")
        assert shown(popen.pid) == own


def outcome(group: Group, pid: int) -> object:
    tasks = told("explain", group.path)["tasks"]
    assert isinstance(tasks, list)
    return next((task["outcome"] for task in tasks if task["pid"] == pid), None)


def test_L1_L2_a_restart_changes_nothing_and_L3_what_was_removed_meanwhile_is_undone(group: Group, task: Task) -> None:
    group.take(task.pid)
    file = drop("50-test.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == THREE_TO_ONE)
    systemctl("restart", "hetmemd")
    assert shown(task.pid) == THREE_TO_ONE
    eventually("it is known", lambda: outcome(group, task.pid) == "applied")
    assert metrics()["hetmemd_applications_total"] == 0
    systemctl("stop", "hetmemd")
    assert shown(task.pid) == THREE_TO_ONE
    file.unlink()
    systemctl("start", "hetmemd")
    eventually("undone", lambda: shown(task.pid) == "default")


def test_L4_a_killed_daemon_comes_back_and_knows_its_own(group: Group, task: Task) -> None:
    group.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == THREE_TO_ONE)
    before = int(systemctl("show", "-P", "MainPID", "hetmemd"))
    os.kill(before, signal.SIGKILL)
    eventually(
        "systemd starts it again", lambda: systemctl("show", "-P", "MainPID", "hetmemd") not in ("0", str(before))
    )
    eventually("it works", lambda: systemctl("show", "-P", "ActiveState", "hetmemd") == "active")
    drop("50-test.toml", policy(group.path, "interleave"))
    eventually("what it issued before is its own", lambda: shown(task.pid) == "interleave=static:0-1")


def test_a_tracer_that_dies_is_replaced_and_counted(group: Group, task: Task) -> None:
    drop("50-test.toml", policy(group.path))
    before = metrics()["hetmemd_tracer_restarts_total"]
    (tracer,) = children(int(systemctl("show", "-P", "MainPID", "hetmemd")))
    os.kill(tracer, signal.SIGKILL)
    group.take(task.pid)
    eventually("the next one does it", lambda: shown(task.pid) == THREE_TO_ONE)
    eventually("counted", lambda: metrics()["hetmemd_tracer_restarts_total"] == before + 1)


def test_the_kill_switch(group: Group, task: Task) -> None:
    OBSERVE.touch()
    group.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("seen, and left", lambda: outcome(group, task.pid) == "deferred")
    assert shown(task.pid) == "default"
    assert metrics()["hetmemd_observing"] == 1
    OBSERVE.unlink()
    eventually("on again", lambda: shown(task.pid) == THREE_TO_ONE)


def test_I6_a_cpuset_that_leaves_nothing_blocks_and_gives_the_default_back(group: Group, task: Task) -> None:
    drop("50-test.toml", policy(group.path, "bind", "1"))
    group.take(task.pid)
    eventually("it holds", lambda: shown(task.pid) == "bind=static:1")
    (group.folder.parent / "cgroup.subtree_control").write_text("+cpuset")
    (group.folder / "cpuset.mems").write_text("0")
    eventually("the default is back", lambda: shown(task.pid) == "default")
    (group.folder / "cpuset.mems").write_text("0-1")
    eventually("and the policy", lambda: shown(task.pid) == "bind=static:1")


def test_F2_a_broken_file_keeps_its_last_good_version_and_disturbs_no_other(group: Group, task: Task) -> None:
    group.take(task.pid)
    drop("50-test.toml", policy(group.path))
    eventually("it holds", lambda: shown(task.pid) == THREE_TO_ONE)
    drop("50-test.toml", "[[policy]]\ncgroup = 7\nmode = 'sideways'\n")
    drop("60-other.toml", policy("/elsewhere"))
    eventually("rejected", lambda: metrics().get('hetmemd_policy_files{state="last-good"}') == 1)
    check = subprocess.run(["hetmemctl", "check"], capture_output=True, text=True, check=False)
    assert check.returncode == 1
    told = check.stdout + check.stderr
    assert "/etc/hetmemd.d/50-test.toml:2:" in told
    assert "/etc/hetmemd.d/50-test.toml:3:" in told
    systemctl("restart", "hetmemd")
    assert shown(task.pid) == THREE_TO_ONE


def test_a_second_daemon_refuses() -> None:
    second = subprocess.run(["/usr/local/sbin/hetmemd"], capture_output=True, text=True, check=False)
    assert second.returncode == 78
    assert "runs already" in second.stderr


def test_pages_of_a_process_reach_the_ratio_and_stay(group: Group) -> None:
    """256 MiB on node 0; within half a percent of 3:1, no page moved that need not be, and then nothing more."""
    with running(
        [sys.executable, str(CHILD), "256", "small"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as popen:
        assert popen.stdout
        popen.stdout.readline()
        there = pages_by_node(popen.pid)
        assert there[0] > 65536
        assert there[1] < 100
        before = moved_to_far()
        drop("50-test.toml", policy(group.path))
        group.take(popen.pid)
        eventually("the ratio holds", lambda: abs(far_share(popen.pid) - 0.25) < 0.005)
        comes_to_rest(group, 0.005)
        moved = moved_to_far() - before
        far = pages_by_node(popen.pid)[1]
        assert abs(moved - far) <= 0.005 * 65536, "each of them once"
        measured_anew(group.path)
        assert moved_to_far() - before == moved
        verdict, _ = popen.communicate(timeout=PATIENCE)
        assert verdict.strip() == "intact"


def test_L3_pages_stay_where_they_are_when_their_policy_goes(group: Group) -> None:
    child = Child(64, "small", group)
    try:
        file = drop("50-test.toml", policy(group.path))
        eventually("the ratio holds", lambda: abs(far_share(child.pid) - 0.25) < 0.005)
        comes_to_rest(group, 0.02)
        # Page by page, and of this area alone: khugepaged may take pages of the heap together on one node.
        area = np.arange(child.base, child.base + child.size, pages.PAGE_SIZE)
        placed, moved = pages.query(child.pid, area), all_moved()
        file.unlink()
        eventually("the policy is gone", lambda: shown(child.pid) == "default")
        scans = metrics()["hetmemd_scans_total"]
        systemctl("reload", "hetmemd")
        eventually("it is looked at again", lambda: metrics()["hetmemd_scans_total"] > scans)
        assert (pages.query(child.pid, area) == placed).all()
        assert all_moved() == moved
        assert child.intact()
    finally:
        child.close()


def comes_to_rest(group: Group, tolerance: float) -> None:
    """The ratio may hold before a pass is at its end. While its pages are being moved a process is not measured."""
    measured_anew(group.path)
    eventually("it is seen", lambda: distance(group) < tolerance)


def all_moved() -> float:
    """Pages, from any node to any other."""
    return sum(count for name, count in metrics().items() if name.startswith("hetmemd_moved_pages_total"))


# All of its memory is new after each `exec`; `grow` takes as much again.
RENEWING = """
import mmap, os, sys
kept = []
def grow():
    area = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, len(area), 4096):
        area[place] = 1
    kept.append(area)
    print(flush=True)
grow()
while line := os.read(0, 100):
    if line == b"exec\\n":
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1]])
    grow()
"""


def test_existing_once_is_once_until_an_exec(group: Group) -> None:
    """New pages come by the kernel's table, in which the far node is never the heavier one as it is in this policy."""
    wrong = 0.05
    with running(
        [sys.executable, "-c", RENEWING, RENEWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as popen:

        def tell(line: bytes) -> None:
            assert popen.stdin
            popen.stdin.write(line)
            assert popen.stdout
            popen.stdout.readline()

        assert popen.stdout
        popen.stdout.readline()
        group.take(popen.pid)
        drop("50-test.toml", policy(group.path, more='existing = "once"\n', weights={0: 1, 1: 3}))
        eventually("once", lambda: distance(group) < 0.02)
        moved = all_moved()
        tell(b"grow\n")
        measured_anew(group.path)
        measured_anew(group.path)
        assert distance(group) > wrong
        assert all_moved() == moved
        tell(b"exec\n")
        eventually("once more", lambda: all_moved() > moved)
        eventually("it is seen", lambda: distance(group) < 0.02)
        assert far_share(popen.pid) > 0.6
        assert shown(popen.pid) == THREE_TO_ONE


def test_no_page_is_moved_while_the_kill_switch_is_on(group: Group) -> None:
    """Not by a pass that would begin, though it is seen that pages lie wrong; nor by one that is under way."""
    child = Child(32, "small", group)
    try:
        before = moved_to_far()
        drop("50-test.toml", policy(group.path, more='existing = "leave"\n'))
        eventually("the policy holds", lambda: outcome(group, child.pid) == "applied")
        OBSERVE.touch()
        eventually("on", lambda: metrics()["hetmemd_observing"] == 1)
        # 8 MiB are to be moved: two at once, and then two every other second.
        drop("50-test.toml", policy(group.path, more='rate = "1MiB/s"\nburst = "2MiB"\n'))
        measured_anew(group.path)
        measured_anew(group.path)
        assert distance(group) > 0.2
        assert outcome(group, child.pid) == "applied"
        assert moved_to_far() == before
        OBSERVE.unlink()
        eventually("the first of them follow", lambda: moved_to_far() > before)
        OBSERVE.touch()
        # While its pages are being moved a process is not measured.
        measured_anew(group.path)
        moved = moved_to_far()
        assert far_share(child.pid) < 0.2, "the pass was not at its end by itself"
        measured_anew(group.path)
        assert moved_to_far() == moved
        drop("50-test.toml", policy(group.path))
        OBSERVE.unlink()
        eventually("the rest follows", lambda: distance(group) <= 0.02)
        assert child.intact()
    finally:
        child.close()


def moved_to_far() -> float:
    return metrics()['hetmemd_moved_pages_total{source_node="0",target_node="1"}']


def far_share(pid: int) -> float:
    placed = pages_by_node(pid)
    return placed[1] / placed.total()


def test_a_running_redis_is_treated_and_its_data_stay(group: Group) -> None:
    socket = "/run/test-redis.sock"

    def redis(*words: str) -> str:
        return subprocess.run(
            ["redis-cli", "-s", socket, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    with running(
        ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--enable-debug-command", "local"],
        stdout=subprocess.DEVNULL,
    ) as popen:
        eventually("Redis is there", lambda: Path(socket).exists())
        redis("debug", "populate", "200000", "key", "512")
        digest = redis("debug", "digest")
        drop("50-test.toml", policy(group.path))
        group.take(popen.pid)
        eventually("its threads hold it", lambda: set(all_shown(popen.pid)) == {THREE_TO_ONE})
        eventually("its pages follow", lambda: abs(far_share(popen.pid) - 0.25) < 0.02)
        eventually("it is seen", lambda: distance(group) < 0.02)
        assert redis("debug", "digest") == digest


def distance(group: Group) -> float:
    found = metrics().get(f'hetmemd_cgroup_distance_ratio{{cgroup="{group.path}"}}')
    return 1.0 if found is None else found

"""The brakes on real processes: who dies after an act is left alone, first tasks, limits, the deny-list, the switch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, policy, shown
from tests.running import ready, running

pytestmark = pytest.mark.root

Task = subprocess.Popen[bytes]

ON_DEMAND = "import ctypes, sys; print(flush=True); sys.stdin.readline(); ctypes.string_at(0)"
CRASHES = {
    "SIGBUS": "import tempfile; file = tempfile.TemporaryFile()\n"
    "file.truncate(4096); area = mmap.mmap(file.fileno(), 4096); file.truncate(0); area[0]",
    "SIGILL": "run(b'\\x0f\\x0b')",  # ud2
    "SIGTRAP": "run(b'\\xcc')",  # int3
    "SIGSYS": "import struct; libc = ctypes.CDLL(None); libc.prctl(38, 1, 0, 0, 0)\n"
    "code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x30000))\n"
    "libc.prctl(22, 2, struct.pack('HP', 1, ctypes.addressof(code)), 0, 0)",
}
"""What a program does to be ended by each: beyond a file's end, no instruction, a breakpoint, a filter of seccomp that
lets no call pass (PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_RET_TRAP)."""
ALLERGIC = (
    "import ctypes, time; mode = ctypes.c_int(); print(flush=True)\n"
    "while not mode.value: ctypes.CDLL(None).syscall(239, ctypes.byref(mode), None, 0, 0, 0); time.sleep(0.01)\n"
    "ctypes.string_at(0)"
)
"""Dies of SIGSEGV as soon as get_mempolicy(2) says that it has a policy."""


@contextmanager
def python(source: str) -> Generator[Task, None, None]:
    with ready([sys.executable, "-c", source], stdin=subprocess.PIPE) as popen:
        yield popen


@contextmanager
def reporting(program: str) -> Generator[Task, None, None]:
    """It says that it is ready."""
    with ready([program]) as popen:
        yield popen


@contextmanager
def sleeping(**options: Any) -> Generator[Task, None, None]:
    with running(["sleep", "10000"], **options) as popen:
        yield popen


def crash(task: Task, number: int = 11) -> None:
    assert task.stdin
    task.stdin.write(b"\n")
    task.stdin.flush()
    assert task.wait(30) == -number


def hetmemctl(daemon: Daemon, *words: str, status: int = 0) -> dict[str, Any]:
    shown = subprocess.run(
        [sys.executable, "-m", "hetmemd.ctl.main", *words, "--json", "--socket", daemon.socket],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert shown.returncode == status, shown.stdout + shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def outcome(daemon: Daemon, pid: int) -> tuple[str, str]:
    task = daemon.explain(pid)["task"]
    return (task["outcome"], task["reason"]) if task else ("", "")


def brakes(daemon: Daemon, lines: str) -> None:
    """The daemon takes these settings by itself."""
    path = daemon.folder / "etc/hetmemd.toml"
    done = daemon.metric("reloads_total")
    path.write_text(path.read_text().partition("[brakes]")[0] + f"[brakes]\n{lines}\n")
    eventually("the settings are taken", lambda: daemon.metric("reloads_total") > done)


def test_who_dies_after_an_act_is_left_alone_until_released(daemon: Daemon, group: Group) -> None:
    brakes(daemon, "first_tasks = 0")  # or the policy would be held as well
    daemon.drop("50-a.toml", policy(group.path))
    with python(ON_DEMAND) as first, python(ON_DEMAND) as second, sleeping() as other:
        path = procfs.executable(Root(), first.pid).path
        group.take(first.pid)
        eventually("it holds", lambda: shown(first.pid) == INTERLEAVE)
        crash(first)
        eventually("held", lambda: f"executable {path} is held" in daemon.journal.read_text())
        assert "SIGSEGV" in daemon.journal.read_text()
        group.take(second.pid)
        group.take(other.pid)
        eventually("another program has it", lambda: shown(other.pid) == INTERLEAVE)
        eventually("refused", lambda: outcome(daemon, second.pid) == ("refused", "crashed"))
        assert shown(second.pid) == "default"
        assert "SIGSEGV" in daemon.explain(second.pid)["task"]["note"]
        eventually("counted", lambda: daemon.metric("held", kind="executable") == 1)
        assert daemon.metric("crashes_after_act_total") == 1
        assert [(hold["kind"], hold["what"]) for hold in hetmemctl(daemon, "status")["held"]] == [("executable", path)]
        daemon.stop()
        daemon.start()
        eventually("still refused", lambda: outcome(daemon, second.pid) == ("refused", "crashed"))
        assert shown(second.pid) == "default"
        assert hetmemctl(daemon, "release", path)["released"][0]["what"] == path
        eventually("released", lambda: shown(second.pid) == INTERLEAVE)


@pytest.mark.parametrize("name", CRASHES)
def test_each_crash_is_told_by_its_name(daemon: Daemon, group: Group, name: str) -> None:
    daemon.drop("50-a.toml", policy(group.path))
    run = (
        "import ctypes, mmap, sys\n"
        "def run(code):\n"
        "    area = mmap.mmap(-1, 4096, prot=7); area.write(code)\n"
        "    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(area)))()\n"
        "print(flush=True); sys.stdin.readline()\n"
    )
    with python(run + CRASHES[name]) as task:
        path = procfs.executable(Root(), task.pid).path
        group.take(task.pid)
        eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
        crash(task, signal.Signals[name])

        def why() -> str:
            held = [hold["why"] for hold in daemon.status()["held"] if hold["what"] == path]
            return "".join(held)

        eventually("held", lambda: f"process {task.pid} died of {name}" in why())


def test_a_death_long_after_or_by_other_signals_is_nobodys_fault(daemon: Daemon, group: Group) -> None:
    brakes(daemon, 'crash_window = "500ms"')
    daemon.drop("50-a.toml", policy(group.path))
    with python(ON_DEMAND) as late, sleeping() as killed, python(ON_DEMAND) as untouched:
        for task in (late, killed):
            group.take(task.pid)
        eventually("it holds", lambda: {shown(late.pid), shown(killed.pid)} == {INTERLEAVE})
        killed.terminate()
        killed.wait()
        crash(untouched)
        time.sleep(0.7)
        crash(late)
    with python(ON_DEMAND) as next_one:
        group.take(next_one.pid)
        eventually("it holds", lambda: shown(next_one.pid) == INTERLEAVE)
    assert hetmemctl(daemon, "status")["held"] == []


def test_a_new_policy_that_kills_is_held_after_its_first_task(daemon: Daemon, group: Group) -> None:
    brakes(daemon, 'first_tasks = 1\nfirst_seconds = "5s"')
    with ExitStack() as stack:
        tasks = [stack.enter_context(python(ALLERGIC)) for _ in range(4)]
        for task in tasks:
            group.take(task.pid)
        file = daemon.drop("50-a.toml", policy(group.path))
        eventually("held", lambda: "50-a.toml is held" in daemon.journal.read_text())
        other = stack.enter_context(sleeping())
        group.take(other.pid)
        eventually("nobody is given it", lambda: outcome(daemon, other.pid) == ("refused", "policy-held"))
        dead = [task for task in tasks if task.poll() is not None]
        assert [task.returncode for task in dead] == [-11]
        daemon.drop("50-a.toml", policy(group.path, "bind"))
        eventually("a changed policy is another", lambda: shown(other.pid) == "bind=static:0")
        daemon.drop("50-a.toml", policy(group.path))
        eventually("given back or kept", lambda: outcome(daemon, other.pid)[1] == "policy-held")
        name = "/" + str(file.relative_to(daemon.folder))
        assert hetmemctl(daemon, "release", name)["released"][0]["kind"] == "policy"
        eventually("released", lambda: shown(other.pid) == INTERLEAVE)
        alive = [task for task in tasks if task.poll() is None]
        assert len(alive) == 3
        assert {shown(task.pid) for task in alive} == {"default"}


def test_who_dies_in_the_act_is_the_only_one(daemon: Daemon, group: Group, built: Callable[..., Path]) -> None:
    """Such a death is told of by the kernel a little later than by the act; until then the others wait."""
    program = str(built("allergic"))
    with ExitStack() as stack:
        tasks = [stack.enter_context(reporting(program)) for _ in range(4)]
        other = stack.enter_context(sleeping())
        for task in tasks:
            group.take(task.pid)
        daemon.drop("50-a.toml", policy(group.path))
        eventually("held", lambda: f"executable {program} is held" in daemon.journal.read_text())
        assert "SIGSEGV" in daemon.journal.read_text()
        eventually("held as well", lambda: "50-a.toml is held" in daemon.journal.read_text())
        dead = [task for task in tasks if task.poll() is not None]
        assert [task.returncode for task in dead] == [-11]
        alive = [task for task in tasks if task not in dead]
        for task in alive:
            eventually("refused", lambda: outcome(daemon, task.pid) == ("refused", "crashed"))  # noqa: B023
        group.take(other.pid)
        eventually("nobody is given it", lambda: outcome(daemon, other.pid) == ("refused", "policy-held"))
        assert all(task.poll() is None for task in alive)
        assert daemon.metric("crashes_after_act_total") == 1


def test_a_death_after_a_restart_of_the_daemon_is_its_fault_too(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path))
    with python(ON_DEMAND) as task:
        path = procfs.executable(Root(), task.pid).path
        group.take(task.pid)
        eventually("it holds", lambda: shown(task.pid) == INTERLEAVE)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        crash(task)
        eventually("held", lambda: f"executable {path} is held" in daemon.journal.read_text())


def test_a_new_policy_goes_to_a_few_first_and_then_to_all(daemon: Daemon, group: Group) -> None:
    brakes(daemon, 'first_tasks = 2\nfirst_seconds = "1s"')
    with ExitStack() as stack:
        tasks = [stack.enter_context(sleeping()) for _ in range(6)]
        for task in tasks:
            group.take(task.pid)
        began = time.monotonic()
        daemon.drop("50-a.toml", policy(group.path))
        most = 0
        while time.monotonic() < began + 0.8:
            count = Counter(shown(task.pid) for task in tasks)[INTERLEAVE]
            # Read after that: no more than a second can have passed since the first.
            most = max(most, count) if time.monotonic() < began + 0.8 else most
            time.sleep(0.02)
        assert most <= 2
        eventually("all", lambda: {shown(task.pid) for task in tasks} == {INTERLEAVE})
        assert daemon.metric("application_failures_total", outcome="deferred", reason="trial") >= 4
        more = stack.enter_context(sleeping())
        daemon.stop()
        daemon.start()
        group.take(more.pid)
        eventually("what was tried is not tried again", lambda: shown(more.pid) == INTERLEAVE)


def test_stops_in_a_second_are_limited_and_none_is_lost(daemon: Daemon, group: Group) -> None:
    brakes(daemon, "stops_per_second_each = 30")
    threads = (
        "import threading, time\n"
        "for _ in range(59): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "print(flush=True); time.sleep(1000)"
    )
    with python(threads) as popen:
        group.take(popen.pid)
        daemon.drop("50-a.toml", policy(group.path))
        eventually(
            "all of them", lambda: {shown(popen.pid, tid) for tid in procfs.tids(Root(), popen.pid)} == {INTERLEAVE}
        )
    assert daemon.metric("application_failures_total", outcome="deferred", reason="stop-rate") >= 29


def test_the_deny_list(daemon: Daemon, group: Group) -> None:
    with sleeping() as popen, sleeping(user=65534) as nobody, python(ON_DEMAND) as other:
        path = procfs.executable(Root(), popen.pid).path
        brakes(daemon, f'deny_executables = ["{path.rpartition("/")[0]}/sle*"]')
        for task in (popen, nobody, other):
            group.take(task.pid)
        daemon.drop("50-a.toml", policy(group.path))
        eventually("the other has it", lambda: shown(other.pid) == INTERLEAVE)
        eventually("refused", lambda: outcome(daemon, popen.pid) == ("refused", "denied-executable"))
        brakes(daemon, 'deny_users = [65534, "nobody-of-that-name"]')
        daemon.drop("60-b.toml", policy("/nowhere"))
        eventually("by user", lambda: outcome(daemon, nobody.pid) == ("refused", "denied-user"))
        eventually("and not the other", lambda: shown(popen.pid) == INTERLEAVE)
        assert shown(nobody.pid) == "default"
        assert any("nobody-of-that-name" in note for note in hetmemctl(daemon, "status")["notes"])


def left(told: dict[str, Any]) -> list[tuple[int, str]]:
    return [(each["pid"], each["reason"]) for each in told["left"]]


def test_undo_leaves_who_is_held_after_a_crash_until_somebody_insists(daemon: Daemon, group: Group) -> None:
    brakes(daemon, "first_tasks = 0")
    daemon.drop("50-a.toml", policy(group.path))
    with python(ON_DEMAND) as first, python(ON_DEMAND) as second, sleeping() as other:
        for task in (first, second, other):
            group.take(task.pid)
        eventually("it holds", lambda: {shown(task.pid) for task in (first, second, other)} == {INTERLEAVE})
        crash(first)
        eventually("held", lambda: daemon.metric("held", kind="executable") == 1)
        told = hetmemctl(daemon, "undo", "--cgroup", group.path, status=1)
        assert left(told) == [(second.pid, "crashed")]
        assert "SIGSEGV" in told["left"][0]["note"]
        assert (shown(second.pid), shown(other.pid)) == (INTERLEAVE, "default")
        told = hetmemctl(daemon, "undo", "--cgroup", group.path, "--force")
        assert (told["threads"], told["left"], shown(second.pid)) == (1, [], "default")


@pytest.mark.parametrize("alone", [False, True], ids=["by the service", "without it"])
def test_undo_leaves_who_was_denied_since_until_somebody_insists(daemon: Daemon, group: Group, alone: bool) -> None:
    daemon.drop("50-a.toml", policy(group.path))
    with sleeping() as popen:
        group.take(popen.pid)
        eventually("it holds", lambda: shown(popen.pid) == INTERLEAVE)
        brakes(daemon, f'deny_executables = ["{procfs.executable(Root(), popen.pid).path}"]')
        where = ["--cgroup", group.path, "--root", str(daemon.folder)]
        if alone:
            daemon.stop()
        assert left(hetmemctl(daemon, "undo", *where, status=1)) == [(popen.pid, "denied-executable")]
        assert shown(popen.pid) == INTERLEAVE
        assert hetmemctl(daemon, "undo", *where, "--dry-run")["threads"] == 0
        assert hetmemctl(daemon, "undo", *where, "--dry-run", "--force")["threads"] == 1
        assert hetmemctl(daemon, "undo", *where, "--force")["left"] == []
        assert shown(popen.pid) == "default"


def test_the_kill_switch_survives_a_restart(daemon: Daemon, group: Group) -> None:
    root = ("--root", str(daemon.folder))
    assert hetmemctl(daemon, "observe", *root)["observing"] is False
    assert hetmemctl(daemon, "observe", "on", *root) == {
        "schema": 1,
        "observing": True,
        "by": "/var/lib/hetmemd/observe",
        "running": True,
    }
    with sleeping() as popen:
        group.take(popen.pid)
        daemon.drop("50-a.toml", policy(group.path))
        eventually("seen", lambda: outcome(daemon, popen.pid) == ("deferred", "observe"))
        daemon.stop()
        daemon.start()
        eventually("still", lambda: outcome(daemon, popen.pid) == ("deferred", "observe"))
        assert shown(popen.pid) == "default"
        assert hetmemctl(daemon, "observe", "off", *root)["observing"] is False
        eventually("on again", lambda: shown(popen.pid) == INTERLEAVE)


def test_nothing_is_done_while_nobody_knows_what_is_held(daemon: Daemon, group: Group) -> None:
    daemon.stop()
    (daemon.folder / "var/lib/hetmemd").mkdir(parents=True, exist_ok=True)
    (daemon.folder / "var/lib/hetmemd/holds.json").write_text("{")
    daemon.start()
    daemon.drop("50-a.toml", policy(group.path))
    with sleeping() as popen:
        group.take(popen.pid)
        eventually("seen", lambda: outcome(daemon, popen.pid) == ("deferred", "observe"))
        assert "holds.json" in hetmemctl(daemon, "status")["observing_by"]
        hetmemctl(daemon, "release", "--all")
        eventually("on again", lambda: shown(popen.pid) == INTERLEAVE)

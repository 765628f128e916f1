"""Classes of memory on this machine's own kernel: what the daemon binds in a real process, and what it never touches.

One memory node is enough: a region's own policy is seen in numa_maps.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.kernel import maps, numa_maps, procfs
from hetmemd.kernel.root import Root
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, fresh_path, policy, shown
from tests.machine.regions_program import Program

pytestmark = pytest.mark.root
ROOT = Root()
CHECKOUT = Path(__file__).parents[2]
INCLUSIVE = 'memory = ["heap", "anon"]\n'
EXCLUSIVE = 'memory = ["all", "!stack", "!exec"]\n'


@pytest.fixture
def daemon(tmp_path: Path) -> Generator[Daemon, None, None]:
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    daemon.end()


@pytest.fixture
def group() -> Generator[Group, None, None]:
    group = Group(fresh_path())
    yield group
    group.remove()


@pytest.fixture
def program(group: Group) -> Generator[Program, None, None]:
    program = Program()
    group.take(program.popen.pid)
    yield program
    program.end()


NEVER = ("own", "code", "shared", "memfd", "asleep", "busy")


def test_the_inclusive_form(daemon: Daemon, group: Group, program: Program) -> None:
    pid = program.popen.pid
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
    eventually("bound", lambda: program.all("heap", "anon") == {INTERLEAVE})
    assert shown(pid) == "default", "the task's own policy is left alone"
    assert program.all("code", "shared", "memfd", "asleep", "busy") == {"default"}
    assert program.policies("own") == {"bind:0"}, "T4"
    assert program.by_name("[stack]" if "[stack]" in ROOT.read_text(f"/proc/{pid}/numa_maps") else "stack") == "default"
    eventually("said", lambda: (daemon.explain(pid)["task"] or {}).get("outcome") == "applied")

    # What comes later: a region of its own, and a heap that grows.
    program.tell("grow")
    eventually("bound as well", lambda: program.all("heap", "later-heap", "later-anon") == {INTERLEAVE})
    assert daemon.metric("region_delay_seconds_count") >= 1

    # What becomes code is no business of the policy's any more.
    program.tell("code")
    eventually("let go", lambda: program.policies("anon") == {"default"})

    (daemon.files / "50-a.toml").unlink()
    eventually("L3: undone", lambda: program.all("heap", "later-heap", "later-anon") == {"default"})
    assert program.policies("own") == {"bind:0"}
    assert daemon.metric("regions_undone_total") >= 2


def test_the_exclusive_form(daemon: Daemon, group: Group, program: Program) -> None:
    pid = program.popen.pid
    daemon.drop("50-a.toml", policy(group.path, more=EXCLUSIVE))
    eventually("the stacks are local", lambda: program.all("asleep", "busy") == {"local"})
    assert shown(pid) == INTERLEAVE
    assert program.all("heap", "anon", "code") == {INTERLEAVE}
    assert program.policies("own") == {"bind:0"}
    # A policy for other classes: what the first one bound is undone, and the threads are rid of theirs.
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
    eventually("only these", lambda: program.all("heap", "anon") == {INTERLEAVE} and shown(pid) == "default")
    eventually("no stack", lambda: program.all("asleep", "busy", "code") == {"default"})
    # Another mode for the same regions.
    daemon.drop("50-a.toml", policy(group.path, "bind", more=INCLUSIVE))
    eventually("another mode", lambda: program.all("heap", "anon") == {"bind=static:0"})
    group.leave(pid)
    eventually("T3: undone", lambda: program.all("heap", "anon") == {"default"})


def test_an_exec_ends_it_and_a_child_has_it(daemon: Daemon, group: Group, program: Program) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
    eventually("bound", lambda: program.all("heap", "anon") == {INTERLEAVE})
    program.say("exec")
    program.tell("start")
    eventually("bound anew", lambda: program.all("heap", "anon") == {INTERLEAVE})
    assert program.policies("own") == {"bind:0"}


def test_L1_a_daemon_that_starts_again_changes_nothing_and_knows_its_own(
    daemon: Daemon, group: Group, program: Program
) -> None:
    pid = program.popen.pid
    daemon.drop("50-a.toml", policy(group.path, more=EXCLUSIVE))
    eventually("bound", lambda: program.all("asleep", "busy") == {"local"})
    daemon.stop()
    before = procfs.stat(ROOT, pid)
    daemon.start()
    assert daemon.metric("regions_bound_total") == 0
    assert before.start == procfs.stat(ROOT, pid).start
    (daemon.files / "50-a.toml").unlink()
    eventually("undone", lambda: program.all("asleep", "busy", "heap") == {"default"})


def test_T4_the_regions_of_a_task_with_its_own_policy_are_its_own(daemon: Daemon, group: Group) -> None:
    # set_mempolicy(MPOL_LOCAL)
    program = "import ctypes, time; assert not ctypes.CDLL(None).syscall(238, 4, None, 0); time.sleep(10000)"
    with subprocess.Popen([sys.executable, "-c", program]) as popen:
        try:
            eventually("it set its own", lambda: shown(popen.pid) == "local")
            group.take(popen.pid)
            daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
            eventually("foreign", lambda: (daemon.explain(popen.pid)["task"] or {}).get("outcome") == "foreign")
            assert {str(line.policy) for line in numa_maps.read(ROOT, popen.pid)} == {"local"}
        finally:
            popen.kill()


def all_can_be_looked_at() -> bool:
    for pid in procfs.pids(ROOT):
        try:
            maps.read(ROOT, pid)
        except PermissionError:
            return False
        except OSError:
            continue
    return True


def test_shared_memory_is_bound_where_all_who_map_it_agree(daemon: Daemon, group: Group, program: Program) -> None:
    pid = program.popen.pid
    descriptors = Path(f"/proc/{pid}/fd")
    memfd = next(path for path in descriptors.iterdir() if "memfd:regions" in str(path.readlink()))
    with memfd.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        # This process maps it too, and no policy reaches it.
        daemon.drop("50-a.toml", policy(group.path, more='memory = ["anon", "shm"]\n'))
        # Where a process does not let even root see what it maps, it may map anything.
        shown = INTERLEAVE if all_can_be_looked_at() else "default"
        eventually("its own is bound", lambda: (program.all("anon"), program.all("shared")) == ({INTERLEAVE}, {shown}))
        assert program.all("memfd", "heap", "asleep", "busy") == {"default"}
    (daemon.files / "50-a.toml").unlink()
    eventually("L3: undone", lambda: program.all("anon", "shared") == {"default"})


def hetmemctl(*words: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hetmemd.ctl.main", *words, "--socket", "/nowhere"]
    return subprocess.run(command, check=False, capture_output=True, text=True, user=user, cwd=CHECKOUT)


def test_by_hand(program: Program) -> None:
    """Without the service."""
    pid = str(program.popen.pid)
    dry = hetmemctl("bind", pid, "heap,anon", "--mode", "interleave", "--nodes", "all", "--dry-run")
    assert "would be bound" in dry.stdout, dry.stderr
    assert program.all("heap", "anon") == {"default"}
    done = hetmemctl("bind", pid, "heap,anon", "--mode", "interleave", "--nodes", "all", "--json")
    assert json.loads(done.stdout)["bound"] == len(json.loads(done.stdout)["ranges"]) > 1, done.stderr
    assert program.all("heap", "anon") == {INTERLEAVE}
    assert program.policies("own") == {"bind:0"}
    assert program.all("asleep", "busy", "code", "memfd") == {"default"}

    start, length = program.spans["own"]
    half = f"{start:x}-{start + length // 2:x}"
    assert hetmemctl("bind", pid, half, "--mode", "local").returncode == 0
    assert program.policies("own") == {"bind:0"}, "left alone"
    assert hetmemctl("bind", pid, half, "--mode", "local", "--override").returncode == 0
    assert program.policies("own") == {"bind:0", "local"}

    regions = {
        each["start"]: each for each in json.loads(hetmemctl("explain", pid, "--regions", "--json").stdout)["regions"]
    }
    assert (regions[start]["kind"], regions[start]["policy"], regions[start]["is_bound"]) == ("anon", "local", True)
    assert regions[program.spans["code"][0]]["kind"] == "exec"
    other = hetmemctl("explain", pid, "--regions", user="nobody")
    assert (other.returncode, other.stdout) == (1, "")
    assert "root" in other.stderr
    moved = hetmemctl("move", pid, "--weights", "0=1", "--json")
    assert json.loads(moved.stdout)["after"]["distance"] == 0, moved.stderr
    assert hetmemctl("bind", "1", "--mode", "local").returncode == 1, "init is never touched (T5)"
    assert hetmemctl("bind", pid, "heep", "--mode", "local").returncode == 2

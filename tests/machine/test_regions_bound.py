"""Classes of memory on this machine's own kernel: what the daemon binds in a real process, and what it never touches.

One memory node is enough: a region's own policy is seen in numa_maps.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from hetmemd.engine.following import NET
from hetmemd.kernel import numa_maps, procfs
from hetmemd.kernel.root import Root
from hetmemd.watch.mappings import ASLEEP, MappingsSource
from tests.machine.daemon import INTERLEAVE, PATIENCE, Daemon, Group, eventually, policy, shown, where_all_can_be_seen
from tests.machine.regions_program import Program
from tests.running import ready, running

pytestmark = pytest.mark.root
ROOT = Root()
CHECKOUT = Path(__file__).parents[2]
INCLUSIVE = 'memory = ["heap", "anon"]\n'
EXCLUSIVE = 'memory = ["all", "!stack", "!exec"]\n'


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
    eventually("counted", lambda: daemon.metric("region_delay_seconds_count") >= 1)

    # What becomes code is no business of the policy's any more.
    program.tell("code")
    eventually("let go", lambda: program.policies("anon") == {"default"})

    (daemon.files / "50-a.toml").unlink()
    eventually("L3: undone", lambda: program.all("heap", "later-heap", "later-anon") == {"default"})
    assert program.policies("own") == {"bind:0"}
    eventually("counted", lambda: daemon.metric("regions_undone_total") >= 2)


def test_what_is_mapped_is_told_by_perf_events(daemon: Daemon, group: Group, program: Program) -> None:
    """Nothing else would tell of this before the next reading that comes in any case."""

    def source() -> Mapping[str, object]:
        (found,) = (source for source in daemon.status()["sources"] if source["name"] == MappingsSource.name)
        return found  # type: ignore[no-any-return]

    assert (source()["up"], source()["note"]) == (True, ASLEEP)
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
    eventually("bound", lambda: program.all("heap", "anon") == {INTERLEAVE})
    eventually("it is open", lambda: source()["note"] == "")
    program.tell("anew")
    began = time.monotonic()
    eventually("bound anew", lambda: program.all("anon") == {INTERLEAVE})
    assert time.monotonic() - began < NET / 2
    eventually("counted", lambda: daemon.metric("events_total", source=MappingsSource.name) >= 1)
    (daemon.files / "50-a.toml").unlink()
    eventually("it is closed", lambda: source()["note"] == ASLEEP)


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


def test_an_exec_ends_it(daemon: Daemon, group: Group, program: Program) -> None:
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
    eventually("said: that is all", lambda: (daemon.explain(pid)["task"] or {}).get("outcome") == "applied")
    daemon.stop()
    told = daemon.journal.read_text().count(f"[{pid}]")
    daemon.start()
    # By the time that it works it has looked at all that there is.
    assert daemon.metric("region_reads_total") >= 1
    assert daemon.metric("regions_bound_total") == 0
    assert daemon.journal.read_text().count(f"[{pid}]") == told, "nothing was done to it"
    assert program.all("asleep", "busy") == {"local"}
    (daemon.files / "50-a.toml").unlink()
    eventually("undone", lambda: program.all("asleep", "busy", "heap") == {"default"})


def test_T4_the_regions_of_a_task_with_its_own_policy_are_its_own(daemon: Daemon, group: Group) -> None:
    # set_mempolicy(MPOL_LOCAL)
    program = "import ctypes, time; assert not ctypes.CDLL(None).syscall(238, 4, None, 0); time.sleep(10000)"
    with running([sys.executable, "-c", program]) as popen:
        eventually("it set its own", lambda: shown(popen.pid) == "local")
        group.take(popen.pid)
        daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE))
        eventually("foreign", lambda: (daemon.explain(popen.pid)["task"] or {}).get("outcome") == "foreign")
        assert {str(line.policy) for line in numa_maps.read(ROOT, popen.pid)} == {"local"}


def test_shared_memory_is_bound_where_all_who_map_it_agree(tmp_path: Path, group: Group, program: Program) -> None:
    pid = program.popen.pid
    daemon = Daemon(tmp_path, where_all_can_be_seen())
    daemon.start()
    descriptors = Path(f"/proc/{pid}/fd")
    memfd = next(path for path in descriptors.iterdir() if "memfd:regions" in str(path.readlink()))
    with memfd.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        # This process maps it too, and no policy reaches it.
        daemon.drop("50-a.toml", policy(group.path, more='memory = ["anon", "shm"]\n'))
        eventually("its own is bound", lambda: program.all("anon", "shared") == {INTERLEAVE})
        assert program.all("memfd", "heap", "asleep", "busy") == {"default"}
    (daemon.files / "50-a.toml").unlink()
    eventually("L3: undone", lambda: program.all("anon", "shared") == {"default"})
    daemon.end()


def test_min_age_keeps_regions_of_younger_processes_from_being_bound(daemon: Daemon, group: Group) -> None:
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE + 'min_age = "4s"\n'))
    program = Program()
    try:
        process = procfs.identify(ROOT, program.popen.pid)
        group.take(process.pid)
        eventually("said", lambda: (daemon.explain(process.pid)["task"] or {}).get("reason") == "young")
        assert (daemon.explain(process.pid)["task"] or {}).get("outcome") == "deferred"
        while program.all("heap", "anon") == {"default"}:
            age = procfs.age(process)
            assert age < PATIENCE
            time.sleep(0.01)
        # The age was asked for before the regions were bound.
        assert procfs.age(process) >= 4
        eventually("bound", lambda: program.all("heap", "anon") == {INTERLEAVE})
    finally:
        program.end()


def test_min_region_keeps_small_regions_from_being_bound(daemon: Daemon, group: Group, program: Program) -> None:
    """Of 64 KiB, between guards; the heap is larger, and so is what comes later."""
    program.tell("grow")
    assert (program.spans["anon"][1], program.spans["later-anon"][1]) == (64 << 10, 128 << 10)
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE + 'min_region = "100KiB"\n'))
    eventually("the large ones are bound", lambda: program.all("heap", "later-anon") == {INTERLEAVE})
    eventually("said", lambda: (daemon.explain(program.popen.pid)["task"] or {}).get("outcome") == "applied")
    assert program.policies("anon") == {"default"}
    daemon.drop("50-a.toml", policy(group.path, more=INCLUSIVE + 'min_region = "64KiB"\n'))
    eventually("it is large enough", lambda: program.policies("anon") == {INTERLEAVE})


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
    assert hetmemctl("bind", "1", "--mode", "local").returncode == 1, "init is never touched (T5)"
    assert hetmemctl("bind", pid, "heep", "--mode", "local").returncode == 2


def test_who_has_no_memory_is_told_so() -> None:
    with subprocess.Popen(["true"]) as ended:
        eventually("a zombie", lambda: procfs.stat(ROOT, ended.pid).state == "Z")
        told = hetmemctl("explain", str(ended.pid), "--regions", "--json")
        assert told.returncode == 0, told.stderr
        found = json.loads(told.stdout)
        assert (found["regions"], "no memory" in found["note"]) == ([], True)


SLEEPS = "import ctypes, sys, time; ctypes.CDLL(None).prctl(4, int(sys.argv[1])); print(flush=True); time.sleep(1000)"


@pytest.mark.parametrize(
    ("whose", "is_dumpable", "who", "is_shown"),
    [
        ("nobody", True, "nobody", True),
        ("nobody", True, "daemon", False),
        ("nobody", False, "nobody", False),
        ("nobody", False, None, True),
        (None, True, "nobody", False),
    ],
    ids=["its own user", "another user", "not dumpable", "root", "of root"],
)
def test_regions_are_shown_to_whom_the_kernel_shows_them(
    whose: str | None, is_dumpable: bool, who: str | None, is_shown: bool
) -> None:
    command = [sys.executable, "-c", SLEEPS, str(int(is_dumpable))]  # PR_SET_DUMPABLE
    with ready(command, user=whose) as popen:
        told = hetmemctl("explain", str(popen.pid), "--regions", "--json", user=who)
        if is_shown:
            assert told.returncode == 0, told.stderr
            assert {"heap", "stack", "exec"} <= set(json.loads(told.stdout)["kinds"])
        else:
            assert (told.returncode, told.stdout) == (1, "")
            assert "root, and to its own user" in told.stderr

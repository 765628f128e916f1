"""What keeps `hetmemctl bind` and `move` from acting: all that keeps the daemon from it. And that a trial run says what
the deed does."""

from __future__ import annotations

import json
import mmap
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from hetmemd import instance
from hetmemd.engine import by_hand
from hetmemd.engine.by_hand import Choice
from hetmemd.engine.by_hand_brakes import RefusedError
from hetmemd.engine.holds import Hold, Holds
from hetmemd.engine.ledger import BOOT_ID
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Mode
from hetmemd.kernel.root import Root
from hetmemd.policy import nodes
from hetmemd.policy.language import Request
from hetmemd.settings import OBSERVE_FILES
from tests.machine.daemon import Daemon, where_all_can_be_seen
from tests.machine.regions_program import Program
from tests.machine.remote_target import Target

pytestmark = pytest.mark.root
HERE = Root()
INTERLEAVE = Request(Mode.INTERLEAVE, nodes.parse("all"))
BIND = Request(Mode.BIND, nodes.parse("0"))
DEFAULT = Request(Mode.DEFAULT, None)
CHECKOUT = Path(__file__).parents[2]
ALL = Choice(frozenset({"heap", "anon", "shm", "hugetlb"}))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """This machine, with /etc, /run and /var of the test's own."""
    for name in ("proc", "sys"):
        (tmp_path / name).symlink_to(f"/{name}")
    (tmp_path / "etc").mkdir()
    return Root(tmp_path)


@pytest.fixture
def program() -> Generator[Program, None, None]:
    program = Program()
    yield program
    program.end()


def both(root: Root, pid: int, words: str, dry_run: bool = False) -> None:
    """Neither of the two acts, and each says why."""
    with pytest.raises(RefusedError, match=words):
        by_hand.run_bind(root, pid, ALL, INTERLEAVE, False, dry_run)
    with pytest.raises(RefusedError, match=words):
        by_hand.run_move(root, pid, ALL, BIND, 1 << 30, dry_run)


@pytest.mark.parametrize("dry_run", [False, True])
def test_T5_init_and_hetmemd_are_never_touched(root: Root, tmp_path: Path, dry_run: bool) -> None:
    both(root, 1, "T5", dry_run)
    both(root, os.getpid(), "T5", dry_run)
    for name in ("proc", "sys"):
        (tmp_path / name).unlink()
    (tmp_path / "etc").rmdir()
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        assert daemon.popen
        assert instance.holder(root) == daemon.popen.pid
        tracer = procfs.children(HERE, daemon.popen.pid)
        assert tracer
        for pid in (daemon.popen.pid, *tracer):
            both(root, pid, "T5", dry_run)
    finally:
        daemon.end()
    assert instance.holder(root) is None, "what stands in the file is over"


def test_T5_an_address_space_that_two_processes_share(root: Root, built: Callable[..., Path]) -> None:
    with Target([built("family"), "vfork"]) as parent:
        parent.expect("ready")
        parent.line()
        (child,) = procfs.children(HERE, parent.pid)
        for pid in (parent.pid, child):
            both(root, pid, "T5")


@pytest.mark.parametrize("key", ["executables", "users"])
def test_the_deny_list(root: Root, program: Program, key: str) -> None:
    pid = program.popen.pid
    named = procfs.executable(HERE, pid).path if key == "executables" else pwd.getpwuid(0).pw_name
    root.path("/etc/hetmemd.toml").write_text(f'[brakes]\ndeny_{key} = ["{named}"]\n')
    both(root, pid, f"deny_{key}")
    root.path("/etc/hetmemd.toml").write_text("[brakes]\ndeny_users = [")
    both(root, pid, "hetmemctl check")


def test_what_is_held_after_a_crash(root: Root, program: Program) -> None:
    executable = procfs.executable(HERE, program.popen.pid)
    holds = Holds(root, HERE.read_text(BOOT_ID).strip())
    hold = Hold("executable", executable.path, "process 5 died", time.time(), executable.device, executable.inode)
    holds.add(hold)
    both(root, program.popen.pid, f"process 5 died; hetmemctl release {executable.path}")
    holds.release(None)
    assert by_hand.run_bind(root, program.popen.pid, ALL, INTERLEAVE, False, False)["bound"]
    root.path("/var/lib/hetmemd/holds.json").write_text("{")
    both(root, program.popen.pid, "release --all")


@pytest.mark.parametrize("name", [*OBSERVE_FILES, ""])
def test_the_kill_switch(root: Root, program: Program, name: str) -> None:
    if name:
        root.path(name).parent.mkdir(parents=True, exist_ok=True)
        root.path(name).touch()
    else:
        root.path("/etc/hetmemd.toml").write_text("observe = true\n")
    both(root, program.popen.pid, "hetmemctl observe off")
    # To say what would be done is no act.
    assert by_hand.run_bind(root, program.popen.pid, ALL, INTERLEAVE, False, True)["ranges"]
    assert by_hand.run_move(root, program.popen.pid, ALL, BIND, 1 << 30, True)["before"]["bytes_by_node"]


def test_shared_memory_is_bound_where_nobody_else_maps_it(program: Program) -> None:
    pid = program.popen.pid
    command = [*where_all_can_be_seen(), sys.executable, "-m", "hetmemd.ctl.main", "bind", str(pid), "shm", "--json"]
    command += ["--override", "--socket", "/nowhere", "--mode"]

    def bind(*mode: str) -> dict[str, object]:
        done = subprocess.run([*command, *mode], check=True, capture_output=True, text=True, cwd=CHECKOUT)
        told: dict[str, object] = json.loads(done.stdout)
        return told

    memfd = next(path for path in Path(f"/proc/{pid}/fd").iterdir() if "memfd:regions" in str(path.readlink()))
    with memfd.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        told = bind("interleave", "--nodes", "all")
        assert (told["left"], told["failed"]) == ({"shm: other processes map it, or may": 1}, {})
        assert (program.policies("memfd"), program.policies("shared")) == ({"default"}, {"interleave=static:0"})
    assert bind("interleave", "--nodes", "all")["left"] == {"has it already": 3}
    assert program.policies("memfd") == {"interleave=static:0"}
    with memfd.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096):
        # What is taken away is taken from all who map it as well.
        assert bind("default")["left"] == {"shm: other processes map it, or may": 1}
        assert (program.policies("memfd"), program.policies("shared")) == ({"interleave=static:0"}, {"default"})


def test_a_trial_run_says_what_is_done(root: Root, program: Program) -> None:
    pid = program.popen.pid
    said = by_hand.run_bind(root, pid, ALL, INTERLEAVE, True, True)
    assert program.all("heap", "anon") == {"default"}
    done = by_hand.run_bind(root, pid, ALL, INTERLEAVE, True, False)
    assert done["ranges"] == said["ranges"]
    assert (done["bytes"], done["left"]) == (said["bytes"], said["left"])
    assert (done["bound"], done["failed"]) == (len(said["ranges"]), {})
    assert not by_hand.run_bind(root, pid, ALL, INTERLEAVE, True, True)["ranges"], "nothing is left to do"
    json.dumps(done)


@pytest.mark.parametrize("pages", [1, 7, 16])
def test_of_a_range_its_own_pages_are_counted(root: Root, program: Program, pages: int) -> None:
    start, _ = program.spans["anon"]
    told = by_hand.run_move(root, program.popen.pid, Choice(span=(start, start + pages * 4096)), BIND, 1 << 30, True)
    assert told["before"]["bytes_by_node"] == {"0": pages * 4096}


def test_a_range_without_memory_is_refused(root: Root, program: Program) -> None:
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match="nothing mapped"):
            by_hand.run_move(root, program.popen.pid, Choice(span=(4096, 8192)), BIND, 1 << 30, dry_run)
        with pytest.raises(RefusedError, match="nothing mapped"):
            by_hand.run_bind(root, program.popen.pid, Choice(span=(4096, 8192)), INTERLEAVE, False, dry_run)

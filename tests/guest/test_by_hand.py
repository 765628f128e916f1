"""`hetmemctl bind` and `move` where there are nodes to go to, and that `--dry-run` says what the deed does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

from hetmemd.kernel import pages
from tests.guest.daemon import FILES, PATIENCE, Child, Group, drop, eventually, hetmemctl, huge_pool, policy, told
from tests.machine.regions_program import Program

pytestmark = pytest.mark.lab
HUGE = 2 << 20
SCALE = 64
"""4 MiB of memory in a region of 16 pages."""


@pytest.fixture
def program() -> Generator[Program, None, None]:
    program = Program(SCALE)
    yield program
    program.end()


def share_of_1(program: Program, *names: str) -> float:
    pages = [program.pages(name) for name in names]
    return sum(each[1] for each in pages) / sum(each.total() for each in pages)


def test_bound_and_moved_as_the_trial_run_says(program: Program) -> None:
    pid = str(program.popen.pid)
    words = ("bind", pid, "heap,anon", "--mode", "bind", "--nodes", "1")
    said = hetmemctl(*words, "--dry-run")
    assert program.all("heap", "anon") == {"default"}
    done = hetmemctl(*words)
    assert (done["ranges"], done["bytes"], done["left"]) == (said["ranges"], said["bytes"], said["left"])
    assert (done["bound"], done["failed"]) == (len(said["ranges"]), {})
    assert program.all("heap", "anon") == {"bind=static:1"}
    assert program.policies("own") == {"bind:0"}
    assert program.all("asleep", "busy", "code", "shared", "memfd") == {"default"}
    assert share_of_1(program, "heap", "anon") == 0, "pages stay where they are"

    away = ("move", pid, "heap,anon", "--nodes", "1")
    said = hetmemctl(*away, "--dry-run")
    assert share_of_1(program, "heap", "anon") == 0
    done = hetmemctl(*away)
    assert done["before"] == said["before"]
    assert done["moved_bytes"] == said["before"]["misplaced_bytes"] > 8 << 20
    assert share_of_1(program, "heap", "anon", "own") == 1, "by hand it is about what is bound, too"
    assert program.pages("asleep")[1] == program.pages("busy")[1] == 0
    assert not hetmemctl(*away, "--dry-run")["before"]["misplaced_bytes"]


def test_a_ratio_within_a_range(program: Program) -> None:
    pid = str(program.popen.pid)
    start, length = program.spans["anon"]
    half = f"{start:x}-{start + length // 2:x}"
    said = hetmemctl("move", pid, half, "--weights", "0=3,1=1", "--dry-run")
    assert said["before"]["bytes_by_node"] == {"0": length // 2}
    done = hetmemctl("move", pid, half, "--weights", "0=3,1=1")
    assert done["moved_bytes"] == pytest.approx(said["before"]["misplaced_bytes"], rel=0.02)
    assert done["moved_bytes"] == pytest.approx(length / 8, rel=0.02)
    assert program.pages("anon")[1] * 4096 == done["moved_bytes"]
    assert done["after"]["distance"] < 0.02
    assert program.pages("heap")[1] == 0


@pytest.mark.parametrize(
    ("first", "last", "which", "cut"),
    [(100, 400, set(), 1), (100, 1124, {2}, 2), (-100, 512, {1}, 1), (0, 512, {1}, 0)],
)
def test_a_huge_page_that_lies_partly_in_a_range_stays(first: int, last: int, which: set[int], cut: int) -> None:
    """Pages are counted from the second of four huge pages."""
    child = Child(8, "huge", None, "--membind=0")
    try:
        start = child.base + HUGE
        words = ("move", str(child.pid), f"{start + first * 4096:x}-{start + last * 4096:x}", "--nodes", "1")
        said = hetmemctl(*words, "--dry-run")
        assert said["before"]["bytes_by_node"].get("0", 0) == len(which) * HUGE
        assert sum(said["left"].values()) == cut * HUGE
        done = hetmemctl(*words)
        assert done["moved_bytes"] == said["before"]["misplaced_bytes"] == len(which) * HUGE
        assert done["after"]["bytes_by_node"].get("1", 0) == len(which) * HUGE
        nodes = pages.query(child.pid, np.arange(child.base, child.base + child.size, 4096)).reshape(-1, 512)
        assert (nodes == nodes[:, :1]).all()
        assert set(np.flatnonzero(nodes[:, 0] == 1).tolist()) == which
        assert child.intact()
    finally:
        child.close()


def test_what_cannot_be_moved_is_said(program: Program) -> None:
    start, length = program.spans["shared"]
    for what in ("shm", f"{start:x}-{start + length:x}"):
        for more in (["--dry-run"], []):
            told = hetmemctl("move", str(program.popen.pid), what, "--nodes", "1", *more)
            assert told["before"]["bytes_by_node"] == {}
            assert told["left"] == {"shm": length if "-" in what else length + program.spans["memfd"][1]}


def test_the_kill_switch_stops_it(program: Program) -> None:
    pid = str(program.popen.pid)
    subprocess.run(["hetmemctl", "observe", "on"], check=True)
    try:
        for words in (("bind", pid, "--mode", "bind", "--nodes", "1"), ("move", pid, "--nodes", "1")):
            done = subprocess.run(["hetmemctl", *words], check=False, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "")
            assert "hetmemctl observe off" in done.stderr
    finally:
        subprocess.run(["hetmemctl", "observe", "off"], check=True)
    assert share_of_1(program, "heap", "anon") == 0


@pytest.mark.parametrize("what", ["init", "the service"])
def test_T5_who_is_never_touched(service: None, what: str) -> None:
    show = ["systemctl", "show", "-P", "MainPID", "hetmemd"]
    pid = "1" if what == "init" else subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
    for words in (("bind", pid, "--mode", "bind", "--nodes", "1"), ("move", pid, "--nodes", "1")):
        done = subprocess.run(["hetmemctl", *words], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert "T5" in done.stderr


TOUCHES = """
import mmap, sys
area = mmap.mmap(-1, 4 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)  # MAP_HUGETLB
for line in iter(sys.stdin.readline, ""):
    for place in range(0, 4 << 21 if line == "touch\\n" else 0, 1 << 21):
        area[place] = 1
    print("alive", flush=True)
"""


class Touching:
    """Reserves four huge pages, and touches them when it is told to."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", TOUCHES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell("start")

    def tell(self, word: str) -> str:
        assert self.popen.stdin and self.popen.stdout
        self.popen.stdin.write(word + "\n")
        self.popen.stdin.flush()
        return self.popen.stdout.readline().strip()

    def line(self) -> str:
        text = Path(f"/proc/{self.popen.pid}/numa_maps").read_text()
        return next(line for line in text.splitlines() if " huge" in line)

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate(timeout=PATIENCE)


@pytest.fixture
def touching() -> Generator[Callable[[int, int], Touching], None, None]:
    """`touching(HUGE PAGES of node 0, of node 1)`."""
    started: list[Touching] = []

    def start(*pool: int) -> Touching:
        for node, count in enumerate(pool):
            huge_pool(node).write_text(str(count))
            assert huge_pool(node).read_text().strip() == str(count)
        started.append(Touching())
        return started[0]

    yield start
    for each in started:
        each.end()
    for node in (0, 1):
        huge_pool(node).write_text("0")


def test_huge_pages_are_not_bound_to_where_there_are_none(touching: Callable[[int, int], Touching]) -> None:
    """The kernel gives SIGBUS to whoever touches one that is not there."""
    some = touching(4, 2)
    words = ("bind", str(some.popen.pid), "hugetlb", "--mode", "bind", "--nodes", "1")
    for more in (["--dry-run"], []):
        told = hetmemctl(*words, *more)
        assert (told["ranges"], [why.partition(":")[0] for why in told["left"]]) == ([], ["hugetlb"])
    assert some.tell("touch") == "alive"


def test_huge_pages_are_bound_to_where_there_are_enough(touching: Callable[[int, int], Touching]) -> None:
    some = touching(4, 4)
    done = hetmemctl("bind", str(some.popen.pid), "hugetlb", "--mode", "bind", "--nodes", "1")
    assert (done["bound"], done["failed"]) == (1, {})
    assert some.tell("touch") == "alive"
    assert " N1=4 " in some.line()


@pytest.mark.usefixtures("service")
def test_a_policy_leaves_huge_pages_that_are_not_there(touching: Callable[[int, int], Touching], group: Group) -> None:
    some = touching(4, 2)
    group.take(some.popen.pid)
    drop("50-huge.toml", policy(group.path, "bind", "1", 'memory = ["hugetlb", "heap"]\n'))
    eventually(
        "the heap is bound", lambda: "bind=static:1 heap" in Path(f"/proc/{some.popen.pid}/numa_maps").read_text()
    )
    assert " default " in some.line()
    assert some.tell("touch") == "alive"
    (FILES / "50-huge.toml").unlink()


@pytest.mark.usefixtures("service")
def test_a_policy_for_the_task_leaves_one_whose_huge_pages_are_not_there(
    touching: Callable[[int, int], Touching], group: Group
) -> None:
    """Its regions follow the task: what it has reserved would be looked for on the policy's nodes alone."""
    some = touching(4, 2)
    group.take(some.popen.pid)
    drop("50-huge.toml", policy(group.path, "bind", "1"))

    def task() -> tuple[str, str]:
        found = told("explain", str(some.popen.pid))["task"] or {}
        return found.get("outcome", ""), found.get("reason", "")

    eventually("refused", lambda: task() == ("refused", "no-huge-pages"))
    assert some.tell("touch") == "alive"
    # What is there stays there.
    eventually("applied", lambda: task() == ("applied", ""))
    assert some.tell("touch") == "alive"
    (FILES / "50-huge.toml").unlink()

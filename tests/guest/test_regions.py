"""Classes of memory where there are nodes to lie on: what a policy is about goes to the ratio, everything else stays.

With `["heap", "anon"]` no page of stack, code or files comes to lie on a CPU-less node.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.guest.daemon import FILES, Group, drop, eventually, metrics, policy, shown
from tests.machine.regions_program import Program

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("service")]

WEIGHTED = "weighted interleave=static:0-1"
INCLUSIVE = 'memory = ["heap", "anon"]\ntolerance = 0.005\n'
SCALE = 64
"""4 MiB of memory in a region of 16 pages."""


def bring_home() -> None:
    """No page of a file or of any process is on the CPU-less node: what others left there would be mapped."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208
        subprocess.run(["migratepages", pid, "1", "0"], check=False, capture_output=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture
def program(group: Group) -> Generator[Program, None, None]:
    bring_home()
    program = Program(SCALE)
    group.take(program.popen.pid)
    assert elsewhere(program) == Counter()
    yield program
    # Shown where the test has failed.
    for command in (
        ["hetmemctl", "explain", str(program.popen.pid)],
        ["journalctl", "-u", "hetmemd", "-o", "cat", "-n", "20"],
    ):
        print(subprocess.run(command, check=False, capture_output=True, text=True).stdout)
    program.end()


def elsewhere(program: Program) -> Counter[str]:
    """Pages on the CPU-less node, by what they belong to: all but anonymous memory and the heap."""
    found: Counter[str] = Counter()
    maps = Path(f"/proc/{program.popen.pid}/maps").read_text()
    code = {line.split("-")[0] for line in maps.splitlines() if "x" in line.split()[1]}
    for line in Path(f"/proc/{program.popen.pid}/numa_maps").read_text().splitlines():
        here = re.search(r" N1=(\d+)", line)
        name = re.search(r" (file=\S+|stack|heap)", line)
        start = line.split()[0].lstrip("0")
        kind = "code" if start in {each.lstrip("0") for each in code} else name[1] if name else "anon"
        if here and kind not in ("anon", "heap"):
            found[kind] += int(here[1])
    return found + Counter({name: program.pages(name)[1] for name in ("asleep", "busy", "code", "shared", "memfd")})


def ratio(*pages: Counter[int]) -> float:
    """The share of node 1."""
    together = sum(pages, Counter())
    return together[1] / together.total()


def test_heap_and_anonymous_memory_alone(group: Group, program: Program) -> None:
    drop("50-regions.toml", policy(group.path, more=INCLUSIVE))
    eventually("bound", lambda: program.all("heap", "anon") == {WEIGHTED})
    eventually("moved", lambda: abs(ratio(program.pages("heap"), program.pages("anon")) - 0.25) < 0.01)
    assert shown(program.popen.pid) == "default"
    assert program.policies("own") == {"bind:0"}
    assert program.pages("own")[1] == 0
    assert elsewhere(program) == Counter(), "no page of stack, code or files"
    assert program.all("asleep", "busy", "code", "shared", "memfd") == {"default"}

    # What comes later is bound, and what fell in between is moved.
    program.tell("grow")
    eventually("bound as well", lambda: program.all("later-heap", "later-anon") == {WEIGHTED})
    eventually("moved as well", lambda: abs(ratio(program.pages("later-anon")) - 0.25) < 0.01)
    eventually("the heap too", lambda: abs(ratio(program.pages("later-heap")) - 0.25) < 0.01)
    assert elsewhere(program) == Counter(), "no page of stack, code or files"
    count = metrics()["hetmemd_region_delay_seconds_count"]
    seconds = metrics()["hetmemd_region_delay_seconds_sum"]
    print(f"found {seconds / count:.2f} s after the reading before, at the longest")


def test_what_is_left_out_is_brought_home(group: Group, program: Program) -> None:
    pid = program.popen.pid
    # First everything, stacks and code among it, goes to the other node.
    drop("50-regions.toml", policy(group.path, "bind", "1", more="tolerance = 0.005\n"))
    eventually("all of it away", lambda: program.pages("asleep")[0] == 0 and program.pages("code")[0] == 0)
    eventually("the heap too", lambda: ratio(program.pages("heap")) > 0.99)
    more = 'memory = ["all", "!stack", "!exec", "!file"]\ntolerance = 0.0\n'
    drop("50-regions.toml", policy(group.path, "weighted-interleave", more=more))
    eventually("the stacks are local", lambda: program.all("asleep", "busy") == {"local"})
    eventually("and at home", lambda: program.pages("asleep")[1] + program.pages("busy")[1] == 0)
    eventually("code as well", lambda: program.pages("code")[1] == 0)
    eventually("the rest in its ratio", lambda: abs(ratio(program.pages("heap"), program.pages("anon")) - 0.25) < 0.01)
    assert shown(pid) == WEIGHTED
    (FILES / "50-regions.toml").unlink()
    eventually("L3: undone", lambda: program.all("asleep", "busy", "heap") == {"default"})


def test_shared_memory_that_nobody_else_maps(group: Group, program: Program) -> None:
    drop("50-regions.toml", policy(group.path, more='memory = ["shm"]\n'))
    eventually("bound", lambda: program.all("shared", "memfd") == {WEIGHTED})
    assert program.all("heap", "anon", "asleep", "code") == {"default"}
    (FILES / "50-regions.toml").unlink()
    eventually("L3: undone", lambda: program.all("shared", "memfd") == {"default"})

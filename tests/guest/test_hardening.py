"""Kernels that are told to keep tasks out of each other: what they forbid is said, and pages are moved anyway (L5)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.guest.daemon import Child, Group, drop, eventually, journalctl, metrics, policy, shown, told
from tests.running import running

pytestmark = pytest.mark.usefixtures("service")

HARDENED = pytest.mark.lab(append="proc_mem.force_override=never")
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")

PROC_MEM = "the kernel keeps code from being written into other tasks (proc_mem.force_override)"
NOBODY_TRACES = "Yama lets nobody trace (kernel.yama.ptrace_scope = 3)"


@pytest.fixture
def child(group: Group) -> Iterator[Child]:
    child = Child(64, "small", group)
    yield child
    child.close()


@pytest.fixture(params=["1", "2"])
def scope(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    before = YAMA.read_text()
    YAMA.write_text(request.param)
    yield request.param
    YAMA.write_text(before)


@pytest.mark.lab
def test_yama_lets_those_trace_who_have_the_right(scope: str, group: Group, child: Child) -> None:
    drop("50-test.toml", policy(group.path, "interleave", "0-1"))
    eventually("the policy holds", lambda: shown(child.pid) == "interleave=static:0-1")
    assert YAMA.read_text().strip() == scope
    assert child.intact()


def failures(reason: str) -> float:
    return metrics()[f'hetmemd_application_failures_total{{outcome="refused",reason="{reason}"}}']


def is_refused_and_moved(group: Group, child: Child, reason: str, note: str) -> None:
    """What runs in the group gets no policy, which is said for each and once for all, and its pages get their ratio."""
    with running(["sleep", "10000"]) as other:
        group.take(other.pid)
        before = failures(reason)
        drop("50-test.toml", policy(group.path, nodes="0-1"))
        pids = (child.pid, other.pid)
        eventually("it is said of both", lambda: {said_of(pid) for pid in pids} == {("refused", reason)})
        eventually("both are counted", lambda: failures(reason) >= before + 2)
        eventually("3:1 by moving", lambda: abs(child.shares().get(1, 0) - 0.25) < 0.02)
        assert shown(child.pid) == shown(other.pid) == "default"
        eventually("noted", lambda: note in notes())
        assert notes().count(note) == 1
        assert journal().count(note) == 1
        assert other.poll() is None
    assert child.intact()


def said_of(pid: int) -> tuple[str, str]:
    task = told("explain", str(pid))["task"]
    return (task["outcome"], task["reason"]) if task else ("", "")


def notes() -> str:
    return "\n".join(told("status")["notes"])


def journal() -> str:
    return journalctl("--unit=hetmemd", "--output=cat", "--boot")


@HARDENED
def test_L5_where_no_code_may_be_written_into_others(group: Group, child: Child) -> None:
    is_refused_and_moved(group, child, "proc-mem", PROC_MEM)


@HARDENED
def test_L5_regions_where_no_code_may_be_written_into_others(group: Group, child: Child) -> None:
    name = 'hetmemd_region_failures_total{reason="proc-mem"}'
    before = metrics().get(name, 0.0)
    drop("50-test.toml", policy(group.path, nodes="0-1", more='memory = ["anon", "heap"]\n'))
    eventually("it is counted", lambda: metrics().get(name, 0.0) > before)
    eventually("3:1 by moving", lambda: abs(child.shares().get(1, 0) - 0.25) < 0.02)
    assert all(" bind:" not in line and "interleave" not in line for line in numa_maps(child.pid))
    assert child.intact()


def numa_maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/numa_maps").read_text().splitlines()


@HARDENED
def test_L5_where_yama_lets_nobody_trace(group: Group, child: Child) -> None:
    """The last one in this guest: there is no way back from 3 but a boot."""
    YAMA.write_text("3")
    is_refused_and_moved(group, child, "yama", NOBODY_TRACES)

"""What forbids stopping a thread, on trees that look like /proc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote import precheck
from hetmemd.remote.result import Outcome
from hetmemd.remote.target import Declined, Target

PID, TID = 40, 41

Make = Callable[..., Target]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A process with one thread beside its leader."""

    def made(state: str = "S", flags: int = 0x400040, syscall: str = "running", fd: str = "pipe:[7]") -> Target:
        def stat(tid: int, state: str) -> str:
            return f"{tid} (a) b) {state} 1 1 1 0 -1 {flags} " + "0 " * 12 + "555 0 0\n"

        process = tmp_path / "proc" / str(PID)
        thread = process / "task" / str(TID)
        (thread / "fd").mkdir(parents=True, exist_ok=True)
        (process / "stat").write_text(stat(PID, "S"))
        (process / "status").write_text("Name:\ta\n")
        (process / "syscall").write_text("running\n")
        (thread / "stat").write_text(stat(TID, state))
        (thread / "syscall").write_text(syscall + "\n")
        (thread / "fd" / "5").symlink_to(fd)
        target = Target(Root(tmp_path), ProcessId(PID, 555))
        target.living = TID
        return target

    return made


def said(check: Callable[[], object]) -> tuple[Outcome, str] | None:
    try:
        check()
    except Declined as declined:
        return declined.outcome, declined.reason
    return None


def look(target: Target, *, is_64bit: bool = True) -> object:
    stat = precheck.living(target.state(TID))
    return precheck.thread(target, TID, stat, target.read(f"task/{TID}/syscall"), is_64bit=is_64bit)


@pytest.mark.parametrize(
    ("state", "flags", "expected"),
    [
        ("S", 0x400040, None),
        ("R", 0x400040, None),
        ("T", 0x400040, None),
        ("Z", 0x400040, (Outcome.GONE, "exited")),
        ("X", 0x400040, (Outcome.GONE, "exited")),
        ("R", 0x400044, (Outcome.GONE, "exited")),
        ("S", 0x208040, (Outcome.UNSTEERABLE, "kernel-thread")),
        ("S", 0x400050, (Outcome.UNSTEERABLE, "io-worker")),
        ("S", 0x404040, (Outcome.UNSTEERABLE, "io-worker")),
        ("t", 0x400040, (Outcome.DEFERRED, "traced")),
        ("D", 0x400040, (Outcome.DEFERRED, "uninterruptible")),
    ],
)
def test_states_and_flags(make: Make, state: str, flags: int, expected: tuple[Outcome, str] | None) -> None:
    target = make(state, flags)
    assert said(lambda: look(target)) == expected


def call(number: int, *arguments: int) -> str:
    padded = [*arguments, *[0] * (6 - len(arguments))]
    return " ".join([str(number), *map(hex, padded), "0x7ffc0000", "0x7f000000"])


SHORT = (Outcome.DEFERRED, "short-io")


@pytest.mark.parametrize(
    ("syscall", "fd", "expected"),
    [
        ("running", "pipe:[7]", None),
        ("-1 0x7ffc0000 0x7f000000", "pipe:[7]", None),
        (call(0, 5, 0x1000, 1 << 20), "pipe:[7]", None),  # a read takes what there is
        (call(1, 5, 0x1000, 4096), "pipe:[7]", None),
        (call(1, 5, 0x1000, 4097), "pipe:[7]", SHORT),
        (call(1, 5, 0x1000, 8), "anon_inode:[eventfd]", None),
        (call(1, 5, 0x1000, 8), "socket:[9]", SHORT),
        (call(1, 6, 0x1000, 8), "pipe:[7]", SHORT),  # a descriptor that nobody can look at
        (call(20, 5, 0x1000, 2), "pipe:[7]", SHORT),
        (call(44, 5, 0x1000, 100), "socket:[9]", SHORT),
        (call(46, 5, 0x1000), "socket:[9]", SHORT),
        (call(40, 5, 6, 0, 1 << 20), "socket:[9]", SHORT),
        (call(45, 5, 0x1000, 100, 0), "socket:[9]", None),
        (call(45, 5, 0x1000, 100, 0x100), "socket:[9]", SHORT),
        (call(47, 5, 0x1000, 0x100), "socket:[9]", SHORT),
        (call(47, 5, 0x1000, 0x40), "socket:[9]", None),
        (call(299, 5, 0x1000, 8, 0), "socket:[9]", SHORT),
        (call(299, 5, 0x1000, 8, 0x10000), "socket:[9]", None),
        (call(299, 5, 0x1000, 1, 0), "socket:[9]", None),
        (call(208, 5, 1, 8), "x", None),
        (call(208, 5, 4, 8), "x", SHORT),
        (call(426, 5, 0, 1, 1), "x", None),
        (call(426, 5, 3, 1, 1), "x", SHORT),
        (call(426, 5, 3, 0, 0), "x", None),
        (call(202, 0x1000, 0), "x", None),
        (call(232, 5, 0x1000, 8), "x", None),
    ],
)
def test_calls_that_a_stop_would_cut_short(
    make: Make, syscall: str, fd: str, expected: tuple[Outcome, str] | None
) -> None:
    target = make(syscall=syscall, fd=fd)
    assert said(lambda: look(target)) == expected


@pytest.mark.parametrize(
    ("syscall", "expected"),
    [
        (call(4, 5, 0x1000, 8), None),
        (call(4, 5, 0x1000, 8192), SHORT),
        (call(3, 5, 0x1000, 8192), None),
        (call(102, 9, 0x1000), SHORT),  # socketcall: send
        (call(102, 5, 0x1000), None),  # socketcall: accept
        (call(371, 5, 0x1000, 8, 0x100), SHORT),
        (call(45, 0), None),  # brk, not recvfrom
    ],
)
def test_calls_of_a_32_bit_program(make: Make, syscall: str, expected: tuple[Outcome, str] | None) -> None:
    target = make(syscall=syscall)
    assert said(lambda: look(target, is_64bit=False)) == expected


def test_T5_who_is_never_touched() -> None:
    assert said(lambda: precheck.identity(1, frozenset())) == (Outcome.REFUSED, "init")
    assert said(lambda: precheck.identity(7, frozenset({7, 8}))) == (Outcome.REFUSED, "self")
    assert said(lambda: precheck.identity(9, frozenset({7, 8}))) is None


@pytest.mark.parametrize(("scope", "expected"), [("0", None), ("2", None), ("3", (Outcome.REFUSED, "yama"))])
def test_yama(tmp_path: Path, make: Make, scope: str, expected: tuple[Outcome, str] | None) -> None:
    target = make()
    (tmp_path / f"proc/{PID}/task/{TID}/cgroup").write_text("0::/\n")
    folder = tmp_path / "proc/sys/kernel/yama"
    folder.mkdir(parents=True)
    (folder / "ptrace_scope").write_text(scope + "\n")
    assert said(lambda: precheck.process(Root(tmp_path), target)) == expected


@pytest.mark.parametrize(("frozen", "expected"), [(0, None), (1, (Outcome.DEFERRED, "frozen"))])
def test_a_frozen_cgroup(tmp_path: Path, frozen: int, expected: tuple[Outcome, str] | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    folder = tmp_path / "sys/fs/cgroup/a.slice"
    folder.mkdir(parents=True)
    (folder / "cgroup.events").write_text(f"populated 1\nfrozen {frozen}\n")
    root = Root(tmp_path)
    assert said(lambda: precheck.frozen(root, b"1:cpu:/x\n0::/a.slice\n")) == expected
    # What cannot be looked at is left to the time limit.
    assert said(lambda: precheck.frozen(root, b"0::/elsewhere\n")) is None
    assert said(lambda: precheck.frozen(root, b"0::/a.slice (deleted)\n")) is None


def test_another_process_with_the_same_pid(tmp_path: Path, make: Make) -> None:
    make()
    assert said(lambda: Target(Root(tmp_path), ProcessId(PID, 556))) == (Outcome.GONE, "exited")
    assert said(lambda: Target(Root(tmp_path), ProcessId(99, 1))) == (Outcome.GONE, "exited")

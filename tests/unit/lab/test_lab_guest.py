"""Boots of a stand-in for QEMU, which ends in each way that the real one does."""

from __future__ import annotations

import io
import os
import selectors
import signal
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hetmemlab import guest, topology
from tests.lab.hetmemlab.emulator import Emulator
from tests.lab.hetmemlab.guest import Control, End
from tests.lab.hetmemlab.kernels import Boot
from tests.lab.hetmemlab.parcel import pack
from tests.running import running

CHECKOUT = Path(__file__).parents[3]

# Finds its ports among its arguments as QEMU does, and then does what the test says.
STAND_IN = """#!/bin/sh
for word in "$@"; do
    case $word in
        file,id=out,path=*) out=${word##*path=} ;;
        file,id=control,path=*) control=${word##*path=} ;;
    esac
done
exec 8> "$out" 9> "$control"
"""


def machine(folder: Path, what: str, append: str = "") -> guest.Machine:
    program = folder / "usr/bin/qemu-system-x86_64"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN + what)
    program.chmod(0o755)
    emulator = Emulator(folder, "1:10.0")
    kernel = Boot(folder / "vmlinuz", folder / "modules.img", "6.12")
    return guest.Machine(emulator, folder / "root.img", kernel, topology.load("dram+cxl"), append)


def bytes_to(file: io.BytesIO, data: bytes) -> None:
    file.write(data)


def boot(folder: Path, what: str, **limits: float) -> tuple[guest.Outcome, bytes]:
    said = io.BytesIO()
    with tempfile.TemporaryFile() as job:
        outcome = guest.boot(
            machine(folder, what),
            job,
            limit_seconds=limits.get("limit", 60),
            boot_limit_seconds=limits.get("boot", 60),
            sink=partial(bytes_to, said),
        )
    return outcome, said.getvalue()


def test_parameters_stand_behind_the_usual_ones(tmp_path: Path) -> None:
    for append in ("", "proc_mem.force_override=never loglevel=7"):
        words = guest.arguments(machine(tmp_path / append[:1], "", append), job=3, out=4, control=5)
        assert words[words.index("-append") + 1] == f"{guest.APPEND} {append}".rstrip()


@pytest.mark.parametrize("status", [0, 1, 3, 77, 127, 137, 255])
def test_statuses_come_back(tmp_path: Path, status: int) -> None:
    code = ((status & 0x7F) << 1) | 1
    outcome, said = boot(tmp_path, f"echo hello >&8; printf 'start 4.2\\nend {status} 3\\nabc' >&9; exit {code}")
    assert (outcome.end, outcome.status, outcome.results, said) == (End.FINISHED, status, b"abc", b"hello\n")


@pytest.mark.parametrize(
    "what",
    [
        "printf 'start 4.2\\n' >&9; echo 'Kernel panic - not syncing: x'; exit 0",
        "printf 'start 4.2\\n' >&9; kill -SEGV $$",
        "printf 'start 4.2\\nend 3 9\\nabc' >&9; exit 7",  # results torn
        "printf 'start 4.2\\nend 3 0\\n' >&9; exit 9",  # two answers
        "printf 'start 4.2\\n' >&9; exit 1",  # QEMU's own complaint, in the middle
        "exit 0",
    ],
)
def test_a_broken_guest_is_no_failed_job(tmp_path: Path, what: str) -> None:
    outcome, _ = boot(tmp_path, what)
    assert outcome.end is End.DIED
    assert outcome.why


def test_no_sign_of_life_is_a_broken_guest(tmp_path: Path) -> None:
    outcome, _ = boot(tmp_path, "echo firmware; exec sleep 1000", boot=3)
    assert outcome.end is End.DIED
    assert outcome.console == "firmware\n"


def test_a_hanging_job_is_ended(tmp_path: Path) -> None:
    outcome, said = boot(tmp_path, "printf 'start 4.2\\n' >&9; echo on >&8; exec sleep 1000", limit=6)
    assert outcome.end is End.TIMED_OUT
    assert said == b"on\n"


def test_a_refused_command_line_is_told(tmp_path: Path) -> None:
    outcome, _ = boot(tmp_path, "echo 'no such machine' >&2; exit 1")
    assert (outcome.end, outcome.why) == (End.REFUSED, "no such machine")


RUNNER = """
import signal, sys, tempfile
from pathlib import Path
from tests.lab.hetmemlab import guest, topology
from tests.lab.hetmemlab.emulator import Emulator
from tests.lab.hetmemlab.kernels import Boot
# What is started in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
machine = guest.Machine(Emulator(folder, "1:10.0"), folder, Boot(folder, folder, ""), topology.load("dram+cxl"))
with tempfile.TemporaryFile() as job:
    guest.boot(machine, job,
               limit_seconds=600, sink=lambda data: print(data.decode(), end="", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_qemu_does_not_outlive_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    machine(tmp_path, "printf 'start 4.2\\n' >&9; echo $$ >&8; exec sleep 1000")
    with running(
        [sys.executable, "-c", RUNNER, str(tmp_path)], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        qemu = os.pidfd_open(pid)
        try:
            runner.send_signal(number)
            runner.wait(60)
            # A pidfd becomes readable when its process has ended (pidfd_open(2)).
            with selectors.DefaultSelector() as selector:
                selector.register(qemu, selectors.EVENT_READ)
                assert selector.select(60), "QEMU goes on alone"
        finally:
            os.close(qemu)


@given(st.integers(0, 255), st.binary(max_size=50), st.data())
def test_the_control_port_may_deliver_in_pieces(status: int, results: bytes, data: st.DataObject) -> None:
    stream = b"start 3.9\nend %d %d\n" % (status, len(results)) + results
    cut = data.draw(st.integers(0, len(stream)))
    control = Control()
    control.feed(stream[:cut])
    assert control.end() is None or cut == len(stream)
    control.feed(stream[cut:])
    assert control.started
    assert control.end() == (status, results)


def test_the_kernels_report_begins_at_its_fault() -> None:
    console = "[ 1.0] fine\n[ 2.0] BUG: kernel NULL pointer dereference\n[ 2.1] Call Trace:\n"
    assert guest.fault_lines(console) == console.splitlines()[1:]
    assert guest.fault_lines("[ 1.0] fine\n") == []
    assert guest.console_tail("x\n" * 100) == ["x"] * guest.CONSOLE_TAIL_LINES


def test_the_job_takes_what_it_needs_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hetmemd/a.py", "hetmemd/__pycache__/a.pyc", ".git/HEAD", ".venv/x", "tests/t.py"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/set").write_text("data")
    (tmp_path / "staging/usr/lib/__pycache__").mkdir(parents=True)
    (tmp_path / "staging/usr/lib/__pycache__/a.pyc").write_text("")
    monkeypatch.chdir(tmp_path)
    with pack(
        command=["echo", "a b"],
        environment={"CI": "it's"},
        checkout=tmp_path / "checkout",
        extra=["data"],
        staging=tmp_path / "staging",
        service=True,
    ) as file:
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            members = {member.name: member for member in tar.getmembers()}
            command = tar.extractfile("lab/command")
            environment = tar.extractfile("lab/environment")
            assert command is not None
            assert environment is not None
            assert command.read() == b"echo\0a b\0"
            assert environment.read() == b"CI='it'\"'\"'s'\n"
    assert {name.removeprefix("./") for name, member in members.items() if member.isfile()} == {
        "lab/command",
        "lab/environment",
        "lab/installed",
        "lab/service",
        "lab/work/data/set",
        "lab/work/hetmemd/a.py",
        "lab/work/tests/t.py",
        # What is installed is complete, with what its installer compiled.
        "usr/lib/__pycache__/a.pyc",
    }
    assert all(member.uid == member.gid == 0 for member in members.values())

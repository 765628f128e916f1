"""The daemon as a service: what it refuses to start with, and that a reload always ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hetmemd import service
from hetmemd.report.notify import Notifier
from hetmemd.report.publish import Publisher
from hetmemd.service import EX_CONFIG, EX_TEMPFAIL, Service
from tests.machine.daemon import PATIENCE, Daemon, eventually

pytestmark = pytest.mark.root

WITHOUT_CGROUP2 = ["unshare", "-m", "sh", "-c", 'umount -l -a -t cgroup2 && exec "$@"', "sh"]


@pytest.fixture
def folder() -> Iterator[Path]:
    # The path of a socket has a limit of 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hetmemd-") as name:
        yield Path(name)


def ran(daemon: Daemon) -> tuple[int, str]:
    """Exit status and standard error of a daemon that does not stay."""
    done = subprocess.run(daemon.command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def settings(daemon: Daemon, text: str) -> Path:
    """More of them, behind those of every test."""
    file = daemon.folder / "etc/hetmemd.toml"
    file.write_text(file.read_text() + text)
    return file


def test_without_cgroup2_it_refuses(folder: Path) -> None:
    status, told = ran(Daemon(folder, WITHOUT_CGROUP2))
    assert status == EX_CONFIG == 78
    assert "hetmemd: no cgroup2 filesystem is mounted: boot with systemd.unified_cgroup_hierarchy=1" in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("observ = true\n", "/etc/hetmemd.toml:3: unknown key 'observ' (did you mean 'observe'?)"),
        (f"rate = {'9' * 5000}\n", "/etc/hetmemd.toml:3: not TOML: a number of thousands of digits"),
        (f"[defaults]\nmin_age = {'9' * 400}\n", "/etc/hetmemd.toml:4: min_age: out of range"),
        (f"[defaults]\nmin_age = 1\ntolerance = 0x{'f' * 4000}\n", "/etc/hetmemd.toml:5: tolerance: "),
        ("observe = \n", "/etc/hetmemd.toml:3: not TOML: invalid value"),
    ],
)
def test_with_settings_that_are_wrong_it_refuses(folder: Path, text: str, says: str) -> None:
    daemon = Daemon(folder)
    settings(daemon, text)
    status, told = ran(daemon)
    assert status == EX_CONFIG
    assert told.startswith(f"hetmemd: {says}")


def test_settings_that_are_being_written_are_waited_for(folder: Path) -> None:
    """The kill switch may be in the half that is not there yet; trying again helps, so the unit does."""
    daemon = Daemon(folder)
    with (folder / "etc/hetmemd.toml").open("a"):
        status, told = ran(daemon)
    assert status == EX_TEMPFAIL == 75
    assert told == "hetmemd: /etc/hetmemd.toml:1: is open for writing\n"


def test_F2_no_policy_file_keeps_it_from_starting(folder: Path) -> None:
    daemon = Daemon(folder)
    for number, key in enumerate((f"min_age = {'9' * 400}", f"tolerance = {'9' * 400}", f"rate = 0x{'f' * 4000}")):
        daemon.drop(f"{number}.toml", f'[[policy]]\ncgroup = "/a"\n{key}\n')
    daemon.start()
    told = daemon.journal.read_text()
    assert [f"{number}.toml:3: " in told for number in range(3)] == [True] * 3
    daemon.end()


def test_half_written_settings_leave_the_kill_switch_on(folder: Path) -> None:
    daemon = Daemon(folder)
    file = settings(daemon, "observe = true\n")
    daemon.start()
    assert daemon.metric("observing") == 1
    whole = file.read_text()
    with file.open("w") as writing:
        writing.write(whole.removesuffix("observe = true\n"))
        writing.flush()
        assert daemon.popen
        daemon.popen.send_signal(signal.SIGHUP)
        eventually("it is said", lambda: "hetmemd.toml:1: is open for writing" in daemon.journal.read_text())
        eventually("and counted", lambda: daemon.metric("reload_failures_total") == 1)
        assert daemon.metric("observing") == 1
        writing.write("observe = false\n")
    eventually("the whole holds, without a word from anybody", lambda: daemon.metric("observing") == 0)
    daemon.end()


def test_a_reload_of_settings_that_are_wrong_is_over_as_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        daemon = Daemon(folder)
        daemon.start()
        settings(daemon, f"[defaults]\nmin_age = {'9' * 400}\n")
        assert daemon.popen
        daemon.popen.send_signal(signal.SIGHUP)
        words: list[str] = []
        while "RELOADING=1" not in words or "READY=1" not in words[words.index("RELOADING=1") :]:
            words += manager.recv(4096).decode().splitlines()
        assert "hetmemd.toml:4: min_age: out of range" in daemon.journal.read_text()
        daemon.end()


def test_a_reload_that_fails_altogether_is_over_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def take(text: str) -> bool:
        said.append(text)
        return True

    reloading = object.__new__(Service)
    reloading._notifier = Notifier(take, {"NOTIFY_SOCKET": "/manager"})
    reloading._publisher = Publisher()

    def failing(root: object) -> None:
        raise ZeroDivisionError

    reloading._root = None  # type: ignore[assignment]
    monkeypatch.setattr(service, "_stamp", failing)
    with pytest.raises(ZeroDivisionError):
        reloading._hang_up()
    assert [text.split("\n")[0] for text in said] == ["RELOADING=1", "READY=1"]

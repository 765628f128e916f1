"""sd_notify(3), against a socket that plays the service manager."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hetmemd.report import notify
from hetmemd.report.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@hetmemd-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


@pytest.mark.parametrize("send", [notify.datagram, None], ids=["datagram", "as installed"])
def test_a_life(manager: socket.socket, send: None) -> None:
    notifier = Notifier(send)
    notifier.ready("3 cgroups")
    assert received(manager) == ["READY=1", "STATUS=3 cgroups"]
    notifier.reloading()
    words = received(manager)
    assert words[0] == "RELOADING=1"
    assert words[1].partition("=")[0] == "MONOTONIC_USEC"
    assert int(words[1].partition("=")[2]) > 0
    notifier.ready()
    assert received(manager) == ["READY=1"]
    notifier.watchdog()
    assert received(manager) == ["WATCHDOG=1"]
    notifier.stopping()
    assert received(manager) == ["STOPPING=1"]


def test_a_status_is_one_line_and_said_once(manager: socket.socket) -> None:
    notifier = Notifier(notify.datagram)
    notifier.status("two\nlines")
    notifier.status("two\nlines")
    notifier.watchdog()
    assert received(manager) == ["STATUS=two lines"]
    assert received(manager) == ["WATCHDOG=1"]


def test_silent_without_a_manager() -> None:
    def never(state: str) -> bool:
        raise AssertionError(state)

    notifier = Notifier(never, {})
    notifier.ready("x")
    notifier.status("y")
    notifier.watchdog()
    assert notifier.watchdog_interval is None
    assert notify.datagram("READY=1", None) is False or "NOTIFY_SOCKET" in os.environ


def test_a_manager_that_is_gone_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    Notifier(lambda state: notify.datagram(state, "/nowhere/notify"), {"NOTIFY_SOCKET": "/nowhere/notify"}).ready()
    assert "READY=1" in caplog.text


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_pinged_twice_in_its_time(environment: dict[str, str], interval: float | None) -> None:
    assert Notifier(notify.datagram, environment).watchdog_interval == interval

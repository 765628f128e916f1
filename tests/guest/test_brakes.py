"""A program that its policy kills, under systemd as it is: it comes back, and is left alone."""

from __future__ import annotations

import subprocess
from collections.abc import Generator

import pytest

from tests.guest.daemon import FILES, drop, eventually, hetmemctl, metrics, policy, shown, systemctl, told

pytestmark = pytest.mark.lab

ALLERGIC = (
    "import ctypes, time; mode = ctypes.c_int()\n"
    "while not mode.value: ctypes.CDLL(None).syscall(239, ctypes.byref(mode), None, 0, 0, 0); time.sleep(0.05)\n"
    "ctypes.string_at(0)"
)
"""Dies of SIGSEGV as soon as get_mempolicy(2) says that it has a policy."""


@pytest.fixture(autouse=True)
def service() -> Generator[None, None, None]:
    systemctl("start", "hetmemd")
    yield
    for file in FILES.glob("*"):
        file.unlink()
    hetmemctl("release", "--all")
    hetmemctl("observe", "off")


def test_a_service_that_its_policy_kills_comes_back_and_is_left_alone() -> None:
    restart = ["-p", "Restart=always", "-p", "RestartSec=0.3", "-p", "StartLimitIntervalSec=0"]
    subprocess.run(["systemd-run", "-q", "--unit=fragile", *restart, "/usr/bin/python3", "-c", ALLERGIC], check=True)
    try:
        drop("50-fragile.toml", policy("/system.slice/fragile.service"))
        eventually("held", lambda: len(told("status")["held"]) == 2)
        held = {hold["kind"]: hold["what"] for hold in told("status")["held"]}
        assert held["executable"].startswith("/usr/bin/python3")
        assert held["policy"] == "/etc/hetmemd.d/50-fragile.toml"
        assert metrics()["hetmemd_crashes_after_act_total"] == 1
        eventually("it is back", lambda: systemctl("show", "-P", "ActiveState", "fragile") == "active")
        pid = int(systemctl("show", "-P", "MainPID", "fragile"))
        systemctl("restart", "hetmemd")
        eventually("seen", lambda: told("explain", str(pid))["task"]["reason"] == "crashed")
        assert int(systemctl("show", "-P", "MainPID", "fragile")) == pid
        assert shown(pid) == "default"
        journal = subprocess.run(
            ["journalctl", "-u", "hetmemd", "-p", "err", "-o", "cat"], capture_output=True, text=True, check=True
        )
        assert "SIGSEGV" in journal.stdout
        hetmemctl("observe", "on")
        hetmemctl("release", "--all")
        systemctl("restart", "hetmemd")
        eventually("observing", lambda: told("explain", str(pid))["task"]["reason"] == "observe")
        assert shown(pid) == "default"
    finally:
        systemctl("stop", "fragile")

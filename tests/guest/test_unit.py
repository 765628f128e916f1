"""The unit under systemd: its sandbox, notifications, journal, reload and refusal, and the control socket for users."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from hetmemd.report import messages
from tests.guest.daemon import FILES, drop, eventually, journalctl, metrics, policy, shown, systemctl

pytestmark = pytest.mark.lab

SETTINGS = Path("/etc/hetmemd.toml")
THREE_TO_ONE = "weighted interleave=static:0-1"


@pytest.fixture(autouse=True)
def service() -> Generator[None, None, None]:
    kept = SETTINGS.read_text()
    systemctl("start", "hetmemd")
    yield
    for file in FILES.glob("*"):
        file.unlink()
    if SETTINGS.read_text() != kept:
        SETTINGS.write_text(kept)
        systemctl("reset-failed", "hetmemd")
        systemctl("reload-or-restart", "hetmemd")


@pytest.fixture
def cursor() -> str:
    """The end of the journal, as it is now."""
    return journalctl("-n0", "--show-cursor").rpartition("-- cursor: ")[2].strip()


def main_pid() -> int:
    return int(systemctl("show", "-P", "MainPID", "hetmemd"))


def status_field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(name + ":"))


def records(cursor: str, **fields: str) -> list[dict[str, str]]:
    """What came after the cursor. Not filtered by journalctl, which skips the first match after a cursor (252)."""
    text = journalctl("--after-cursor", cursor, "--output=json", "--all")
    found = [json.loads(line) for line in text.splitlines()]
    return [record for record in found if all(record.get(name) == value for name, value in fields.items())]


def test_no_process_of_it_is_under_a_seccomp_filter() -> None:
    pids = [main_pid(), *map(int, Path(f"/proc/{main_pid()}/task/{main_pid()}/children").read_text().split())]
    assert [status_field(pid, "Seccomp") for pid in pids] == ["0"] * len(pids)
    assert status_field(main_pid(), "NoNewPrivs") == "1"


def test_a_service_under_a_seccomp_filter_gets_its_policy() -> None:
    """The filter would refuse set_mempolicy: it is suspended for the length of the act, and only for that."""
    confined = ["-p", "SystemCallFilter=@system-service", "-p", "SystemCallFilter=~set_mempolicy"]
    subprocess.run(["systemd-run", "--quiet", "--unit=confined", *confined, "sleep", "10000"], check=True)
    try:
        pid = int(systemctl("show", "-P", "MainPID", "confined"))
        eventually("it runs under its filter", lambda: comm(pid) == "sleep" and status_field(pid, "Seccomp") == "2")
        drop("50-confined.toml", policy("/system.slice/confined.service"))
        eventually("the policy holds", lambda: shown(pid) == THREE_TO_ONE)
        assert status_field(pid, "Seccomp") == "2"
        assert systemctl("is-active", "confined") == "active"
    finally:
        systemctl("stop", "confined")


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_systemd_understands_every_line() -> None:
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "hetmemd.service"], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


def test_an_application_is_one_record_with_who_what_and_why(cursor: str) -> None:
    subprocess.run(["systemd-run", "--quiet", "--unit=told", "sleep", "10000"], check=True)
    try:
        pid = int(systemctl("show", "-P", "MainPID", "told"))
        # Before its exec it is systemd's child, "(sleep)", and would be found and told of under that name.
        eventually("it is what it will be", lambda: comm(pid) == "sleep")
        file = drop("50-told.toml", policy("/system.slice/told.service"))
        eventually("the policy holds", lambda: shown(pid) == THREE_TO_ONE)
        match = {"MESSAGE_ID": messages.APPLICATION, "HETMEMD_PID": str(pid)}
        eventually("the journal has it", lambda: records(cursor, **match))
        (record,) = records(cursor, **match)
    finally:
        systemctl("stop", "told")
    assert record["SYSLOG_IDENTIFIER"] == "hetmemd"
    assert record["_SYSTEMD_UNIT"] == "hetmemd.service"
    told = {name.removeprefix("HETMEMD_"): value for name, value in record.items() if name.startswith("HETMEMD_")}
    assert told["CGROUP"] == "/system.slice/told.service"
    assert told["COMM"] == "sleep"
    assert told["BEFORE"] == "default"
    assert told["AFTER"] == THREE_TO_ONE
    assert told["POLICY"] == f"{file}:1"
    assert told["THREADS"] == told["APPLIED"] == "1"
    # What is staged below a folder cannot do this: packaging/install on a machine does.
    subprocess.run(["journalctl", "--update-catalog"], check=True)
    explained = journalctl("-x", f"HETMEMD_PID={pid}")
    assert f"Process {pid} (sleep) was given a memory policy" in explained, "from the catalog"


def test_a_reload_takes_new_settings_and_refuses_broken_ones(cursor: str) -> None:
    pid = main_pid()
    SETTINGS.write_text("cgroup_label_limit = 0\n")
    drop("50-far.toml", policy("/system.slice"))
    systemctl("reload", "hetmemd")
    eventually("the limit holds", lambda: metrics()["hetmemd_cgroups_left_out"] > 0)
    SETTINGS.write_text("\ncgroup_label_limt = 0\n")
    systemctl("reload", "hetmemd")
    eventually("it is said", lambda: records(cursor, MESSAGE_ID=messages.SETTINGS_REFUSED))
    refused = records(cursor, MESSAGE_ID=messages.SETTINGS_REFUSED)[0]["MESSAGE"]
    assert "/etc/hetmemd.toml:2: unknown key 'cgroup_label_limt'" in refused
    assert metrics()["hetmemd_cgroups_left_out"] > 0, "the settings from before"
    assert metrics()["hetmemd_reload_failures_total"] >= 1
    assert (main_pid(), systemctl("is-active", "hetmemd")) == (pid, "active")


def test_broken_settings_at_the_start_are_a_refusal_once(cursor: str) -> None:
    SETTINGS.write_text("lisen = 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        systemctl("restart", "hetmemd")
    assert systemctl("show", "-P", "ExecMainStatus", "hetmemd") == "78"
    assert systemctl("show", "-P", "ActiveState", "hetmemd") == "failed", "and is not started again and again"
    said = [record["MESSAGE"] for record in records(cursor, _SYSTEMD_UNIT="hetmemd.service")]
    assert any("/etc/hetmemd.toml:1: unknown key 'lisen' (did you mean 'listen'?)" in message for message in said)


def test_the_status_line() -> None:
    drop("50-none.toml", policy("/nowhere"))
    eventually("a line", lambda: "cgroups with a policy" in systemctl("show", "-P", "StatusText", "hetmemd"))


def test_any_user_may_ask(cursor: str) -> None:
    drop("50-asked.toml", policy("/system.slice/hetmemd.service", "preferred", "1"))
    for words in (["status"], ["explain", "1"], ["explain", "/system.slice/hetmemd.service"], ["check"]):
        asked = subprocess.run(
            ["runuser", "-u", "nobody", "--", "/usr/local/bin/hetmemctl", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
    assert not records(cursor, _SYSTEMD_UNIT="hetmemd.service", PRIORITY="3")


def test_it_stops_promptly_and_leaves_no_process() -> None:
    cgroup = Path("/sys/fs/cgroup/system.slice/hetmemd.service")
    assert cgroup.is_dir()
    systemctl("stop", "hetmemd")
    assert systemctl("show", "-P", "Result", "hetmemd") == "success", "no time limit was met, and nothing was killed"
    assert not cgroup.exists()
    assert Path("/run/hetmemd").is_dir(), "the ledger outlives it"

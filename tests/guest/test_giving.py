"""What was replaced is given back: at a stop and at no restart, by hetmemctl undo, and by who removes hetmemd."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest.daemon import (
    FILES,
    Group,
    drop,
    eventually,
    hetmemctl,
    journalctl,
    own_policy,
    policy,
    shown,
    systemctl,
    told,
)
from tests.running import running

pytestmark = pytest.mark.lab

THREE_TO_ONE = "weighted interleave=static:0-1"
OVERRIDE = 'foreign = "override"\n'
SETTINGS = Path("/etc/hetmemd.toml")
CHECKOUT = Path(__file__).parents[2]

Task = subprocess.Popen[bytes]


@pytest.fixture(autouse=True)
def service() -> Generator[None, None, None]:
    before = SETTINGS.read_text()
    systemctl("start", "hetmemd")
    yield
    for file in FILES.glob("*"):
        file.unlink()
    SETTINGS.write_text(before)
    systemctl("start", "hetmemd")
    hetmemctl("release", "--all")


@pytest.fixture
def group() -> Generator[Group, None, None]:
    group = Group("/giving.slice/work")
    yield group
    group.remove()
    group.folder.parent.rmdir()


@contextmanager
def two(group: Group) -> Generator[tuple[Task, Task, str], None, None]:
    """A task without a policy, one with its own, and what that is; both overridden."""
    with running(["sleep", "10000"]) as plain, running(["numactl", "--preferred=1", "sleep", "10000"]) as own:
        before = own_policy(own.pid)
        assert before.startswith("prefer")
        for task in (plain, own):
            group.take(task.pid)
        drop("50-giving.toml", policy(group.path, more=OVERRIDE))
        eventually("both hold it", lambda: {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE})
        yield plain, own, before


def test_L2_restore_on_a_stop_and_on_no_restart(group: Group) -> None:
    SETTINGS.write_text('on_stop = "restore"\n' + SETTINGS.read_text())
    systemctl("reload", "hetmemd")
    with two(group) as (plain, own, before):
        for verb in ("restart", "reload-or-restart"):
            systemctl(verb, "hetmemd")
            assert {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE}, verb
        subprocess.run(["systemctl", "kill", "--signal=TERM", "--kill-whom=main", "hetmemd"], check=True)
        eventually("it ended", lambda: systemctl("show", "-P", "ActiveState", "hetmemd") == "inactive")
        assert {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE}, "nobody asked systemd to stop it"
        systemctl("start", "hetmemd")
        systemctl("stop", "hetmemd")
        assert (shown(plain.pid), shown(own.pid)) == ("default", before)
        journal = journalctl("-u", "hetmemd", "-o", "cat")
        assert "policies stay in force: it is a restart" in journal
        assert "given back to 2 threads" in journal
        systemctl("start", "hetmemd")
        eventually("both hold it again", lambda: {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE})


def test_undo_everywhere_by_the_service_holds_over_a_restart(group: Group) -> None:
    with two(group) as (plain, own, before):
        undone = hetmemctl("undo")
        assert (undone["threads"], undone["left"], undone["held"]) == (2, [], "/")
        assert (shown(plain.pid), shown(own.pid)) == ("default", before)
        systemctl("restart", "hetmemd")
        eventually("said", lambda: [hold["what"] for hold in told("status")["held"]] == ["/"])
        assert told("explain", str(plain.pid))["task"]["reason"] == "undone"
        assert (shown(plain.pid), shown(own.pid)) == ("default", before)
        hetmemctl("release", "/")
        eventually("released", lambda: {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE})


def test_undo_is_for_root(group: Group) -> None:
    drop("50-giving.toml", policy(group.path))
    for words in (["undo"], ["release", "--all"], ["observe", "on"]):
        said = subprocess.run(["hetmemctl", *words], user=65534, capture_output=True, text=True, check=False)
        assert (said.returncode, "this needs root" in said.stderr) == (1, True), said.stderr


def test_undo_when_the_daemon_is_gone(group: Group) -> None:
    with two(group) as (plain, own, before):
        systemctl("stop", "hetmemd")
        assert {shown(plain.pid), shown(own.pid)} == {THREE_TO_ONE}, "keep"
        assert len(hetmemctl("undo", "--dry-run")["planned"]) == 2
        undone = hetmemctl("undo")
        assert (undone["threads"], undone["left"], undone["held"]) == (2, [], None)
        assert (shown(plain.pid), shown(own.pid)) == ("default", before)


def test_who_removes_hetmemd_gives_back_first(group: Group) -> None:
    installed = [
        path
        for path in (
            Path("/usr/local/lib/hetmemd"),
            Path("/usr/local/sbin/hetmemd"),
            Path("/usr/local/bin/hetmemctl"),
            Path("/usr/local/lib/systemd/system/hetmemd.service"),
            Path("/usr/local/lib/systemd/catalog/hetmemd.catalog"),
            Path("/usr/local/share"),
        )
        if path.exists()
    ]
    assert len(installed) >= 4, installed
    kept = Path("/var/tmp/hetmemd-kept.tar")
    with tarfile.open(kept, "w") as tar:
        for path in installed:
            tar.add(path)
    with two(group) as (plain, own, before):
        try:
            subprocess.run([CHECKOUT / "packaging/uninstall"], check=True)
            assert not any(path.exists() for path in installed[:-1])
            assert (shown(plain.pid), shown(own.pid)) == ("default", before)
        finally:
            subprocess.run(["tar", "-C", "/", "-xf", str(kept)], check=True)
            kept.unlink()
            systemctl("daemon-reload")
            os.sync()

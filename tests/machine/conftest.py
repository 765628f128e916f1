"""Fixtures for tests on this machine's own kernel."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.machine import reports
from tests.machine.daemon import Daemon, Group, fresh_path
from tests.machine.eyes.harness import OwnCgroup
from tests.machine.real_program import Pressure
from tests.machine.remote_target import Acting, build
from tests.machine.trap import Trap


@pytest.fixture(scope="session", autouse=True)
def alone() -> Generator[None, None, None]:
    """Each test's daemon acts on the whole machine: those of another run would take back what this one's have given."""
    if os.geteuid() != 0:
        yield
        return
    with Path("/run/lock/hetmemd-tests").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(NAME, OPTION...)`: the program of targets/NAME.c."""
    folder = tmp_path_factory.mktemp("targets")
    return lambda name, *options: build(folder, name, *options)


@pytest.fixture
def acting() -> Iterator[Acting]:
    with Acting() as acting:
        yield acting


@pytest.fixture(scope="module")
def serving() -> Iterator[Daemon]:
    """One daemon for all tests of a module."""
    # The path of a socket has a limit of 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hetmemd-") as folder:
        daemon = Daemon(Path(folder))
        daemon.start()
        yield daemon
        daemon.end()


@pytest.fixture
def own() -> Iterator[OwnCgroup]:
    """A cgroup for one test; what still runs in it is ended."""
    cgroup = OwnCgroup(f"hetmemd-test-{uuid.uuid4().hex}")
    yield cgroup
    cgroup.remove()


@pytest.fixture
def daemon(tmp_path: Path) -> Generator[Daemon, None, None]:
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    daemon.end()


@pytest.fixture
def group() -> Generator[Group, None, None]:
    group = Group(fresh_path())
    yield group
    group.remove()


@pytest.fixture
def task(group: Group) -> Generator[subprocess.Popen[bytes], None, None]:
    """Depends on the group: ended before that is removed."""
    with subprocess.Popen(["sleep", "10000"]) as popen:
        yield popen
        popen.kill()


@pytest.fixture
def trap(serving: Daemon) -> Iterator[Trap]:
    group = Group(fresh_path())
    trap = Trap(serving, group)
    yield trap
    trap.remove()
    group.remove()


@pytest.fixture
def pressure(request: pytest.FixtureRequest, serving: Daemon, tmp_path: Path) -> Iterator[Pressure]:
    """On the programs of one test, in a cgroup and a folder of their own."""
    group = Group(fresh_path())
    tmp_path.chmod(0o777)
    yield Pressure(request.node.name.removeprefix("test_"), tmp_path, serving, group)
    (group.folder / "cgroup.kill").write_text("1")
    group.remove()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in reports.sections.items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)

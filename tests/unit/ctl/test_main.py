"""hetmemctl as a person or a program calls it: streams, exit status, JSON."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hetmemd.ctl import client, main
from hetmemd.kernel.root import Root
from hetmemd.report import SOCKET, answers
from hetmemd.report.publish import Publisher
from hetmemd.report.varlink import Control
from tests.unit.report.sample import owner, snapshot

CHECKOUT = Path(__file__).parents[3]
LIMIT = 60
REDIS = owner().effective.cgroup


def hetmemctl(*words: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hetmemd.ctl.main", *words],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The control socket of a service that knows the sample, in a thread of its own."""
    (tmp_path / "run/hetmemd").mkdir(parents=True)
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        publisher = Publisher()
        publisher.publish(snapshot())
        control = Control(publisher, Root(tmp_path))
        await control.start()
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopped.set))
        ready.set()
        await stopped.wait()
        control.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(LIMIT)
    yield str(tmp_path) + SOCKET
    stop[0]()
    thread.join()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Another machine's files: two nodes of memory, one policy."""
    root = tmp_path / "machine"
    nodes = root / "sys/devices/system/node"
    for node, cpus in ((0, "0-1"), (1, "")):
        home = nodes / f"node{node}"
        home.mkdir(parents=True)
        (home / "meminfo").write_text(f"Node {node} MemTotal:    4194304 kB\n")
        (home / "distance").write_text("10 20\n" if node == 0 else "20 10\n")
        (home / "cpulist").write_text(cpus + "\n")
    for name in ("online", "possible", "has_memory", "has_normal_memory"):
        (nodes / name).write_text("0-1\n")
    (nodes / "has_cpu").write_text("0\n")
    policy(root, "50-redis.toml", '[[policy]]\ncgroup = "/redis"\nmode = "bind"\nnodes = "cpuless"\n')
    return root


def policy(root: Path, name: str, text: str) -> Path:
    path = root / "etc/hetmemd.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_status(service: str) -> None:
    shown = hetmemctl("status", "--socket", service)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("hetmemd 0.1.0, started ")
    assert "\033" not in shown.stdout, "not a terminal"
    told = hetmemctl("status", "--json", "--socket", service)
    assert json.loads(told.stdout) == answers.status(snapshot())


def test_explain(service: str) -> None:
    shown = hetmemctl("explain", "/sys/fs/cgroup" + REDIS, "--socket", service)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"{REDIS}: active\n")
    told = json.loads(hetmemctl("explain", REDIS, "--json", "--socket", service).stdout)
    assert told == answers.explain(owner().effective, owner())


def test_explain_what_is_not_known(service: str) -> None:
    for what, said in (("/nowhere", "no cgroup /nowhere"), ("4194305", "no process 4194305")):
        shown = hetmemctl("explain", what, "--socket", service)
        assert (shown.returncode, shown.stdout) == (1, "")
        assert said in shown.stderr


def test_explain_offline_has_that_machines_defaults(tmp_path: Path) -> None:
    def told() -> Any:
        return json.loads(hetmemctl("explain", "/a", "--json", "--root", str(tmp_path)).stdout)

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hetmemd.toml").write_text("[defaults]\ntolerance = 0.25\n")
    assert told()["handling"]["tolerance"] == 0.25
    (tmp_path / "etc/hetmemd.toml").write_text("[defaults]\ntolerence = 0.25\n")
    found = told()
    assert found["handling"]["tolerance"] == 0.02
    assert any("/etc/hetmemd.toml:2" in note for note in found["notes"])


def test_no_service(tmp_path: Path) -> None:
    for words in (["status"], ["explain", "/a"], ["explain", "1"]):
        shown = hetmemctl(*words, "--socket", str(tmp_path / "nothing"))
        assert (shown.returncode, shown.stdout) == (3, "")
        assert shown.stderr == "hetmemctl: the service does not run: systemctl start hetmemd\n"


def test_a_service_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LIMIT_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        assert main.main(["status", "--socket", str(tmp_path / "silent")]) == 3


def test_a_service_that_hangs_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.bind(str(tmp_path / "rude"))
        rude.listen()

        def hang_up() -> None:
            rude.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert main.main(["status", "--socket", str(tmp_path / "rude")]) == 3
        thread.join()
    assert "did not answer" in capsys.readouterr().err


def test_asking_the_service_imports_nothing_that_it_does_not_need(service: str) -> None:
    """The time of a call is the time of its imports."""
    code = "import sys; from hetmemd.ctl.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    shown = subprocess.run(
        [sys.executable, "-c", code, "explain", REDIS, "--socket", service],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    loaded = set(shown.stderr.split())
    assert not loaded & {"asyncio", "asyncvarlink", "numpy", "hetmemd.policy.resolve", "hetmemd.settings"}


def test_explain_another_machine(machine: Path) -> None:
    shown = hetmemctl("explain", "--root", str(machine), "/redis/child", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    told: dict[str, Any] = json.loads(shown.stdout)
    assert told["schema"] == 1
    assert told["state"] == "active"
    assert told["own"] is None
    assert told["inherited_from"] == {"path": "/redis", "file": "/etc/hetmemd.d/50-redis.toml", "line": 1}
    assert "I1" in told["rules"]
    assert told["losers"] == []
    effective = told["effective"]
    assert {key: effective[key] for key in ("mode", "nodes", "weights", "memory")} == {
        "mode": "bind",
        "nodes": [1],
        "weights": {},
        "memory": ["all"],
    }
    text = hetmemctl("explain", "--root", str(machine), "/redis/child").stdout
    assert text.startswith("/redis/child: active\n  policy      bind on node 1\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explain", "a/b", "--root", "/"], "begins with /"),
        (["explain", "12", "--root", "/"], "its own machine"),
        (["explain", "/a/../b", "--root", "/"], "not a path"),
        (["check", "--root", "/nowhere/at/all"], "no folder /nowhere/at/all"),
        (["prune"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    shown = hetmemctl(*words)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert said in shown.stderr


def test_check_a_machine(machine: Path) -> None:
    shown = hetmemctl("check", "--root", str(machine))
    assert shown.returncode == 0
    policy(machine, "60-broken.toml", '[[policy]]\ncgroup = "/a"\nmode = "bin"\nnods = "all"\n')
    (machine / "etc/hetmemd.toml").write_text("lisen = 1\n")
    shown = hetmemctl("check", "--root", str(machine))
    assert shown.returncode == 1
    lines = shown.stdout.splitlines()
    assert lines[0] == "/etc/hetmemd.toml:1: error: unknown key 'lisen' (did you mean 'listen'?)"
    assert [line.partition(" ")[0] for line in lines if "60-broken" in line] == [
        "/etc/hetmemd.d/60-broken.toml:3:",
        "/etc/hetmemd.d/60-broken.toml:4:",
    ]
    told = json.loads(hetmemctl("check", "--root", str(machine), "--json").stdout)
    assert told["schema"] == 1
    assert [finding["line"] for finding in told["findings"] if "60-broken" in finding["file"]] == [3, 4]
    assert set(told["findings"][0]) == {"file", "line", "severity", "message", "hint"}


def test_check_files(machine: Path, tmp_path: Path) -> None:
    good = policy(tmp_path, "good.toml", '[[policy]]\ncgroup = "/"\nmode = "default"\n')
    broken = policy(tmp_path, "broken.toml", "[[policy]]\n")
    toml = tmp_path / "hetmemd.toml"
    toml.write_text("rate = 0\n")
    assert hetmemctl("check", "--root", str(machine), str(good)).returncode == 0
    shown = hetmemctl("check", str(broken), str(toml), str(tmp_path / "missing.toml"))
    assert shown.returncode == 1
    for path in (broken, toml, tmp_path / "missing.toml"):
        assert f"{path}:1: error: " in shown.stdout


def test_check_says_on_stderr_that_all_is_well(machine: Path) -> None:
    (machine / "etc/hetmemd.d/50-redis.toml").unlink()
    shown = hetmemctl("check", "--root", str(machine))
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "no fault found\n")


@pytest.mark.parametrize("words", [["check"], ["explain", "/redis"], ["weights"]])
@pytest.mark.parametrize("file", ["has_memory", "online", "node1/cpulist", "node0/distance"])
def test_a_damaged_tree_is_trouble_and_the_file_is_named(machine: Path, words: list[str], file: str) -> None:
    damaged = machine / "sys/devices/system/node" / file
    damaged.write_bytes(b"\xff garbage")
    shown = hetmemctl(*words, "--root", str(machine))
    assert shown.returncode == main.NEGATIVE
    told = (shown.stderr + shown.stdout).replace(":1: error:", ":")
    assert f"/sys/devices/system/node/{file}: is no" in told
    assert "Traceback" not in shown.stderr


@pytest.mark.root
def test_check_as_any_user(machine: Path) -> None:
    for folder in (machine, *machine.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    # As root first, for what is imported on the way: the checkout may be where others cannot look.
    code = """
import os, sys
from hetmemd.ctl.main import main
main(sys.argv[1:])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print("as", os.getuid(), flush=True)
sys.exit(main(sys.argv[1:]))
"""
    words = ["check", "--root", str(machine)]
    shown = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    before, _, after = shown.stdout.partition("as 65534\n")
    assert (shown.returncode, after) == (0, before)
    policy(machine, "60-broken.toml", "[[policy]]\n")
    (machine / "etc/hetmemd.d/60-broken.toml").chmod(0o600)
    shown = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert shown.returncode == 1
    assert "60-broken.toml:1: error: cannot be read: Permission denied" in shown.stdout


def test_a_reader_that_has_enough(service: str) -> None:
    read, write = os.pipe()
    os.close(read)
    shown = hetmemctl("status", "--json", "--socket", service, stdout=write)
    os.close(write)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_at_a_terminal(service: str, environment: dict[str, str], coloured: bool) -> None:
    terminal, end = pty.openpty()
    hetmemctl("status", "--socket", service, stdout=end, **{"NO_COLOR": "", "TERM": "xterm", **environment})
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # EIO: the other end is closed, pty(7)
        pass
    os.close(terminal)
    assert shown.startswith(b"hetmemd 0.1.0")
    assert (b"\033[" in shown) == coloured

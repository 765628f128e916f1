"""The control socket, from the other end: what it answers, and that no client can hold it up."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import GenericVarlinkErrorReply, VarlinkClientProtocol, connect_unix_varlink
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from hetmemd.kernel.root import Root
from hetmemd.policy.effective import Effective, Handling
from hetmemd.policy.explain import MOST_LEVELS
from hetmemd.report import SOCKET, answers, varlink
from hetmemd.report.interface import Failed, Interface, NoSuchCgroup, NoSuchProcess, NotReady
from hetmemd.report.publish import Publisher
from hetmemd.report.varlink import Control
from tests.unit.report.sample import owner, snapshot, task

LIMIT = 30
"""Seconds that turn a hang into a failure."""
REDIS = owner().effective.cgroup

Resolve = Callable[[str], Effective | None]


@asynccontextmanager
async def serving(
    folder: Path, publisher: Publisher | None = None, resolve: Resolve | None = None
) -> AsyncIterator[Control]:
    if publisher is None:
        publisher = Publisher()
        publisher.publish(snapshot())
    (folder / "run/hetmemd").mkdir(parents=True, exist_ok=True)
    control = Control(publisher, Root(folder), resolve)
    await control.start()
    try:
        async with asyncio.timeout(LIMIT):
            yield control
    finally:
        control.close()


def name(folder: Path) -> str:
    return str(folder) + SOCKET


@asynccontextmanager
async def client(folder: Path) -> AsyncIterator[Any]:
    transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, name(folder))
    try:
        yield protocol.make_proxy(Interface)
    finally:
        transport.close()


async def raw(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(name(folder))


def call(method: str, **parameters: Any) -> bytes:
    return json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"


async def is_well(folder: Path) -> bool:
    async with client(folder) as proxy:
        return bool((await proxy.Status())["status"]["version"])


def process(folder: Path, pid: int, cgroup: str, policies: dict[int, str]) -> None:
    """What /proc shows of a process with these threads."""
    home = folder / f"proc/{pid}"
    home.mkdir(parents=True)
    (home / "cgroup").write_text(f"0::{cgroup}\n")
    (home / "stat").write_text(f"{pid} (redis) S 1" + " 0" * 48 + "\n")
    (home / "status").write_text("Name:\tredis\nMems_allowed_list:\t0-1\n")
    for tid, policy in policies.items():
        thread = home / f"task/{tid}"
        thread.mkdir(parents=True)
        (thread / "numa_maps").write_text(f"00400000 {policy} file=/usr/bin/redis mapped=1 N0=1\n")


def test_status(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path), client(tmp_path) as proxy:
            assert (await proxy.Status())["status"] == answers.status(snapshot())
            assert (await proxy.Check())["files"] == answers.status(snapshot())["files"]

    asyncio.run(scenario())


def test_explain_a_cgroup(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path), client(tmp_path) as proxy:
            told = (await proxy.Explain(cgroup=REDIS + "/"))["answer"]
            assert told == answers.explain(owner().effective, owner())
            assert told["schema"] == 1
            assert told["effective"]["weights"] == {"0": 3, "1": 1}
            assert [shown["pid"] for shown in told["tasks"]] == [812, 813]
            with pytest.raises(NoSuchCgroup):
                await proxy.Explain(cgroup="/nowhere")

    asyncio.run(scenario())


def test_explain_a_process_asks_the_kernel(tmp_path: Path) -> None:
    process(tmp_path, 812, REDIS, {812: "weighted interleave=static:0-1", 814: "default", 815: "default"})
    process(tmp_path, 900, REDIS, {900: "default"})
    process(tmp_path, 901, "/gone (deleted)", {901: "default"})

    async def scenario() -> None:
        async with serving(tmp_path), client(tmp_path) as proxy:
            told = (await proxy.Explain(pid=812))["answer"]
            assert told["pid"] == 812
            assert told["task"] == answers.task_view(task())
            assert told["kernel"] == {
                "policies": {"weighted interleave=static:0-1": 1, "default": 2},
                "mems_allowed": [0, 1],
                "note": "",
            }
            assert (await proxy.Explain(pid=900))["answer"]["task"] is None, "not looked at yet"
            for pid in (901, 902):
                with pytest.raises(NoSuchProcess):
                    await proxy.Explain(pid=pid)

    asyncio.run(scenario())


def test_cgroups_that_no_policy_reaches_are_resolved(tmp_path: Path) -> None:
    default = Effective("/other", "default", None, Handling(), None, None, ())

    async def scenario() -> None:
        async with serving(tmp_path, resolve={"/other": default}.get), client(tmp_path) as proxy:
            told = (await proxy.Explain(cgroup="/other"))["answer"]
            assert (told["state"], told["effective"]["mode"]) == ("default", "default")
            with pytest.raises(NoSuchCgroup):
                await proxy.Explain(cgroup="/nowhere")

    asyncio.run(scenario())


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    hostile = os.fsdecode(b"/a\xff\n.service")
    publisher = Publisher()
    publisher.publish(snapshot(owner(hostile)))

    async def scenario() -> None:
        async with serving(tmp_path, publisher), client(tmp_path) as proxy:
            assert (await proxy.Explain(cgroup=hostile))["answer"]["cgroup"] == hostile

    asyncio.run(scenario())


def test_a_fault_of_ours_is_logged_and_the_next_call_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(cgroup: str) -> Effective | None:
        raise RuntimeError("no such luck")

    async def scenario() -> None:
        async with serving(tmp_path, resolve=broken), client(tmp_path) as proxy:
            with pytest.raises(GenericVarlinkErrorReply, match="InternalServerError"):
                await proxy.Explain(cgroup="/nowhere")
            assert (await proxy.Status())["status"]["schema"] == 1

    asyncio.run(scenario())
    assert "no such luck" in caplog.text


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a journal would show, without asyncio's remark (in its debug mode) on a callback that took long."""
    shown = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in shown if record.name != "asyncio" or record.levelno >= logging.ERROR]


def test_clients_that_go_away_say_nothing_to_the_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher()
    publisher.publish(snapshot(*(owner(f"/a/{number}") for number in range(500))))

    async def scenario() -> None:
        async with serving(tmp_path, publisher) as control:
            for _ in range(5):
                with socket.socket(socket.AF_UNIX) as hasty:
                    hasty.connect(name(tmp_path))
                    hasty.send(call("org.hetmemd.Status") * 3)
                assert await is_well(tmp_path)
            while control._connections:
                await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert complaints(caplog) == []


def test_stopping_amid_a_call_says_nothing_to_the_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher()
    publisher.publish(snapshot(*(owner(f"/a/{number}") for number in range(2000))))

    async def scenario() -> None:
        async with serving(tmp_path, publisher) as control:
            _, writer = await raw(tmp_path)
            writer.write(call("org.hetmemd.Status") * 3)
            while not any(connection._answering for connection in control._connections):
                await asyncio.sleep(0)
            control.close()
            writer.close()

    asyncio.run(scenario())
    assert complaints(caplog) == []


def test_before_the_first_pass(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, Publisher()), client(tmp_path) as proxy:
            with pytest.raises(NotReady):
                await proxy.Status()

    asyncio.run(scenario())


@pytest.mark.parametrize("parameters", [{}, {"cgroup": "/a", "pid": 1}, {"cgroup": 5}, {"pid": "x"}])
def test_wrong_parameters_are_an_error(tmp_path: Path, parameters: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            reader, writer = await raw(tmp_path)
            writer.write(call("org.hetmemd.Explain", **parameters))
            reply = json.loads((await reader.readuntil(b"\0"))[:-1])
            assert reply["error"] == "org.varlink.service.InvalidParameter"
            writer.close()

    asyncio.run(scenario())


def test_introspection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, name(tmp_path))
            proxy: Any = protocol.make_proxy(VarlinkServiceInterface)
            assert "org.hetmemd" in (await proxy.GetInfo())["interfaces"]
            text = (await proxy.GetInterfaceDescription(interface="org.hetmemd"))["description"]
            assert "method Explain(cgroup: ?string, pid: ?int) -> (answer: object)" in text
            transport.close()

    asyncio.run(scenario())


def test_the_socket_is_for_everybody_and_replaces_an_old_one(tmp_path: Path) -> None:
    old = tmp_path / "run/hetmemd"
    old.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(name(tmp_path))

    async def scenario() -> None:
        async with serving(tmp_path):
            assert stat.S_IMODE(Path(name(tmp_path)).stat().st_mode) == 0o666
            assert await is_well(tmp_path)

    asyncio.run(scenario())
    assert not Path(name(tmp_path)).exists()


def test_no_folder_is_an_error_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run/hetmemd/control"):
        asyncio.run(Control(Publisher(), Root(tmp_path)).start())


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\0",
        b"[]\0",
        b"\xff\xfe\0",
        b"[" * 50_000 + b"\0",
        b"x" * (varlink.LARGEST_CALL + 4096),
        b'{"method":5}\0',
    ],
    ids=["no JSON", "no object", "no UTF-8", "nested", "endless", "no method"],
)
def test_garbage_ends_its_own_connection_at_most(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            reader, writer = await raw(tmp_path)
            writer.write(data)
            writer.write_eof()
            try:
                told = await reader.read()
            except ConnectionResetError:
                told = b""
            assert told == b"" or b"error" in told
            assert await is_well(tmp_path)
            writer.close()

    asyncio.run(scenario())


def test_a_client_that_does_not_read_costs_one_reply(tmp_path: Path) -> None:
    """It asks thousands of times: only what it takes is answered, and everybody else goes on."""
    asked = 0

    class Counting(Publisher):
        @property
        def latest(self) -> Any:
            nonlocal asked
            asked += 1
            return big

    big = snapshot(*(owner(f"/a/{number}") for number in range(2000)))

    async def scenario() -> None:
        async with serving(tmp_path, Counting()):
            with socket.socket(socket.AF_UNIX) as greedy:
                greedy.connect(name(tmp_path))
                greedy.setblocking(False)
                greedy.send(call("org.hetmemd.Status") * 500)
                for _ in range(3):
                    assert await is_well(tmp_path)
                assert asked <= 5, "one for the greedy client, and three of the others"

    asyncio.run(scenario())


def test_a_client_that_never_takes_its_reply_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlink, "REPLY_SECONDS", 0.1)
    publisher = Publisher()
    publisher.publish(snapshot(*(owner(f"/a/{number}") for number in range(2000))))

    async def scenario() -> None:
        async with serving(tmp_path, publisher) as control:
            with socket.socket(socket.AF_UNIX) as greedy:
                greedy.connect(name(tmp_path))
                greedy.send(call("org.hetmemd.Status"))
                while not control._connections:
                    await asyncio.sleep(0)
                while control._connections:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_idle_clients_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlink, "IDLE_SECONDS", 0.1)

    async def scenario() -> None:
        async with serving(tmp_path):
            reader, writer = await raw(tmp_path)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_users_are_bounded_and_root_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = iter([1000] * (varlink.CONNECTIONS_PER_USER + 1) + [1001, 0])
    monkeypatch.setattr(varlink, "_user", lambda client: next(users))

    async def scenario() -> None:
        async with serving(tmp_path) as control:
            taken = [await raw(tmp_path) for _ in range(varlink.CONNECTIONS_PER_USER)]
            reader, writer = await raw(tmp_path)
            assert await reader.read() == b"", "one too many"
            writer.close()
            assert await is_well(tmp_path), "another user"
            assert await is_well(tmp_path), "root"
            assert len(control._connections) >= len(taken)
            for _, writer in taken:
                writer.close()

    asyncio.run(scenario())


def test_calls_of_one_user_stand_in_line() -> None:
    control = Control(Publisher())
    step = varlink.CALL_INTERVAL
    assert [control.wait(1000, 100.0) for _ in range(4)] == pytest.approx([0, step, 2 * step, 3 * step])
    assert control.wait(1001, 100.0) == 0, "another user"
    control.charge(1001, 0.03)
    assert control.wait(1001, 100.0) == pytest.approx(step + 0.3), "a large reply costs its user more"
    control.charge(0, 1.0)
    assert [control.wait(0, 100.0) for _ in range(4)] == [0, 0, 0, 0], "root"
    assert control.wait(1000, 101.0) == 0, "what was long ago is forgotten"
    control.close()


def test_who_hangs_up_and_comes_again_stands_in_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = iter([1000, 1001, 1000])
    monkeypatch.setattr(varlink, "_user", lambda client: next(users))

    async def scenario() -> None:
        async with serving(tmp_path) as control:
            assert await is_well(tmp_path)
            control._next_call[1000] += 100
            while control._connections:
                await asyncio.sleep(0)
            assert await is_well(tmp_path), "another user"
            while control._connections:
                await asyncio.sleep(0)
            assert control.wait(1000, control._loop.time()) > 90
            assert control._next_call.keys() == {1000}, "the other's turn has come: it is forgotten"

    monkeypatch.setattr(varlink, "CALL_INTERVAL", 0.0)
    monkeypatch.setattr(varlink, "CHARGE", 0.0)
    asyncio.run(scenario())


def test_the_whole_of_a_call_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worked out in the loop, not only the writing of the reply: also where there is no reply but an error."""
    charged: list[float] = []
    monkeypatch.setattr(varlink, "_user", lambda client: 1000)
    monkeypatch.setattr(Control, "charge", lambda self, uid, seconds: charged.append(seconds if uid == 1000 else -1))

    def slow(cgroup: str) -> Effective | None:
        time.sleep(0.2)
        if cgroup == "/broken":
            raise RuntimeError
        return None

    async def scenario() -> None:
        async with serving(tmp_path, resolve=slow), client(tmp_path) as proxy:
            for cgroup, error in (("/nowhere", NoSuchCgroup), ("/broken", GenericVarlinkErrorReply)):
                with pytest.raises(error):
                    await proxy.Explain(cgroup=cgroup)
                assert sum(charged) >= 0.2
                charged.clear()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/a" * (MOST_LEVELS + 1), f"up to {MOST_LEVELS} levels deep"),
        ("/" + "a" * 5000, "no more than 4096 characters"),
        ("/a" * 31_000, "no more than 4096 characters"),
    ],
)
def test_nothing_is_worked_out_for_a_path_that_no_cgroup_has(tmp_path: Path, path: str, says: str) -> None:
    asked: list[str] = []

    def resolve(cgroup: str) -> Effective:
        asked.append(cgroup)
        return Effective(cgroup, "default", None, Handling(), None, None, ())

    async def scenario() -> None:
        async with serving(tmp_path, resolve=resolve), client(tmp_path) as proxy:
            with pytest.raises(Failed) as error:
                await proxy.Explain(cgroup=path)
            assert says in str(error.value.parameters)
            deepest = "/a" * MOST_LEVELS
            assert (await proxy.Explain(cgroup=deepest))["answer"]["cgroup"] == deepest
            assert asked == [deepest]

    asyncio.run(scenario())


def test_closing_does_not_wait_for_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as control:
            reader, writer = await raw(tmp_path)
            while not control._connections:
                await asyncio.sleep(0)
            control.close()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())

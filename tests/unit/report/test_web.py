"""The HTTP server: what it serves, and that no client can stop it for another."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hetmemd.report import metrics, web
from hetmemd.report.metrics import Metrics
from hetmemd.report.publish import Publisher
from hetmemd.report.tally import Tally
from hetmemd.report.web import ListenError, Web

LIMIT = 20
"""Seconds that turn a hang into a failure."""

Start = Callable[..., Web]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Web] = []

    def begin(listen: str = "127.0.0.1:0", **files: Any) -> Web:
        running.append(Web(listen, metrics.registry(Metrics(Publisher(), Tally())), **files))
        return running[-1]

    yield begin
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    make_certificate(*pair)
    return pair


def make_certificate(certificate: str, key: str) -> None:
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", *words, *names, "-out", certificate, "-keyout", key], check=True, capture_output=True
    )


def get(server: Web, path: str, scheme: str = "http", trusted: str | None = None) -> tuple[int, str, str]:
    context = ssl.create_default_context(cafile=trusted) if trusted else None
    try:
        with urllib.request.urlopen(
            f"{scheme}://127.0.0.1:{server.port}{path}", timeout=LIMIT, context=context
        ) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_pages(start: Start) -> None:
    server = start()
    status, kind, page = get(server, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert 'href="/metrics"' in page
    status, kind, text = get(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "hetmemd_build_info{" in text
    assert get(server, "/etc/passwd")[0] == 404


def test_reading_only(start: Start) -> None:
    server = start()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", data=b"x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=LIMIT)
    assert refused.value.code == 405
    refused.value.close()


def test_a_port_in_use_is_a_sentence(start: Start) -> None:
    taken = start()
    with pytest.raises(ListenError, match=rf"^cannot listen on 127.0.0.1:{taken.port}: Address already in use$"):
        start(f"127.0.0.1:{taken.port}")


def test_an_address_of_another_machine_is_a_sentence(start: Start) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:9797"):
        start("192.0.2.1:9797")


def test_every_address(start: Start) -> None:
    assert get(start(":0"), "/")[0] == 200


def test_idle_clients_do_not_stop_a_scrape(start: Start) -> None:
    server = start()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    assert get(server, "/metrics")[0] == 200
    for client in idle:
        client.close()


def test_connections_are_bounded_and_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECTION_SECONDS", 0.2)
    server = start()
    threads = threading.active_count()
    idle = [
        socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) for _ in range(web.MOST_CONNECTIONS * 2)
    ]
    assert threading.active_count() <= threads + web.MOST_CONNECTIONS
    for client in idle:
        # Their time is over long before a read would have timed out: the server ends them, or never took them.
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            assert get(server, "/metrics")[0] == 200
            break
        except OSError:  # the last threads are just ending
            assert time.monotonic() < deadline


def test_closing_does_not_wait_for_clients(start: Start) -> None:
    server = Web("127.0.0.1:0", metrics.registry(Metrics(Publisher(), Tally())))
    with socket.create_connection(("127.0.0.1", server.port)):
        closing = threading.Thread(target=server.close, daemon=True)
        closing.start()
        closing.join(LIMIT)
        assert not closing.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_tls(start: Start, certificate: tuple[str, str]) -> None:
    server = start(certificate=certificate[0], key=certificate[1])
    with socket.create_connection(("127.0.0.1", server.port)):  # says nothing: its handshake is its own business
        assert get(server, "/metrics", "https", certificate[0])[0] == 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"hetmemd" not in plain.recv(4096)
    assert get(server, "/", "https", certificate[0])[0] == 200


def test_a_renewed_certificate_is_used(start: Start, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pair = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    make_certificate(*pair)
    old = Path(pair[0]).read_text()
    server = start(certificate=pair[0], key=pair[1])
    make_certificate(*pair)
    assert get_certificate(server) == old
    server.renew()
    assert get_certificate(server) == Path(pair[0]).read_text() != old


def get_certificate(server: Web) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port), timeout=LIMIT)


def test_credentials_of_the_unit(start: Start, certificate: tuple[str, str]) -> None:
    folder = str(Path(certificate[0]).parent)
    server = start(certificate="cert.pem", key="key.pem", environment={"CREDENTIALS_DIRECTORY": folder})
    assert get(server, "/", "https", certificate[0])[0] == 200
    with pytest.raises(ListenError, match=r"no credential 'cert.pem'.*LoadCredential"):
        start(certificate="cert.pem", key="key.pem", environment={})


def test_a_missing_certificate_is_a_sentence(start: Start) -> None:
    with pytest.raises(ListenError, match=r"/nowhere.*No such file"):
        start(certificate="/nowhere", key="/nowhere")

"""Metrics over HTTP: a listener thread, and a thread with a deadline for each connection.

prometheus-client's own server shakes hands for TLS in its accept loop (0.26) or knows no TLS (0.16), so that one idle
client would stop every scrape; hence this one, around prometheus-client's WSGI application.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from hetmemd.settings import split_address

log = logging.getLogger(__name__)

READ_SECONDS = 5.0
"""The longest wait for one read or write of a client."""
CONNECTION_SECONDS = 30.0
"""The longest life of a connection: a client that sends a byte now and then is cut off all the same."""
MOST_CONNECTIONS = 32
"""Further ones are closed at once, so that clients cost a bounded number of threads."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>hetmemd</title></head>
<body>
<h1>hetmemd</h1>
<p>Memory policies for cgroups. <a href="/metrics">Metrics</a></p>
</body>
</html>
"""


class ListenError(Exception):
    """The address cannot be served; the message is a sentence for a person."""


StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def application(registry: CollectorRegistry) -> Application:
    """`/` is a page that links `/metrics`; the rest is not here."""
    metrics = cast(Application, make_wsgi_app(registry))

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ.get("REQUEST_METHOD", "")
        status, kind, body = "404 Not Found", "text/plain; charset=utf-8", b"Not here: the metrics are at /metrics\n"
        if method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET only\n"
        elif path == "/metrics":
            return metrics(environ, start_response)
        elif path == "/":
            status, kind, body = "200 OK", "text/html; charset=utf-8", _PAGE
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [b"" if method == "HEAD" else body]

    return serve


class _Handler(WSGIRequestHandler):
    timeout = READ_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("metrics: %s: " + format, self.address_string(), *args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0  # handle_request() takes what is there and does not wait

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self.address_family = family
        self._context = context
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)
        # A client may be gone between the poll and accept(2); that must not block the listener.
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # ":9797" comes here as "::" and means IPv4 as well.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.server_address[0] != "::")
        # Not http.server's: that asks the name service for this host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            connection, peer = super().get_request()
        except OSError as error:
            if error.errno in _NO_ROOM:
                # The connection stays in the queue: without a rest, the listener would spin on it.
                time.sleep(0.1)
            raise
        connection.settimeout(READ_SECONDS)
        with self._open_lock:
            full = len(self._open) >= MOST_CONNECTIONS
            if not full:
                self._open[connection] = time.monotonic() + CONNECTION_SECONDS
        if full:
            connection.close()
            raise OSError("too many connections")
        return connection, peer

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: the handshake is here, where it holds nobody up."""
        if self._context is None:
            super().finish_request(request, client_address)
            return
        # The wrapper owns the descriptor from here on; the deadline must find it.
        with self._open_lock:
            deadline = self._open.pop(request, time.monotonic())
            wrapped = self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            self._open[wrapped] = deadline
        try:
            wrapped.do_handshake()
            super().finish_request(wrapped, client_address)
        finally:
            self.shutdown_request(wrapped)

    def close_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away, is silent or speaks something else is no fault of ours.
        log.debug("metrics: connection from %s", client_address, exc_info=True)

    def cut_off(self, now: float) -> float | None:
        """Ends connections past their deadline; seconds until the next one, None where there is none."""
        with self._open_lock:
            for connection, deadline in self._open.items():
                if deadline <= now:
                    # Its thread wakes from its read or write with an end of file, and closes.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
            waiting = [deadline - now for deadline in self._open.values() if deadline > now]
            late = len(waiting) < len(self._open)
        return min(waiting) if waiting else (READ_SECONDS if late else None)


class Web:
    """Serves a registry until `close()`. `ListenError` where the address or the certificate cannot be used."""

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        certificate: str | None = None,
        key: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`listen` is HOST:PORT; port 0 takes a free one. `certificate` and `key` are paths or credential names."""
        self._files = (certificate, key, os.environ if environment is None else environment)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        self.renew()
        host, port = split_address(listen)
        self._server = self._bind(listen, host, port)
        self._server.set_app(cast(Any, application(registry)))
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def renew(self) -> None:
        """Reads the certificate and its key again; connections from now on use them."""
        certificate, key, environment = self._files
        if self._context is None or certificate is None:
            return
        try:
            self._context.load_cert_chain(_file(certificate, environment), _file(key, environment) if key else None)
        except (OSError, ssl.SSLError) as error:
            why = error.strerror or str(error)
            raise ListenError(f"the TLS certificate {certificate} with the key {key} cannot be used: {why}") from None

    def close(self) -> None:
        """Prompt: open connections are dropped."""
        self._wake.close()
        self._thread.join()
        self._server.server_close()
        self._woken.close()

    def _bind(self, listen: str, host: str, port: int) -> _Server:
        try:
            found = socket.getaddrinfo(
                host or ("::" if socket.has_ipv6 else "0.0.0.0"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            return _Server(family, cast(tuple[str, int], address), self._context)
        except OSError as error:
            if not host and error.errno in _NO_IPV6:
                return self._bind(listen, "0.0.0.0", port)
            raise ListenError(f"cannot listen on {listen}: {error.strerror or error}") from None

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._server.cut_off(time.monotonic()))}
                if self._woken in ready:
                    return
                if ready:
                    self._server.handle_request()


def _file(name: str, environment: Mapping[str, str]) -> str:
    """The file of a path, or of a credential that the unit loaded (systemd.exec(5), LoadCredential=)."""
    if name.startswith("/"):
        return name
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise FileNotFoundError(None, f"there is no credential {name!r}: the unit loads none (LoadCredential=)")
    return str(Path(folder) / name)

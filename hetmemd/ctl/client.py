"""Calls to the running service over its control socket, with time limits and errors that a person can act on.

Varlink on the wire is a JSON object and a NUL byte each way. A client of one call needs no more than that, and without
asyncio and its library the command answers several times sooner.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from hetmemd.report import SOCKET

LIMIT_SECONDS = 10.0
UNDO_SECONDS = 60.0
"""The service tries for half a minute."""
NOT_READY_SECONDS = 5.0
"""How long a service that has just started is waited for."""
_INTERFACE = "org.hetmemd"


class UnreachableError(Exception):
    """The service does not answer; the text says why and what would help."""


class AbsentError(UnreachableError):
    """There is no service."""


class UnknownError(Exception):
    """The service knows nothing of what was asked for."""


def status(path: str = SOCKET) -> dict[str, Any]:
    return dict(_call(path, "Status", "status"))


def explain_cgroup(cgroup: str, path: str = SOCKET) -> dict[str, Any]:
    return dict(_call(path, "Explain", "answer", cgroup=cgroup))


def explain_process(pid: int, path: str = SOCKET) -> dict[str, Any]:
    return dict(_call(path, "Explain", "answer", pid=pid))


def undo(cgroup: str | None, pid: int | None, dry_run: bool, force: bool, path: str = SOCKET) -> dict[str, Any]:
    where: dict[str, Any] = {"cgroup": cgroup} if cgroup is not None else {"pid": pid} if pid is not None else {}
    return dict(_call(path, "Undo", "answer", UNDO_SECONDS, **where, dry_run=dry_run, force=force))


def release(what: str | None, path: str = SOCKET) -> list[dict[str, Any]]:
    which: dict[str, Any] = {} if what is None else {"what": what}
    return list(_call(path, "Release", "released", **which))


def _call(path: str, method: str, part: str, limit: float = LIMIT_SECONDS, **parameters: Any) -> Any:
    deadline = time.monotonic() + NOT_READY_SECONDS
    while True:
        try:
            reply = _exchange(path, {"method": f"{_INTERFACE}.{method}", "parameters": parameters}, limit)
        except TimeoutError:
            raise UnreachableError(f"the service did not answer within {limit:g} s: journalctl -u hetmemd") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise AbsentError("the service does not run: systemctl start hetmemd") from None
        except (OSError, ValueError) as error:
            raise UnreachableError(f"the service did not answer: {error}") from None
        about = reply.get("parameters", {})
        match str(reply.get("error", "")).removeprefix(_INTERFACE + "."):
            case "":
                if part not in about:
                    raise UnreachableError(f"the service did not answer: no {part} in its reply")
                return about[part]
            case "NoSuchCgroup":
                raise UnknownError(f"there is no cgroup {about.get('cgroup')}, or no policy reaches it")
            case "NoSuchProcess":
                raise UnknownError(f"there is no process {about.get('pid')}, or it is in no cgroup")
            case "Failed":
                raise UnknownError(f"it was not done: {about.get('why')}")
            case "org.varlink.service.PermissionDenied":
                raise UnknownError("this needs root")
            case "NotReady":
                if time.monotonic() > deadline:
                    raise UnreachableError("the service is still starting: ask again in a moment")
                time.sleep(0.1)
            case other:
                raise UnreachableError(f"the service did not answer: {other} {about or ''}".rstrip())


def _exchange(path: str, call: dict[str, Any], limit: float) -> dict[str, Any]:
    """One call and its reply. `OSError`, or `ValueError` where the reply is none."""
    deadline = time.monotonic() + limit
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(limit)
        channel.connect(path)
        channel.sendall(json.dumps(call).encode() + b"\0")
        parts: list[bytes] = []
        while not (parts and parts[-1].endswith(b"\0")):
            channel.settimeout(max(deadline - time.monotonic(), 0.001))
            if not (part := channel.recv(1 << 16)):
                raise ConnectionResetError("it closed the connection")
            parts.append(part)
    reply = json.loads(b"".join(parts)[:-1])
    if not isinstance(reply, dict):
        raise ValueError("its reply is no object")
    return reply

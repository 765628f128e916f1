"""Calls to the running service over its control socket, with time limits and errors that a person can act on."""

from __future__ import annotations

import asyncio
from typing import Any

from asyncvarlink import GenericVarlinkErrorReply, VarlinkClientProtocol, VarlinkErrorReply, connect_unix_varlink
from asyncvarlink.conversion import ConversionError

from hetmemd.report.interface import SOCKET, Interface, NoSuchCgroup, NoSuchProcess, NotReady

LIMIT_SECONDS = 10.0
NOT_READY_SECONDS = 5.0
"""How long a service that has just started is waited for."""


class UnreachableError(Exception):
    """The service does not answer; the text says why and what would help."""


class UnknownError(Exception):
    """The service knows nothing of what was asked for."""


def status(socket: str = SOCKET) -> dict[str, Any]:
    return dict(_call(socket, "Status", "status"))


def explain_cgroup(cgroup: str, socket: str = SOCKET) -> dict[str, Any]:
    return dict(_call(socket, "Explain", "answer", cgroup=cgroup))


def explain_process(pid: int, socket: str = SOCKET) -> dict[str, Any]:
    return dict(_call(socket, "Explain", "answer", pid=pid))


def _call(socket: str, method: str, part: str, **parameters: Any) -> Any:
    try:
        return asyncio.run(_limited(socket, method, parameters))[part]
    except NoSuchCgroup as error:
        raise UnknownError(f"there is no cgroup {error.parameters['cgroup']}, or no policy reaches it") from None
    except NoSuchProcess as error:
        raise UnknownError(f"there is no process {error.parameters['pid']}, or it is in no cgroup") from None
    except NotReady:
        raise UnreachableError("the service is still starting: ask again in a moment") from None
    except TimeoutError:
        raise UnreachableError(
            f"the service did not answer within {LIMIT_SECONDS:g} s: journalctl -u hetmemd"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise UnreachableError("the service does not run: systemctl start hetmemd") from None
    except (OSError, GenericVarlinkErrorReply, VarlinkErrorReply, ConversionError, KeyError) as error:
        raise UnreachableError(f"the service did not answer: {error}") from None


async def _limited(socket: str, method: str, parameters: dict[str, Any]) -> Any:
    async with asyncio.timeout(LIMIT_SECONDS):
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, socket)
        try:
            proxy = protocol.make_proxy(Interface)
            deadline = asyncio.get_running_loop().time() + NOT_READY_SECONDS
            while True:
                try:
                    return await getattr(proxy, method)(**parameters)
                except NotReady:
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                    await asyncio.sleep(0.1)
        finally:
            transport.close()

"""Words to the service manager: sd_notify(3), by systemd-python where it is installed, else by the datagram itself."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

try:
    from systemd.daemon import notify as _systemd_notify
except ImportError:
    _systemd_notify = None

log = logging.getLogger(__name__)


def datagram(state: str, address: str | None = None) -> bool:
    """Sends one state to `$NOTIFY_SOCKET`; False where there is none. `OSError` where it does not take it."""
    address = address or os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace, unix(7)
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
    return True


class Notifier:
    """Speaks to the manager that started this process, and is silent where none did."""

    def __init__(self, send: Callable[[str], bool] | None = None, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._send = send or _systemd_notify or datagram
        self._under_manager = bool(environment.get("NOTIFY_SOCKET"))
        self._said = ""
        self.watchdog_interval = _watchdog_interval(environment)
        """Seconds between two pings, half of what the unit allows; None where the unit asks for none."""

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is over."""
        self._notify("READY=1", status)

    def reloading(self) -> None:
        """SIGHUP was taken. The time stamp lets systemd 253 and later tell this reload from an earlier one."""
        self._notify("RELOADING=1", extra=f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        self._notify("STOPPING=1", status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it differs from the last."""
        if text != self._said:
            self._notify("", text)

    def watchdog(self) -> None:
        """To be called by the loop that does the work, and by nothing else: it vouches for that loop."""
        self._notify("WATCHDOG=1")

    def _notify(self, state: str, status: str = "", extra: str = "") -> None:
        if not self._under_manager:
            return
        if status:
            self._said = status
            status = "STATUS=" + " ".join(status.split())
        try:
            self._send("\n".join(line for line in (state, extra, status) if line))
        except OSError as error:
            log.warning("the service manager was not told %s: %s", state or status, error.strerror)


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, sd_watchdog_enabled(3); None where it is not meant for this process."""
    try:
        limit = int(environment["WATCHDOG_USEC"])
        if int(environment.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
    except (KeyError, ValueError):
        return None
    return limit / 2e6 if limit > 0 else None

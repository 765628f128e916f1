"""`/etc/hetmemd.toml`: what concerns the daemon itself, as opposed to what it does to cgroups (the policy files).

A file that is not there means the defaults. A file with a fault is refused whole, with every fault named by file and
line: a daemon that ignored half of its settings would do something nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hetmemd.kernel.root import Root
from hetmemd.policy import document, files, nodes, pattern, quantity
from hetmemd.policy.effective import Handling
from hetmemd.policy.faults import Fault, did_you_mean, shown
from hetmemd.policy.language import Weights
from hetmemd.policy.locate import Place, line_of
from hetmemd.policy.nodes import NodeSet
from hetmemd.policy.pattern import Pattern

PATH = "/etc/hetmemd.toml"
OBSERVE_FILES = ("/run/hetmemd/observe", "/var/lib/hetmemd/observe")
"""The kill switch without an editor: while one of these exists, nothing is applied or moved. The first ends with the
boot, the second stays (`hetmemctl observe on`)."""

_MOST_FAULTS = 100
"""Of one table: what has more is another file altogether."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is asked of the kernel as a whole."""

    weights: Weights = "leave"
    """Its global table for weighted interleave: `leave` it, `bandwidth`, or weights by number and selector."""


@dataclass(frozen=True, slots=True)
class BrakeSettings:
    """What keeps acts from doing harm, or from doing it often."""

    crash_window: float = 10.0
    """Seconds after an act in which a death by a fatal signal is put down to it; 0: never."""
    first_tasks: int = 4
    """Processes that are given a new or changed policy before all others; 0: all at once."""
    first_seconds: float = 2.0
    """How long those are watched."""
    stops_per_second: int = 5000
    """Threads on the whole machine."""
    stops_per_second_each: int = 2000
    """Threads of one process."""
    deny_executables: tuple[Pattern, ...] = ()
    deny_users: tuple[str | int, ...] = ()
    """Names, or uids."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Rates are bytes per second, intervals seconds, `burst` bytes (None: one second of the rate)."""

    listen: str = "127.0.0.1:9797"
    """HOST:PORT of the metrics; empty: no metrics over HTTP."""
    tls_certificate: str | None = None
    tls_key: str | None = None
    rate: int = 1 << 30
    """The global bucket that every move pays for (I7)."""
    burst: int | None = None
    moving_share: float = 0.06
    """The most of a process's time in which its pages are looked at and moved."""
    measuring_share: float = 0.01
    """The most of a process's time in which its pages are counted."""
    defaults: Handling = field(default_factory=Handling)
    """Handling keys that no policy on the way to the root has (I4)."""
    kernel: Kernel = field(default_factory=Kernel)
    brakes: BrakeSettings = field(default_factory=BrakeSettings)
    observe: bool = False
    on_stop: str = "keep"
    scan_interval: float = 30.0
    measure_interval: float = 10.0
    log_level: str = "info"
    cgroup_label_limit: int = 200


class SettingsError(Exception):
    """The file is refused; `faults` holds everything that is wrong with it, in the order of its lines."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class UnsettledError(SettingsError):
    """Somebody has the file open for writing, so that what can be read now may be half of it."""


def load(root: Root, path: str = PATH) -> Settings:
    """The settings in force. `SettingsError` where the file is there and cannot be read or is wrong.

    `UnsettledError`, one of these, where it is being written: what holds should hold on, as the kill switch may be in
    the half that is not there yet.
    """
    try:
        content = files.read(root, path)
    except files.BeingWrittenError as error:
        raise UnsettledError((Fault(path, 1, str(error)),)) from None
    except files.UnreadableError as error:
        raise SettingsError((Fault(path, 1, str(error)),)) from None
    if content is None:
        return Settings()
    settings, faults = parse(content.data, path)
    if faults:
        raise SettingsError(faults)
    return settings


def parse(data: bytes, path: str = PATH) -> tuple[Settings, tuple[Fault, ...]]:
    """Settings, and every fault of the file; with faults the settings hold what could be understood. Never raises."""
    found = document.read(data, path)
    if isinstance(found, Fault):
        return Settings(), (found,)
    table, lines = found.content, found.lines
    faults: list[Fault] = []
    values = _values(table, _KEYS, (), path, lines, faults)
    handling = _values(table.get("defaults", {}), _HANDLING, ("defaults",), path, lines, faults)
    kernel = _values(table.get("kernel", {}), _KERNEL, ("kernel",), path, lines, faults)
    if ("tls_certificate" in table) != ("tls_key" in table):
        here, missing = ("tls_certificate", "tls_key") if "tls_certificate" in table else ("tls_key", "tls_certificate")
        faults.append(Fault(path, line_of(lines, (here,)), f"{here} without {missing}", "TLS needs both"))
    brakes = _values(table.get("brakes", {}), _BRAKES, ("brakes",), path, lines, faults)
    settings = Settings(
        **values, defaults=Handling(**handling), kernel=Kernel(**kernel), brakes=BrakeSettings(**brakes)
    )
    return settings, tuple(sorted(faults, key=lambda fault: fault.line))


Reader = Callable[[Any], Any]


def _values(
    table: Any,
    readers: Mapping[str, Reader | None],
    section: Place,
    path: str,
    lines: Mapping[Place, int],
    faults: list[Fault],
) -> dict[str, Any]:
    """What the known keys of a table come to; everything else goes to `faults`."""
    if not isinstance(table, dict):
        name = section[-1]
        faults.append(Fault(path, line_of(lines, section), f"{name} is a table", f"write [{name}]"))
        return {}
    values: dict[str, Any] = {}
    for key, value in table.items():
        line = line_of(lines, (*section, key))
        if len(faults) >= _MOST_FAULTS:
            faults.append(Fault(path, line, "after so many faults the rest was not looked at"))
            break
        if key not in readers:
            where = f" in [{section[-1]}]" if section else ""
            faults.append(Fault(path, line, f"unknown key {shown(key)}{where}", _hint(key, readers, section)))
        elif reader := readers[key]:
            try:
                values[key] = reader(value)
            except ValueError as error:
                faults.append(Fault(path, line, f"{key}: {error}"))
    return values


def _hint(key: str, readers: Mapping[str, Reader | None], section: Place) -> str:
    if section and key in _KEYS:
        return f"it belongs above [{section[-1]}]"
    near = did_you_mean(key, readers)
    if not near and section and (elsewhere := did_you_mean(key, _KEYS)):
        near = f"{elsewhere} That belongs above [{section[-1]}]"
    return near or "known here: " + ", ".join(sorted(readers))


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'a size such as "256MiB", not {shown(value)}')
    return quantity.size(value)


def _rate(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'a rate such as "256MiB/s", not {shown(value)}')
    return quantity.rate(value)


def _burst(value: Any) -> int:
    burst = _size(value)
    if burst < 4096:
        raise ValueError("less than a page (4096 bytes) would never move one")
    return burst


def _seconds(low: float) -> Reader:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f'a time such as "30s", not {shown(value)}')
        seconds = quantity.duration(value)
        if not low <= seconds <= 86400:
            raise ValueError(f"from {low:g} seconds to a day, not {shown(value)}")
        return seconds

    return read


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a number from 0 to 1, not {shown(value)}")
    return float(value)


def _share(value: Any) -> float:
    if (share := _fraction(value)) < 0.001:
        raise ValueError(f"from 0.001 to 1, not {shown(value)}")
    return share


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ValueError(f"a whole number from 0 to 1000000, not {shown(value)}")
    return value


def _stops(value: Any) -> int:
    if not (count := _count(value)):
        raise ValueError("0 would never let any policy be applied; the kill switch is `observe = true`")
    return count


def _executables(value: Any) -> tuple[Pattern, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f'a list of paths, such as ["/usr/lib/jvm/**"], not {shown(value)}')
    found = []
    for each in value:
        if not each.startswith("/"):
            raise ValueError(f"a full path, which begins with /, not {shown(each)}")
        try:
            found.append(pattern.parse(each))
        except ValueError as error:
            raise ValueError(error.args[0]) from None
    return tuple(found)


def _users(value: Any) -> tuple[str | int, ...]:
    if not isinstance(value, list):
        raise ValueError(f'a list of names and uids, such as ["oracle", 1001], not {shown(value)}')
    for each in value:
        is_uid = isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 32
        if not is_uid and not (isinstance(each, str) and each):
            raise ValueError(f"a user's name or uid, not {shown(each)}")
    return tuple(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"true or false, not {shown(value)}")
    return value


def _word(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            near = did_you_mean(value, words) if isinstance(value, str) else ""
            wanted = ", ".join(f'"{word}"' for word in words)
            raise ValueError(f"one of {wanted}, not {shown(value)}" + (f" ({near})" if near else ""))
        return value

    return read


def split_address(value: str) -> tuple[str, int]:
    """(host, port) of `127.0.0.1:9797`, `[::1]:9797` or `:9797` (every address). `ValueError` says what is wrong."""
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f'an IPv6 address stands in brackets, as "[::1]:9797", not {shown(value)}')
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f'HOST:PORT, such as "127.0.0.1:9797", not {shown(value)}')
    return host, int(port)


def _listen(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'HOST:PORT in quotes, such as "127.0.0.1:9797", not {shown(value)}')
    if value:
        split_address(value)
    return value


def _credential(value: Any) -> str:
    if not isinstance(value, str) or not value or (not value.startswith("/") and "/" in value):
        raise ValueError(f"a full path, or the name of a systemd credential (no slash), not {shown(value)}")
    return value


def _weights(value: Any) -> Weights:
    if isinstance(value, str):
        return str(_word("leave", "bandwidth")(value))
    if not isinstance(value, dict) or not value:
        raise ValueError(f'"leave", "bandwidth", or weights such as {{ 0 = 3, 1 = 1 }}, not {shown(value)}')
    found: list[tuple[NodeSet, int]] = []
    for key, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= 255:
            raise ValueError(f"the weight of {shown(key)} is a whole number from 1 to 255, not {shown(weight)}")
        try:
            found.append((nodes.parse(key), weight))
        except ValueError as error:
            raise ValueError("; ".join(filter(None, error.args))) from None
    return tuple(found)


_KEYS: Mapping[str, Reader | None] = {
    "listen": _listen,
    "tls_certificate": _credential,
    "tls_key": _credential,
    "rate": _rate,
    "burst": _burst,
    "moving_share": _share,
    "measuring_share": _share,
    "observe": _flag,
    "on_stop": _word("keep", "restore"),
    "scan_interval": _seconds(1),
    "measure_interval": _seconds(0.1),
    "log_level": _word("debug", "info", "warning", "error"),
    "cgroup_label_limit": _count,
    "brakes": None,
    "defaults": None,
    "kernel": None,
}
_HANDLING: Mapping[str, Reader | None] = {
    "existing": _word("rebalance", "once", "leave"),
    "rate": _rate,
    "rate_total": _rate,
    "burst": _burst,
    "tolerance": _fraction,
    "min_region": _size,
    "min_age": _seconds(0),
    "shared": _word("skip", "move"),
    "foreign": _word("respect", "override"),
}

_KERNEL: Mapping[str, Reader | None] = {"weights": _weights}
_BRAKES: Mapping[str, Reader | None] = {
    "crash_window": _seconds(0),
    "first_tasks": _count,
    "first_seconds": _seconds(0.1),
    "stops_per_second": _stops,
    "stops_per_second_each": _stops,
    "deny_executables": _executables,
    "deny_users": _users,
}

assert {entry.name for entry in fields(Handling)} == set(_HANDLING), "every handling key has a reader"
assert {entry.name for entry in fields(BrakeSettings)} == set(_BRAKES), "every brake has a reader"
assert {entry.name for entry in fields(Settings)} == set(_KEYS), "every setting has a reader"

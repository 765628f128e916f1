"""Sizes, rates and durations as people write them: `256MiB/s`, `64KiB`, `30s`."""

from __future__ import annotations

import re

from hetmemd.policy.faults import shown

_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1 << 10 * (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("kMGT")},
}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_MOST_DIGITS = 40
"""No quantity needs more, and with more int() and float() know limits of their own."""
LARGEST = (1 << 63) - 1
_PAGE = 4096


def _scaled(text: str, units: dict[str, int] | dict[str, float], example: str) -> float | int:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"write it like {example}")
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(f"there is no unit {shown(unit)}: write it like {example}")
    if len(number) > _MOST_DIGITS:
        raise ValueError("out of range")
    scale = units[unit]
    return int(number) * scale if "." not in number else float(number) * scale


def size(value: str | int) -> int:
    """Bytes. `ValueError` says how to write it."""
    found = value if isinstance(value, int) else int(_scaled(value, _BYTES, '"64KiB"'))
    if not 0 <= found <= LARGEST:
        raise ValueError("out of range")
    return found


def burst(value: str | int) -> int:
    """Bytes, at least a page: with less, no page could ever be paid for."""
    found = size(value)
    if found < _PAGE:
        raise ValueError("less than a page of 4096 bytes, so that no page would ever move")
    return found


def burst_of(rate: int) -> int:
    """The burst where none is said: one second of the rate, and a page where that takes longer than a second."""
    return max(rate, _PAGE)


def rate(value: str | int) -> int:
    """Bytes per second, more than 0. `ValueError` says how to write it."""
    if isinstance(value, str):
        number, slash, second = value.partition("/")
        if not slash or second.strip() != "s":
            raise ValueError('write it like "256MiB/s"')
        found = int(_scaled(number, _BYTES, '"256MiB/s"'))
    else:
        found = value
    if found == 0:
        raise ValueError('to move nothing write existing = "leave"')
    if not 0 < found <= LARGEST:
        raise ValueError("out of range")
    return found


def duration(value: str | float) -> float:
    """Seconds. `ValueError` says how to write it."""
    found = value if isinstance(value, (int, float)) else _scaled(value, _SECONDS, '"30s"')
    if not 0 <= found <= 1e9:  # before float(), which has no room for every integer
        raise ValueError("out of range")
    return float(found)

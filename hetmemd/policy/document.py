"""A TOML file that people write, from its bytes to values and their lines, or to the fault for which it is none. Pure.

Policy files and `/etc/hetmemd.toml` alike. Whatever the bytes are, what comes of them is one of these two.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetmemd.policy.faults import Fault
from hetmemd.policy.locate import Place, locate

LARGEST = 1 << 20
"""Bytes: what is larger was not written by people, and reading it would cost time and memory for nothing."""

_MOST_PARTS = 32
# tomllib keeps every beginning of a dotted key: memory in the square of its parts. Where a key may begin is looked
# at only; the same in a text or a comment must follow a bracket, a comma or the line's beginning to be taken for one.
_LONG_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*)"""
    rf"""{{{_MOST_PARTS}}}""",
    re.MULTILINE,
)
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
# More digits than int() takes (sys.get_int_max_str_digits()), of which tomllib tells no place.
_LONG_NUMBER = re.compile(r"[0-9](?:_?[0-9]){4000,}")


@dataclass(frozen=True, slots=True)
class Document:
    """What tomllib makes of the file, and where each part of it stands."""

    content: dict[str, Any]
    lines: Mapping[Place, int]


def read(data: bytes, path: str) -> Document | Fault:
    """The file's values. Never raises for the content's sake."""
    if len(data) > LARGEST:
        return Fault(path, 1, "the file is larger than 1 MiB, the limit for a file of this kind")
    if data.startswith(b"\xef\xbb\xbf"):
        hint = "save it as UTF-8 without one"
        return Fault(path, 1, "the file begins with a byte order mark, which is not TOML", hint)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Fault(path, line, f"byte {error.start} is not UTF-8", "TOML is always UTF-8")
    if long_key := _LONG_KEY.search(text):
        line = text.count("\n", 0, long_key.end()) + 1
        return Fault(path, line, f"a key of more than {_MOST_PARTS} dotted parts")
    try:
        return Document(tomllib.loads(text), locate(text))
    except RecursionError:
        return Fault(path, 1, "arrays or tables are nested too deeply")
    except tomllib.TOMLDecodeError as error:
        return _not_toml(path, str(error), text)
    except ValueError:
        # What tomllib leaves to int() and does not take for its own.
        number = _LONG_NUMBER.search(text)
        line = text.count("\n", 0, number.start()) + 1 if number else 1
        return Fault(path, line, "not TOML: a number of thousands of digits")


def _not_toml(path: str, said: str, text: str) -> Fault:
    """tomllib tells the place only in its text."""
    found = _PLACE.search(said)
    line = int(found[1]) if found and found[1] else text.removesuffix("\n").count("\n") + 1 if found else 1
    message = _PLACE.sub("", said)[:200]  # it may name a key
    return Fault(path, line, f"not TOML: {message[:1].lower()}{message[1:]}")

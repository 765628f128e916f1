"""What is wrong with a policy file, in the form that editors and people follow: `file:line: message (hint)`."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


def printable(text: str) -> str:
    """`text` fit for a terminal and for a line of a log: undecodable bytes and control characters are escaped."""
    escaped = "".join(character if character.isprintable() else _escape(character) for character in text)
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as os.fsdecode keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 2000:  # Python may refuse to write that many digits
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_short = _Short()


def shown(value: object) -> str:
    """A value out of a file, as Python writes it, cut where it is too long for a message. Never raises."""
    return _short.repr(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a file is not taken. `line` counts from 1; a fault of the file as a whole stands in line 1."""

    severity: ClassVar[str] = "error"

    file: str
    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return printable(f"{self.file}:{self.line}: {self.message}{hint}")


@dataclass(frozen=True, slots=True)
class Caution:
    """What `check` warns of: the file is taken, but may not do what was meant."""

    severity: ClassVar[str] = "warning"

    file: str
    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return printable(f"{self.file}:{self.line}: warning: {self.message}{hint}")

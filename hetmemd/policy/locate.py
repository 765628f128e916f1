"""Where in a TOML document each table and key stands: tomllib gives values without positions.

The document must be one that tomllib takes; then this finds a line for everything in tomllib's result (TOML 1.0).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

Place = tuple[str | int, ...]
"""A way into tomllib's result, keys and array indices: `("policy", 0, "weights", "dram")`."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL_STRING = re.compile(r"'[^']*'")
# Up to five quotes may end a multi-line string: two that belong to it, three that close it.
_MULTILINE_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:""?(?!"))?', re.DOTALL)
_MULTILINE_LITERAL = re.compile(r"'''.*?'''(?:''?(?!'))?", re.DOTALL)
_PLAIN = re.compile(r"[^,\]}\n#]*")


def locate(text: str) -> Mapping[Place, int]:
    """The line, from 1, of every table, key and array element. An array of tables stands where its first table does."""
    return _Locator(text.replace("\r\n", "\n")).run()


def line_of(lines: Mapping[Place, int], place: Place) -> int:
    """The line of `place`, or of the nearest thing around it; 1 where there is none."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return 1


class _Locator:
    """One walk through a document."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[Place, int] = {}
        self._arrays: dict[Place, int] = {}
        """The index of the last table of each array of tables."""

    def run(self) -> Mapping[Place, int]:
        here: Place = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[[", self._at):
                here = self._array_header()
            elif self._text[self._at] == "[":
                here = self._table_header()
            else:
                self._pair(here)
            self._skip(_BLANK)
        return self._lines

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"not TOML at character {self._at}")
        self._at = match.end()

    def _mark(self, place: Place) -> None:
        """`place` stands here, unless it was opened before."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        for length in range(1, len(place) + 1):
            self._lines.setdefault(place[:length], self._line)

    def _key(self) -> tuple[str, ...]:
        """A bare, quoted or dotted key, and the space around it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            start = self._at
            if self._text[start] == '"':
                self._skip(_BASIC_STRING)
                # Escapes are tomllib's business.
                parts.append(tomllib.loads("key = " + self._text[start : self._at])["key"])
            elif self._text[start] == "'":
                self._skip(_LITERAL_STRING)
                parts.append(self._text[start + 1 : self._at - 1])
            else:
                self._skip(_BARE_KEY)
                parts.append(self._text[start : self._at])
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return tuple(parts)
            self._at += 1

    def _inside(self, parts: tuple[str, ...]) -> Place:
        """The place of a header's key: below an array of tables it means the last one."""
        place: Place = ()
        for part in parts:
            place = (*place, part)
            if place in self._arrays:
                place = (*place, self._arrays[place])
        return place

    def _array_header(self) -> Place:
        self._at += 2
        start = self._at
        parts = self._key()
        end, self._at = self._at + 2, start
        place: Place = (*self._inside(parts[:-1]), parts[-1])
        self._arrays[place] = self._arrays.get(place, -1) + 1
        here = (*place, self._arrays[place])
        self._mark(here)
        self._at = end
        return here

    def _table_header(self) -> Place:
        self._at += 1
        start = self._at
        parts = self._key()
        end, self._at = self._at + 1, start
        here = self._inside(parts)
        self._mark(here)
        self._at = end
        return here

    def _pair(self, here: Place) -> None:
        """`key = value`, in a table or an inline table."""
        start = self._at
        place = here + self._key()
        end, self._at = self._at, start
        self._mark(place)
        self._at = end + 1
        self._skip(_SPACE)
        self._value(place)

    def _value(self, place: Place) -> None:
        start = self._text[self._at : self._at + 3]
        if start == '"""':
            self._skip(_MULTILINE_BASIC)
        elif start == "'''":
            self._skip(_MULTILINE_LITERAL)
        elif start[:1] == '"':
            self._skip(_BASIC_STRING)
        elif start[:1] == "'":
            self._skip(_LITERAL_STRING)
        elif start[:1] == "[":
            self._array(place)
        elif start[:1] == "{":
            self._inline_table(place)
        else:
            self._skip(_PLAIN)

    def _array(self, place: Place) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._text[self._at] == "]":
                break
            self._mark((*place, index))
            self._value((*place, index))
            index += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _inline_table(self, place: Place) -> None:
        self._at += 1
        while True:
            # Newlines are not allowed in inline tables before TOML 1.1, and harmless here.
            self._skip(_BLANK)
            if self._text[self._at] == "}":
                break
            self._pair(place)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
        self._at += 1

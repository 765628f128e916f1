"""Patterns for cgroup paths: which cgroups a policy is for, and how specific it is (M1 to M3).

`*`, `?` and `[...]` stay within a level, `**` stands for one or more whole levels, a backslash is literal, since
systemd writes `\\x2d` into the names of cgroups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hetmemd.policy.faults import shown

LONGEST = 4096
"""PATH_MAX (include/uapi/linux/limits.h)."""
START = 1
"""The state of `Pattern.step` at the root."""
_GLOB = re.compile(r"[*?\[]")
_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")  # hybrid and unified, as systemd mounts them


@dataclass(frozen=True, slots=True)
class Pattern:
    """One checked pattern. Made by `parse`.

    A path is matched level by level, so that what was found out for a cgroup serves all that are below it, and no name
    that a user makes up takes long.
    """

    text: str
    prefix: str
    """What comes before the first `*`, `?` or `[`: all of it where there is none."""
    is_exact: bool
    is_topmost: bool
    """Has `**`: makes an own policy only for the topmost cgroup that it matches on a path (M3)."""
    _levels: tuple[re.Pattern[str] | None, ...] = field(repr=False, compare=False)
    """None for `**`."""
    _deep: int = field(repr=False, compare=False)
    """A bit for each level that is `**`."""

    def matches(self, path: str) -> bool:
        """Whether the pattern stands for this cgroup, `/a/b`; `**` matches at every depth here."""
        if self.is_exact:
            return path == self.text
        if not path.startswith(self.prefix) or not (self.is_topmost or path.count("/") == len(self._levels)):
            return False
        state = START
        for name in names(path):
            state = self.step(state, name)
        return self.accepts(state)

    def step(self, state: int, name: str) -> int:
        """The state of a cgroup, from that of the one that it is in. 0: nothing matches there or below.

        Bit N: the first N levels of the pattern stand for the whole path so far, in one way at least.
        """
        if not name:
            return 0
        found = (state & self._deep) << 1 | state & self._deep << 1
        left = state & (1 << len(self._levels)) - 1 & ~self._deep
        while left:
            bit = left & -left
            level = self._levels[bit.bit_length() - 1]
            if level is not None and level.fullmatch(name):
                found |= bit << 1
            left ^= bit
        return found

    def accepts(self, state: int) -> bool:
        return state >> len(self._levels) & 1 == 1

    @property
    def specificity(self) -> tuple[bool, int, int]:
        """Greater is more specific: exact before glob, the longer literal prefix, the longer pattern (M1)."""
        return (self.is_exact, len(self.prefix), len(self.text))


def parse(text: str) -> Pattern:
    """`ValueError(message, hint)` where it is no pattern."""
    if not text.startswith("/"):
        raise ValueError("a cgroup is named by its path below the cgroup root, which begins with /", _rooted(text))
    if mount := _mount(text):
        hint = f"write {shown(text.removeprefix(mount).rstrip('/') or '/')}"
        raise ValueError(f"a cgroup is named by its path below {mount}, not by its folder", hint)
    if "\0" in text or "\n" in text:
        raise ValueError("no cgroup's name holds a newline or a NUL", "")
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters, the limit for a path", "")
    levels = text[1:].split("/") if text != "/" else []
    if levels and levels[-1] == "":
        raise ValueError("the path ends with /", f"write {shown(text.rstrip('/') or '/')}")
    for level in levels:
        if level in ("", ".", ".."):
            raise ValueError(f"a level of the path is {shown(level)}", "write every level once, by its name")
    glob = _GLOB.search(text)
    prefix = text[: glob.start()] if glob else text
    made = tuple(None if level == "**" else re.compile(_level(level), re.DOTALL) for level in levels)
    deep = sum(1 << place for place, level in enumerate(levels) if level == "**")
    return Pattern(text, prefix, glob is None, deep != 0, made, deep)


def names(path: str) -> list[str]:
    """The levels of a path; the root has none."""
    return [] if path == "/" else path[1:].split("/")


def _rooted(text: str) -> str:
    rooted = "/" + text
    path = rooted.removeprefix(_mount(rooted)).rstrip("/")
    return f"write {shown(path)}" if path else 'for everything write "/"'


def _mount(path: str) -> str:
    """The usual mount of cgroup2 that a path begins with, empty where it begins with none.

    A cgroup could be named so, but nobody means one: taken at its word, such a pattern would match nothing for ever.
    """
    return next((mount for mount in _MOUNTS if path == mount or path.startswith(mount + "/")), "")


def _level(level: str) -> str:
    """The regular expression for one level.

    Between two `*` stand characters of a fixed number: what comes after is best served by the first place where they
    fit. So no other is tried (the groups are atomic), and the time is the product of the lengths at most.
    """
    if level == "*":
        return ".+"
    if "**" in level:
        raise ValueError(f"** stands for whole levels, not for a part of {shown(level)}", "write * or /**/")
    pieces = [""]
    at = 0
    while at < len(level):
        character = level[at]
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "."
        elif character == "[":
            part, at = _bracket(level, at)
            pieces[-1] += part
            continue
        else:
            pieces[-1] += re.escape(character)
        at += 1
    head, *rest = pieces
    if not rest:
        return head
    return head + "".join(f"(?>.*?{piece})" for piece in rest[:-1]) + ".*" + rest[-1]


def _bracket(level: str, start: int) -> tuple[str, int]:
    """A bracket expression (glob(7)) as a regular expression, and where it ends. `!` and `^` negate."""
    at = start + 1
    negated = level[at : at + 1] in ("!", "^")
    at += negated
    # The first character may be a closing bracket that is meant literally.
    end = level.find("]", at + 1)
    if end < 0:
        raise ValueError(f"the [ in {shown(level)} is never closed within its level", "for a literal [ write [[]")
    items: list[str] = []
    while at < end:
        if at + 2 < end and level[at + 1] == "-":
            low, high = level[at], level[at + 2]
            if low > high:
                raise ValueError(f"the range {low}-{high} runs backwards", f"write {high}-{low}")
            items.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            items.append(re.escape(level[at]))
            at += 1
    return f"[{'^' if negated else ''}{''.join(items)}]", end + 1

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
_GLOB = re.compile(r"[*?\[]")
_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")  # hybrid and unified, as systemd mounts them


@dataclass(frozen=True, slots=True)
class Pattern:
    """One checked pattern. Made by `parse`."""

    text: str
    prefix: str
    """What comes before the first `*`, `?` or `[`: all of it where there is none."""
    is_exact: bool
    is_topmost: bool
    """Has `**`: makes an own policy only for the topmost cgroup that it matches on a path (M3)."""
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    def matches(self, path: str) -> bool:
        """Whether the pattern stands for this cgroup, `/a/b`; `**` matches at every depth here."""
        if self.is_exact:
            return path == self.text
        return path.startswith(self.prefix) and self._regex.fullmatch(path) is not None

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
    regex = _path(levels) or "/"
    glob = _GLOB.search(text)
    prefix = text[: glob.start()] if glob else text
    return Pattern(text, prefix, glob is None, "**" in levels, re.compile(regex, re.DOTALL))


def _rooted(text: str) -> str:
    rooted = "/" + text
    path = rooted.removeprefix(_mount(rooted)).rstrip("/")
    return f"write {shown(path)}" if path else 'for everything write "/"'


def _mount(path: str) -> str:
    """The usual mount of cgroup2 that a path begins with, empty where it begins with none.

    A cgroup could be named so, but nobody means one: taken at its word, such a pattern would match nothing for ever.
    """
    return next((mount for mount in _MOUNTS if path == mount or path.startswith(mount + "/")), "")


def _path(levels: list[str]) -> str:
    """The regular expression for whole paths. Users name cgroups, so it must not matter how: no name takes longer than
    the length of the path times that of the pattern.

    That is what the atomic groups are for. Between two `**` stand levels of a fixed number, between two `*` of a level
    characters of a fixed number: what comes after is best served by the first place where they fit, so that no other
    needs to be tried, and none is.
    """
    runs = [""]
    for level in levels:
        if level == "**":
            runs.append("")
        else:
            runs[-1] += "/" + _level(level)
    head, *deep = runs
    if not deep:
        return head
    between = "".join(f"(?>(?:/[^/]+)+?{run}(?=/))" for run in deep[:-1])
    return f"{head}{between}(?:/[^/]+)+{deep[-1]}"


def _level(level: str) -> str:
    """The regular expression for one level."""
    if level == "*":
        return "[^/]+"  # the root is no level with an empty name
    if "**" in level:
        raise ValueError(f"** stands for whole levels, not for a part of {shown(level)}", "write * or /**/")
    pieces = [""]
    at = 0
    while at < len(level):
        character = level[at]
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "[^/]"
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
    return head + "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1]) + "[^/]*" + rest[-1]


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
    body = "".join(items)
    # A negated class would match a slash; levels have none, but the expression runs over whole paths.
    return (f"[^/{body}]" if negated else f"(?!/)[{body}]"), end + 1

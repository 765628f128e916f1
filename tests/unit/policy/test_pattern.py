"""What a pattern stands for, and what is none."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.policy import pattern


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("/", ["/"], ["/a"]),
        ("/a", ["/a"], ["/", "/ab", "/a/b"]),
        ("/a*", ["/a", "/ab"], ["/a/b", "/b"]),
        ("/*", ["/a"], ["/", "/a/b"]),
        ("/a?", ["/ab"], ["/a", "/abc", "/a/"]),
        ("/[ab]", ["/a", "/b"], ["/c", "/ab"]),
        ("/[a-c]x", ["/bx"], ["/dx"]),
        ("/[!a]", ["/b", "/]"], ["/a", "//"]),
        ("/[^a]", ["/b"], ["/a"]),
        ("/[]]", ["/]"], ["/["]),
        ("/a[[]b", ["/a[b"], ["/ab"]),
        ("/a[!b]c", ["/axc"], ["/a/c", "/abc"]),
        ("/a[.-z]c", ["/azc"], ["/a/c"]),
        ("/a/*/c", ["/a/b/c"], ["/a/c", "/a/b/b/c"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a", "/ab"]),
        ("/**/c", ["/a/c", "/a/b/c"], ["/c"]),
        ("/**", ["/a", "/a/b"], ["/"]),
        (r"/dev-disk-by\x2dlabel.swap", [r"/dev-disk-by\x2dlabel.swap"], ["/dev-disk-by-label.swap"]),
        (r"/a\x2d*", [r"/a\x2db"], ["/a-b", "/ax2db"]),
        (r"/[\x]", ["/\\", "/x"], ["/y"]),
        ("/a.b+(c)", ["/a.b+(c)"], ["/axb+(c)"]),
        ("/é*", ["/éa"], ["/e"]),
        ("/n?", ["/n\udcff"], ["/n"]),
    ],
)
def test_patterns(text: str, matching: list[str], other: list[str]) -> None:
    made = pattern.parse(text)
    assert [path for path in matching if not made.matches(path)] == []
    assert [path for path in other if made.matches(path)] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with /"),
        ("a/b", "begins with /"),
        ("/a/", "ends with /"),
        ("//", "ends with /"),
        ("/a//b", "a level"),
        ("/a/../b", "a level"),
        ("/a**", "whole levels"),
        ("/a[b", "never closed"),
        ("/a[b/c]", "never closed"),
        ("/[z-a]", "backwards"),
        ("/a\nb", "newline"),
        ("/sys/fs/cgroup/a", "not by its folder"),
        ("/sys/fs/cgroup", "not by its folder"),
        ("/" + "a" * pattern.LONGEST, "longer than 4096"),
    ],
)
def test_what_is_no_pattern(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        pattern.parse(text)
    assert says in caught.value.args[0]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a/b", "write '/a/b'"),
        ("sys/fs/cgroup/a", "write '/a'"),
        ("/sys/fs/cgroup/a/*", "write '/a/*'"),
        ("/sys/fs/cgroup/unified/a", "write '/a'"),
        ("/sys/fs/cgroup/", "write '/'"),
        ("/sys/fs/cgroups", ""),
    ],
)
def test_a_cgroup_named_by_its_folder_is_told_its_path(text: str, hint: str) -> None:
    if hint:
        with pytest.raises(ValueError) as caught:
            pattern.parse(text)
        assert caught.value.args[1] == hint
    else:
        assert pattern.parse(text).text == text


def slow(pattern_levels: list[str], levels: list[str]) -> bool:
    """Whether a pattern stands for a path, level by level and character by character: every way is tried."""
    if not pattern_levels or not levels:
        return not pattern_levels and not levels
    if pattern_levels[0] == "**":
        return any(slow(pattern_levels[1:], levels[taken:]) for taken in range(1, len(levels) + 1))
    return slow_level(pattern_levels[0], levels[0]) and slow(pattern_levels[1:], levels[1:])


def slow_level(glob: str, name: str) -> bool:
    if not glob:
        return not name
    if glob[0] == "*":
        return any(slow_level(glob[1:], name[taken:]) for taken in range(len(name) + 1))
    if not name:
        return False
    if glob[0] == "?":
        return slow_level(glob[1:], name[1:])
    if glob[0] == "[":
        negated = glob[1] in "!^"
        begin = 2 if negated else 1
        end = glob.index("]", begin + 1)
        return in_set(glob[begin:end], name[0]) != negated and slow_level(glob[end + 1 :], name[1:])
    return glob[0] == name[0] and slow_level(glob[1:], name[1:])


def in_set(items: str, character: str) -> bool:
    if not items:
        return False
    if len(items) > 2 and items[1] == "-":
        return items[0] <= character <= items[2] or in_set(items[3:], character)
    return items[0] == character or in_set(items[1:], character)


NAMES = st.text("ab.\\-]", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
GLOBS = st.lists(
    st.sampled_from(
        ["a", "b", "\\", ".", "*", "?", "[ab]", "[!a]", "[^b]", "[]a]", "[a-b]", "[\\-]", "[!.]", "]", "-"]
    ),
    min_size=1,
    max_size=4,
).map("".join)


@given(
    st.lists(st.just("**") | GLOBS.filter(lambda level: "**" not in level and level not in (".", "..")), max_size=4),
    st.lists(NAMES, max_size=5),
)
def test_M3_every_pattern_against_one_that_tries_all_ways(globs: list[str], levels: list[str]) -> None:
    text, path = "/" + "/".join(globs), "/" + "/".join(levels)
    assert pattern.parse(text).matches(path) == slow(globs, levels)


@given(st.lists(NAMES, min_size=1, max_size=5), st.data())
def test_M3_patterns_that_were_made_of_the_path_match(levels: list[str], data: st.DataObject) -> None:
    """So that both answers are seen: most pairs above do not match."""
    globs: list[str] = []
    left = levels
    while left:
        made = data.draw(st.sampled_from(["**", "*", left[0], "?" * len(left[0]), left[0][:1] + "*", "[!/]*"]))
        globs.append(made.replace("[!/]", "[!z]"))
        left = left[data.draw(st.integers(1, len(left))) if made == "**" else 1 :]
    text, path = "/" + "/".join(globs), "/" + "/".join(levels)
    assert slow(globs, levels), "the reference itself"
    assert pattern.parse(text).matches(path)


LIMIT = 30
"""Seconds that turn what never ends into a failure; each of these takes milliseconds."""


@contextmanager
def limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError("it tries all ways")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("text", "path", "matches"),
    [
        ("/**" * 8 + "/x", "/a" * 60, False),
        ("/**" * 8 + "/x", "/a" * 60 + "/x", True),
        ("/**/a" * 20 + "/x", "/a" * 1000, False),
        ("/**/a" * 20 + "/x", "/a" * 1000 + "/x", True),
        ("/**" * 900 + "/x", "/a" * 2000, False),
        ("/**" + "/a" * 1000 + "/b/**", "/a" * 2000 + "/c", False),
        ("/" + "*a" * 60 + "*b", "/" + "a" * 255, False),
        ("/" + "*a" * 60 + "*b", "/" + "a" * 254 + "b", True),
        ("/**/" + "*a" * 60 + "*b/**/x", ("/" + "a" * 250) * 16, False),
        ("/**/*" + "a?" * 120 + "b*/**", ("/" + "a" * 250) * 16, False),
    ],
)
def test_no_name_of_a_cgroup_takes_long(text: str, path: str, matches: bool) -> None:
    with limited():
        assert pattern.parse(text).matches(path) == matches

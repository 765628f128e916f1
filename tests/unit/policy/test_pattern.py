"""What a pattern stands for, and what is none."""

from __future__ import annotations

import pytest

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

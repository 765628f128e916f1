"""Rules M1 to M3, and what a pattern stands for."""

from __future__ import annotations

import pytest

from hetmemd.policy import pattern
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import DRAM_CXL, mode_of, nodes_of, policy, resolved, tables


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


def test_M1_the_strongest_directory_wins_over_the_most_specific_pattern() -> None:
    given = tables(policy("/a/b", nodes="0"), "99.toml", "/usr/lib/hetmemd.d") + tables(policy("/a/*", nodes="1"))
    effective = resolved("/a/b", given)
    assert nodes_of(effective) == {1}
    assert [loser.why for loser in effective.losers] == [
        "/etc/hetmemd.d/50-test.toml:1 is in a stronger directory (M1)"
    ]


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        ("/a/bc", "/a/bc*"),  # exact before glob
        ("/a/bc", "/a/[b]c"),
        ("/a/b*", "/a/*bccc*"[:6]),  # the longer literal prefix
        ("/a/b*c", "/a/b*"),  # the longer pattern
        ("/a/*", "/**"),
        ("/a/b?", "/a/*"),
    ],
)
def test_M1_the_most_specific_pattern_wins_whatever_the_order(stronger: str, weaker: str) -> None:
    for order in ((stronger, weaker), (weaker, stronger)):
        text = "".join(policy(each, nodes="0" if each == stronger else "1") for each in order)
        effective = resolved("/a/bc", text)
        assert nodes_of(effective) == {0}
        assert len(effective.losers) <= 1
        assert "M1" in effective.rules


def test_M1_a_tie_goes_to_the_later_file_then_the_later_table() -> None:
    early = tables(policy("/a", nodes="0"), "10.toml")
    late = tables(policy("/a", nodes="0") + policy("/a", nodes="1"), "20.toml")
    effective = resolved("/a", late + early)
    assert nodes_of(effective) == {1}
    assert effective.own is not None and (effective.own.file, effective.own.line) == ("/etc/hetmemd.d/20.toml", 5)
    assert {loser.why for loser in effective.losers} == {
        "/etc/hetmemd.d/20.toml:5 is a later table of the file (M1)",
        "/etc/hetmemd.d/20.toml:5 is in a later file (M1)",
    }


def test_M2_a_pattern_waits_for_cgroups_that_do_not_exist_yet() -> None:
    effective = resolved("/a/new", policy("/a/*", nodes="1"), facts={"/a/new": CgroupFacts(exists=False)})
    assert nodes_of(effective) == {1}
    assert effective.rules[:2] == ("M1", "M2")


def test_M3_double_star_owns_only_the_topmost_match() -> None:
    given = policy("/s/**", "interleave", "0-1") + policy("/s/a", "bind", "1")
    cgroups = ["/", "/s", "/s/a", "/s/a/b", "/s/c", "/s/c/d"]
    found = resolve(dict.fromkeys(cgroups, CgroupFacts()), tables(given), DRAM_CXL)
    assert found["/s"].state == "default"
    assert mode_of(found["/s/a"]) == mode_of(found["/s/a/b"]) == "bind"
    assert found["/s/a/b"].own is None
    assert [loser.why for loser in found["/s/a/b"].losers] == [
        "** makes an own policy only for the topmost cgroup that it matches (M3)"
    ]
    assert found["/s/c"].own is not None and "M3" in found["/s/c"].rules
    assert found["/s/c/d"].own is None and found["/s/c/d"].inherited_from is not None
    assert found["/s/c/d"].inherited_from.cgroup == "/s/c"


def test_M3_in_the_middle_of_a_pattern() -> None:
    given = policy("/**/x", nodes="1")
    cgroups = ["/", "/a", "/a/x", "/a/x/b", "/a/x/b/x"]
    found = resolve(dict.fromkeys(cgroups, CgroupFacts()), tables(given), DRAM_CXL)
    assert [path for path, effective in found.items() if effective.own] == ["/a/x"]


def test_a_table_that_is_switched_off_is_shown_and_does_nothing() -> None:
    given = policy("/a", nodes="0", enabled=False) + policy("/a*", nodes="1")
    effective = resolved("/a", given)
    assert nodes_of(effective) == {1}
    assert [loser.why for loser in effective.losers] == ["switched off: enabled = false"]

"""Rules M1 to M3: which table is a cgroup's own policy."""

from __future__ import annotations

import pytest

from hetmemd.policy.pattern import Pattern
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import DRAM_CXL, mode_of, nodes_of, policy, resolved, tables


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


def test_M3_the_work_for_a_path_grows_with_its_levels_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users make cgroups as deep as they like."""
    steps = 0
    step = Pattern.step

    def counted(self: Pattern, state: int, name: str) -> int:
        nonlocal steps
        steps += 1
        return step(self, state, name)

    monkeypatch.setattr(Pattern, "step", counted)
    given = tables(policy("/**/x") + policy("/a/**", nodes="0") + policy("/b/**"))
    needed = []
    for levels in (100, 200):
        steps = 0
        path = "/a" * levels
        assert nodes_of(resolve({}, given, DRAM_CXL, only=[path])[path]) == {0}
        needed.append(steps)
    assert needed[1] - needed[0] == 2 * 100, "/b/** is not asked any more"

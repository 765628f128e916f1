"""Rules I1 to I4, I7 and I8: what is handed down."""

from __future__ import annotations

from hetmemd.memory.budget import Budgets
from hetmemd.policy.effective import Bucket, Handling, Source
from tests.unit.policy.given import ETC, mode_of, nodes_of, policy, resolved, tables

FILE = f"{ETC}/50-test.toml"
MIB = 1 << 20


def test_I1_without_an_own_policy_the_parents_holds() -> None:
    effective = resolved("/a/b/c", policy("/a", "weighted-interleave", "0-1", weights={"0": 3, "1": 1}))
    assert mode_of(effective) == "weighted-interleave"
    assert effective.placement is not None and effective.placement.weights == {0: 3, 1: 1}
    assert effective.own is None
    assert effective.inherited_from == Source("/a", FILE, 1)
    assert effective.rules == ("I1",)
    assert effective.state == "active"


def test_I1_the_roots_own_default_is_the_kernels() -> None:
    effective = resolved("/a", policy("/b"))
    assert (effective.state, effective.placement) == ("default", None)
    assert effective.own is None and effective.inherited_from is None
    assert effective.rules == ("I1",)


def test_I1_a_policy_for_the_root_is_for_everything() -> None:
    assert nodes_of(resolved("/a/b", policy("/", nodes="1"))) == {1}


def test_I2_inherit_self_keeps_placement_and_handling_from_the_children() -> None:
    given = policy("/a", nodes="0", tolerance=0.1) + policy("/a/b", nodes="1", inherit="self", tolerance=0.5)
    own, child = resolved("/a/b", given), resolved("/a/b/c", given)
    assert nodes_of(own) == {1} and own.handling.tolerance == 0.5
    assert nodes_of(child) == {0} and child.handling.tolerance == 0.1
    assert child.inherited_from == Source("/a", FILE, 1)
    assert "I2" in child.rules and "I2" not in own.rules


def test_I2_walls_and_buckets_go_past() -> None:
    text = policy("/a", nodes="0-1") + policy("/a/b", nodes="1", inherit="self", confine=True, rate="1MiB/s")
    child = resolved("/a/b/c", text)
    assert nodes_of(child) == {1}
    assert child.wall == frozenset({1})
    assert [bucket.key for bucket in child.buckets] == ["cgroup:/a/b", "cgroup:/a"]


def test_I2_over_nothing_gives_the_kernels_default() -> None:
    child = resolved("/a/b", policy("/a", inherit="self"))
    assert child.state == "default" and child.rules == ("I1", "I2")


def test_I3_placement_is_one_atom() -> None:
    given = policy("/a", "weighted-interleave", "0-1", weights={"0": 3, "1": 1}) + policy("/a/b", "bind", "1")
    effective = resolved("/a/b", given)
    assert effective.placement is not None
    assert (mode_of(effective), nodes_of(effective), effective.placement.weights) == ("bind", {1}, {})
    assert effective.rules[:2] == ("M1", "I3")
    assert effective.inherited_from is None


def test_I4_handling_is_inherited_key_by_key() -> None:
    given = policy("/a", nodes="0", existing="once", tolerance=0.1) + policy("/a/b", "", existing="leave")
    effective = resolved("/a/b", given, defaults=Handling(tolerance=0.3, min_age=7.0))
    assert effective.handling.existing == "leave"
    assert effective.handling.tolerance == 0.1
    assert effective.handling.min_age == 7.0
    assert "I4" in effective.rules


def test_I4_a_table_without_mode_keeps_the_inherited_placement() -> None:
    effective = resolved("/a/b", policy("/a", nodes="1") + policy("/a/b", "", existing="leave"))
    assert nodes_of(effective) == {1}
    assert effective.own == Source("/a/b", FILE, 5)
    assert effective.inherited_from == Source("/a", FILE, 1)
    assert effective.rules == ("M1", "I1")


def test_I4_rates_are_not_inherited_as_keys() -> None:
    given = policy("/a", nodes="0", rate="1GiB/s", burst="64KiB") + policy("/a/b", nodes="1")
    effective = resolved("/a/b", given)
    assert (effective.handling.rate, effective.handling.burst) == (256 * MIB, None)


def test_I7_a_move_is_paid_for_in_every_bucket_above() -> None:
    given = tables(
        policy("/a", nodes="0", rate="100MiB/s", rate_total="300MiB/s", burst="1MiB")
        + policy("/a/b", nodes="1", rate="1GiB/s")
    )
    effective = resolved("/a/b/c", given)
    assert effective.buckets == (
        Bucket("cgroup:/a/b", 1024 * MIB, 1024 * MIB),
        Bucket("cgroup:/a", 100 * MIB, MIB),
        Bucket(f"table:{FILE}#0", 300 * MIB, MIB),
    )
    assert "I7" in effective.rules


def test_I7_each_owner_has_a_bucket_and_the_table_one_for_all() -> None:
    given = policy("/*", nodes="0", rate_total="1MiB/s")
    one, other = resolved("/a", given), resolved("/b", given)
    assert one.buckets[0].key != other.buckets[0].key
    assert one.buckets[1] == other.buckets[1]


def test_I7_handling_alone_without_a_rate_is_no_limit() -> None:
    given = policy("/a", nodes="0", rate="1GiB/s") + policy("/a/b", "", tolerance=0.1)
    assert [bucket.key for bucket in resolved("/a/b", given).buckets] == ["cgroup:/a"]
    limited = resolved("/a/b", policy("/a", nodes="0") + policy("/a/b", "", rate="1MiB/s"))
    assert [bucket.rate for bucket in limited.buckets] == [MIB, 256 * MIB]


def test_I7_a_rate_that_is_left_out_is_the_settings_default() -> None:
    effective = resolved("/a", policy("/a"), defaults=Handling(rate=MIB))
    assert effective.buckets == (Bucket("cgroup:/a", MIB, MIB),)


def test_I7_a_rate_of_less_than_a_page_a_second_still_pays_for_pages() -> None:
    """Such a burst is a fault where it is said, since no page would ever move."""
    effective = resolved("/a", policy("/a", rate=100, rate_total=200))
    assert effective.buckets == (Bucket("cgroup:/a", 100, 4096), Bucket(f"table:{FILE}#0", 200, 4096))
    budgets = Budgets(lambda: 0.0)
    for bucket in effective.buckets:
        budgets.configure(bucket.key, bucket.rate, bucket.burst)
    assert budgets.allowance([bucket.key for bucket in effective.buckets], 1 << 20) == 4096


def test_I8_an_own_default_shields_a_subtree() -> None:
    effective = resolved("/a/b/c", policy("/a", nodes="1") + policy("/a/b", "default"))
    assert effective.state == "active"
    assert mode_of(effective) == "default" and nodes_of(effective) == set()
    assert effective.inherited_from == Source("/a/b", FILE, 5)
    assert "I8" in resolved("/a/b", policy("/a", nodes="1") + policy("/a/b", "default")).rules


def test_I8_walls_excepted() -> None:
    effective = resolved("/a/b", policy("/a", nodes="1", confine=True) + policy("/a/b", "default"))
    assert effective.state == "conflict"
    assert (mode_of(effective), nodes_of(effective)) == ("bind", {1})

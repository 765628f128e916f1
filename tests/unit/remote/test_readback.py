"""What the kernel shows of a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root
from hetmemd.remote import readback

nodes = st.frozensets(st.integers(0, 20), min_size=1)
STATIC, RELATIVE, BALANCING = Flag.STATIC_NODES, Flag.RELATIVE_NODES, Flag.NUMA_BALANCING


def policy(text: str) -> Mempolicy:
    return mempolicy.parse(text)


@pytest.mark.parametrize(
    ("asked", "allowed", "shown"),
    [
        ("bind=static:0-3", {0, 1}, "bind=static:0-1"),
        ("bind=static:2-3", {0, 1}, None),
        ("interleave:0-1", {0, 1, 2}, "interleave:0-1"),
        ("prefer=static:1", {0, 1}, "prefer=static:1"),
        ("prefer=static:0-1", {1}, "prefer=static:1"),
        ("bind=relative:0-1", {4, 6, 9}, "bind=relative:4,6"),
        ("bind=relative:2-4", {4, 6}, "bind=relative:4,6"),  # 2, 3, 4 fold onto 0, 1, 0
        ("local", {0}, "local"),
        ("default", {0}, "default"),
    ],
)
def test_what_a_policy_comes_to(asked: str, allowed: set[int], shown: str | None) -> None:
    expected = policy(shown) if shown else None
    assert readback.as_shown(policy(asked), frozenset(allowed)) == expected


@given(nodes, nodes, st.sampled_from([STATIC, RELATIVE, Flag(0)]))
def test_it_never_shows_what_is_not_allowed(asked: frozenset[int], allowed: frozenset[int], flag: Flag) -> None:
    shown = readback.as_shown(Mempolicy(Mode.BIND, asked, flag), allowed)
    if shown:
        assert shown.nodes <= allowed
        assert readback.is_shown(Mempolicy(Mode.BIND, asked, flag), shown, allowed)
    else:
        assert flag is not RELATIVE
        assert not asked & allowed


def test_balancing_may_be_hidden_but_not_made_up() -> None:
    asked, plain = policy("bind=static|balancing:0"), policy("bind=static:0")
    everywhere = frozenset({0, 1})
    assert readback.is_shown(asked, plain, everywhere)
    assert readback.is_shown(asked, asked, everywhere)
    assert not readback.is_shown(plain, asked, everywhere)
    assert not readback.is_shown(policy("bind=static:1"), plain, everywhere)
    assert not readback.is_shown(DEFAULT, plain, everywhere)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("55a4 default file=/usr/bin/x mapped=1\n55a5 bind:1 anon=1\n", ["default"]),
        ("55a4 weighted interleave=static:0-1 file=/usr/bin/x mapped=1\n", ["weighted interleave=static:0-1"]),
        ("55a4 prefer (many):0-1 file=/x mapped=1\n", ["prefer (many):0-1"]),
        ("55a4 prefer=static:1 file=/x mapped=1\n", ["prefer=static:1"]),
        (
            "55a4 bind=static:" + ",".join(map(str, range(0, 200, 2))) + " file=/x\n",
            ["bind=static:" + ",".join(map(str, range(0, 200, 2)))],
        ),
        ("", []),
    ],
    ids=["default", "two-words", "many", "prefer", "longer-than-a-read", "empty"],
)
def test_reading_the_first_region(tmp_path: Path, content: str, expected: list[str]) -> None:
    folder = tmp_path / "task" / "7"
    folder.mkdir(parents=True)
    (folder / "numa_maps").write_text(content)
    import os

    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        found = readback.thread_policies(directory, 7)
    finally:
        os.close(directory)
    assert found[:1] == [policy(text) for text in expected]


def test_nodes_that_may_be_used_have_memory(tmp_path: Path) -> None:
    status = {"Mems_allowed_list": "0-7"}
    assert readback.allowed_nodes(Root(tmp_path), status) == frozenset(range(8))
    folder = tmp_path / "sys/devices/system/node"
    folder.mkdir(parents=True)
    (folder / "has_memory").write_text("0,2\n")
    assert readback.allowed_nodes(Root(tmp_path), status) == {0, 2}

"""Whose consent it takes to move a page, told from real page tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hetmemd.kernel.root import Root
from hetmemd.memory.sharers import Sharers

pytestmark = pytest.mark.root
ROOT = Root()
TARGET = Path(__file__).with_name("memory_family.py")


class Family(NamedTuple):
    pid: int
    children: list[int]
    areas: dict[str, tuple[int, int]]

    def agreed(self, name: str, others: list[int], pid: int | None = None) -> int:
        """Pages of the area that may be moved where these agree."""
        start, count = self.areas[name]
        addresses = np.arange(start, start + count * 4096, 4096, dtype=np.int64)
        found = Sharers(ROOT, others).agree(pid or self.pid, addresses, np.ones(count, dtype=np.int32))
        return int(found.sum())


@pytest.fixture(scope="module")
def family() -> Generator[Family, None, None]:
    popen = subprocess.Popen([sys.executable, str(TARGET)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert popen.stdout
    told = json.loads(popen.stdout.readline())
    children = told.pop("children")
    yield Family(popen.pid, children, {name: (start, count) for name, (start, count) in told.items()})
    popen.communicate()


@pytest.mark.parametrize(
    ("name", "alone", "first", "both"),
    [
        ("own", 64, 64, 64),
        ("forked", 0, 0, 64),
        ("half", 0, 64, 64),
        ("written", 0, 64, 64),
        ("object", 0, 0, 64),
        ("other", 0, 0, 64),
    ],
)
def test_pages_move_only_where_all_who_map_them_agree(
    family: Family, name: str, alone: int, first: int, both: int
) -> None:
    assert family.agreed(name, []) == alone
    assert family.agreed(name, family.children[:1]) == first
    assert family.agreed(name, family.children) == both


def test_a_child_is_asked_like_its_parent(family: Family) -> None:
    first, second = family.children
    assert family.agreed("forked", [second], first) == 0
    assert family.agreed("forked", [second, family.pid], first) == 64


def test_one_that_is_gone_maps_nothing(family: Family) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert family.agreed("forked", [*family.children, ended.pid]) == 64
    assert family.agreed("forked", [family.children[0], ended.pid]) == 0


def test_parts_of_a_folio_are_asked_about_as_far_as_the_next(family: Family) -> None:
    """Of the second as much as is asked about lies here, of the first there is more elsewhere."""
    start, count = family.areas["whole"]
    addresses = np.array([start, start + count // 2 * 4096], dtype=np.int64)
    sizes = np.array([count, count // 4], dtype=np.int32)
    assert Sharers(ROOT, family.children[:1]).agree(family.pid, addresses, sizes).tolist() == [False, True]
    assert not Sharers(ROOT, []).agree(family.pid, addresses, sizes).any()


@pytest.mark.parametrize(("name", "agrees"), [("whole", True), ("halves", False)])
def test_a_huge_page_of_which_another_maps_the_rest_stays(family: Family, name: str, agrees: bool) -> None:
    start, count = family.areas[name]
    folio = np.array([start], dtype=np.int64), np.array([count], dtype=np.int32)
    assert Sharers(ROOT, family.children[:1]).agree(family.pid, *folio).tolist() == [agrees]
    assert Sharers(ROOT, []).agree(family.pid, *folio).tolist() == [False]

"""Lists of nodes and CPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import nodelist

numbers = st.frozensets(st.integers(0, 1023))


@given(numbers)
def test_a_list_is_read_back(nodes: frozenset[int]) -> None:
    assert nodelist.parse(nodelist.format_list(nodes)) == nodes


@given(numbers)
def test_a_list_is_the_shortest(nodes: frozenset[int]) -> None:
    runs = sum(1 for node in nodes if node - 1 not in nodes)
    text = nodelist.format_list(nodes)
    assert (text.count(",") + 1 if text else 0) == runs


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1,,2", "1;2", "²", "99999999999"])
def test_what_is_not_a_list_is_refused_with_its_part(text: str) -> None:
    with pytest.raises(ValueError):
        nodelist.parse(text)


@given(numbers)
def test_a_mask_of_status_is_read(nodes: frozenset[int]) -> None:
    value = sum(1 << node for node in nodes)
    words = [f"{value >> 32 * index & 0xFFFFFFFF:08x}" for index in range(32)]
    assert nodelist.parse_mask(",".join(reversed(words)) + "\n") == nodes

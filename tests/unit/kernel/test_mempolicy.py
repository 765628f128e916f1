"""Policies and their text in numa_maps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode

flags = st.sets(st.sampled_from(list(Flag))).map(lambda chosen: Flag(sum(chosen)))
nodes = st.frozensets(st.integers(0, 1023), min_size=1)
policies = st.one_of(
    st.builds(Mempolicy, st.sampled_from([mode for mode in Mode if mode.takes_nodes]), nodes, flags),
    st.sampled_from([Mempolicy(Mode.DEFAULT), Mempolicy(Mode.LOCAL)]),
)


@given(policies)
def test_text_is_read_back(policy: Mempolicy) -> None:
    assert mempolicy.parse(str(policy)) == policy


@given(policies)
def test_a_line_of_numa_maps_is_read(policy: Mempolicy) -> None:
    line = f"7f1200000000 {policy} anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=4\n"
    assert mempolicy.parse_line(line) == policy


def test_lines_as_the_kernel_wrote_them() -> None:
    assert mempolicy.parse_line("55d0f0a00000 weighted interleave=static:0-1 file=/usr/bin/x") == Mempolicy(
        Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES
    )
    assert mempolicy.parse_line("55d0f0a00000 prefer (many):0 file=/usr/bin/x").mode is Mode.PREFERRED_MANY
    assert mempolicy.parse_line("55d0f0a00000 default file=/opt/a\\040b") == mempolicy.DEFAULT


@pytest.mark.parametrize("text", ["", "tomorrow:0", "bind=loud:0"])
def test_what_the_kernel_never_wrote_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        mempolicy.parse(text)


@given(nodes)
def test_a_nodemask_has_its_bits_and_a_spare_word(chosen: frozenset[int]) -> None:
    mask, maxnode = mempolicy.nodemask(chosen)
    value = int.from_bytes(mask, "little")
    assert {bit for bit in range(value.bit_length()) if value >> bit & 1} == chosen
    # --maxnode in the kernel must still cover the highest node, and the words read must lie in the mask.
    assert max(chosen) < maxnode - 1 <= (len(mask) - 8) * 8

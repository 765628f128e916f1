from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.root import Root
from hetmemd.machine import table, topology
from hetmemd.machine.table import Table
from tests.unit.machine.sysfs import DRAM_AND_CXL, build

WEIGHTS = st.dictionaries(st.integers(0, 3), st.integers(1, 255), min_size=1)
SWITCH = st.sampled_from([None, False, True])


def after(now: Table, steps: tuple[table.Write, ...]) -> Table:
    """What the kernel makes of the writes; bandwidths are taken to come to 1 for each node."""
    weights, auto = dict(now.weights), now.auto
    for file, text in steps:
        assert text not in ("", "0"), "they mean something else on each kernel"
        if file == "auto":
            assert auto is not None, "there is such a file"
            weights, auto = (dict.fromkeys(weights, 1) if text == "true" else weights), text == "true"
        else:
            weights[int(file.removeprefix("node"))] = int(text)
            auto = None if auto is None else False
    return Table(weights, auto)


@given(WEIGHTS, SWITCH, WEIGHTS, st.booleans())
def test_the_writes_make_what_is_wanted_and_no_second_time(
    held: dict[int, int], switch: bool | None, weights: dict[int, int], computed: bool
) -> None:
    now = Table(held, switch)
    wanted = Table({} if computed else weights, None if switch is None else computed)
    found = after(now, table.writes(now, wanted))
    assert found.auto == wanted.auto
    assert computed or found.weights == held | {node: weight for node, weight in weights.items() if node in held}
    assert table.agrees(found, wanted) and table.writes(found, wanted) == ()


def test_what_is_right_is_not_written() -> None:
    now = Table({0: 3, 1: 1, 2: 1}, False)
    assert table.writes(now, Table({0: 3, 1: 2}, False)) == (("node1", "2"),)
    assert table.writes(now, Table({0: 3, 7: 2}, False)) == ()
    assert table.writes(Table({0: 3}, True), Table({0: 3}, False)) == (("auto", "false"),)


def test_writing(tmp_path: Path) -> None:
    root = Root(build(tmp_path, DRAM_AND_CXL, weights={0: 100, 1: 1}, auto="true"))
    table.write(root, ("node0", "3"))
    table.write(root, ("auto", "false"))
    assert topology.kernel_table(root) == ({0: 3, 1: 1}, False)
    with pytest.raises(OSError) as caught:
        table.write(root, ("node7", "3"))
    assert caught.value.errno == errno.ENOENT and str(caught.value.filename).endswith("node7")

"""The verbs that change something, without a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.ctl import main
from hetmemd.engine.kernel_table import KernelTable
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.policy import nodes
from tests.unit.machine.sysfs import DRAM_AND_CXL, build
from tests.unit.policy.given import write


@pytest.mark.root
@pytest.mark.parametrize("ledger", [True, False])
def test_undo_gives_the_kernels_weights_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], ledger: bool) -> None:
    """As the removal of the package does, where the daemon is gone, and with it perhaps its ledger."""
    root = Root(build(tmp_path, DRAM_AND_CXL, weights={0: 4, 1: 1}))
    write(tmp_path / BOOT_ID.lstrip("/"), "b\n")
    (tmp_path / "run/hetmemd").mkdir(parents=True)
    if ledger:
        Ledger(root).close()
    KernelTable(root, lambda: False).hold(((nodes.parse("0"), 9),), topology.read(root))
    undo = ["undo", "--root", str(tmp_path), "--socket", str(tmp_path / "none"), "--json"]
    for words, weight in ((["--dry-run"], 9), ([], 4)):
        assert main.main([*undo, *words]) == 0, capsys.readouterr()
        held, _ = topology.kernel_table(root)
        assert held == {0: weight, 1: 1}

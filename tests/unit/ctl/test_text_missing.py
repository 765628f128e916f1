"""A cgroup that is not there is told from one that is."""

from __future__ import annotations

from pathlib import Path

from hetmemd.ctl import text
from hetmemd.kernel.root import Root
from hetmemd.policy import explain


def test_M2_a_mistyped_cgroup_does_not_pass_for_one_without_a_policy(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/there").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    root = Root(tmp_path)
    missing, there = (
        "\n".join(text.explain(explain.offline(root, cgroup), text.Paint(False))) for cgroup in ("/their", "/there")
    )
    assert "no such cgroup now" in missing
    assert "no such cgroup now" not in there

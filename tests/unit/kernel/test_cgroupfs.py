"""Where cgroup2 is mounted, and what its files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel import cgroupfs
from hetmemd.kernel.root import Root

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
BOUND = "50 31 0:26 /a/b /srv/c rw - cgroup2 none rw\n"


@pytest.mark.parametrize(
    ("text", "point"),
    [
        (PURE, "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        (BOUND + PURE, "/sys/fs/cgroup"),
        (BOUND, "/srv/c"),
        (V1, None),
        ("", None),
        ("nonsense\n\n1 2 - cgroup2\n", None),
        (r"41 31 0:38 / /a\040b\134c rw - cgroup2 cgroup2 rw" + "\n", "/a b\\c"),
        ("41 31 0:38 / /a\x1cb rw - cgroup2 cgroup2 rw\n", "/a\x1cb"),
        ("41 31 0:38 / /cgroup2 rw - tmpfs cgroup2 rw\n", None),
    ],
)
def test_mountinfo(text: str, point: str | None) -> None:
    assert cgroupfs.parse_mountinfo(text) == point


def tree(top: Path, mountinfo: str = PURE) -> Root:
    (top / "proc/self").mkdir(parents=True)
    (top / "proc/self/mountinfo").write_text(mountinfo)
    (top / "sys/fs/cgroup/a").mkdir(parents=True)
    return Root(top)


def test_without_a_mount_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(cgroupfs.NoCgroup2, match="mount -t cgroup2"):
        cgroupfs.mount_point(tree(tmp_path, V1))


def test_files(tmp_path: Path) -> None:
    root = tree(tmp_path)
    folder = tmp_path / "sys/fs/cgroup/a"
    (folder / "cgroup.procs").write_text("1\n0\n22\n")
    (folder / "cgroup.threads").write_text("")
    (folder / "cgroup.type").write_text("domain threaded\n")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (folder / "cpuset.cpus.effective").write_text("0-3,8\n")
    assert cgroupfs.procs(root, "/a") == [1, 22]
    assert cgroupfs.threads(root, "/a") == []
    assert cgroupfs.kind(root, "/a") == "domain threaded"
    assert cgroupfs.populated(root, "/a")
    assert not cgroupfs.frozen(root, "/a")
    assert cgroupfs.effective_cpus(root, "/a") == frozenset({0, 1, 2, 3, 8})
    assert cgroupfs.effective_nodes(root, "/a") is None
    assert cgroupfs.cgroup_id(root, "/a") == folder.stat().st_ino


def test_the_root_has_fewer_files(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert cgroupfs.kind(root, "/") == "domain"
    assert cgroupfs.events(root, "/") == {}
    assert cgroupfs.populated(root, "/")


def test_a_cgroup_that_is_gone_carries_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        cgroupfs.procs(tree(tmp_path), "/b")
    assert caught.value.filename == f"{tmp_path}/sys/fs/cgroup/b/cgroup.procs"
    with pytest.raises(FileNotFoundError):
        cgroupfs.events(tree(tmp_path / "other"), "/b")

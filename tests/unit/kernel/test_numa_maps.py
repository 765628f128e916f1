"""Lines as kernels 6.1 to 6.18 wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel import maps, numa_maps
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "55ba75e07000 default file=/usr/bin/head mapped=2 N0=2 kernelpagesize_kB=4",
            numa_maps.Line(0x55BA75E07000, Mempolicy(Mode.DEFAULT), {0: 2}, False, 1, 0, 4096),
        ),
        (
            "7f1b4a200000 weighted interleave=static:0-1 anon=512 dirty=512 active=0 N0=384 N1=128 kernelpagesize_kB=4",
            numa_maps.Line(
                0x7F1B4A200000,
                Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1}), Flag.STATIC_NODES),
                {0: 384, 1: 128},
                False,
                1,
                512,
                4096,
            ),
        ),
        (
            "7f1b4a200000 prefer (many):1,3 file=/srv/a\\040b\\075c mapped=7 mapmax=31 N12=7 kernelpagesize_kB=4",
            numa_maps.Line(
                0x7F1B4A200000,
                Mempolicy(Mode.PREFERRED_MANY, frozenset({1, 3})),
                {12: 7},
                False,
                31,
                0,
                4096,
            ),
        ),
        (
            "7f0000000000 bind:1 file=/anon_hugepage\\040(deleted) huge anon=3 dirty=3 N1=3 kernelpagesize_kB=2048",
            numa_maps.Line(0x7F0000000000, Mempolicy(Mode.BIND, frozenset({1})), {1: 3}, True, 1, 3, 2 << 20),
        ),
        ("7ffd1000 local", numa_maps.Line(0x7FFD1000, Mempolicy(Mode.LOCAL), {}, False, 1, 0, 4096)),
        (
            "7ffd1000 weighted interleave:0-1",
            numa_maps.Line(0x7FFD1000, Mempolicy(Mode.WEIGHTED_INTERLEAVE, frozenset({0, 1})), {}, False, 1, 0, 4096),
        ),
        ("7ffd1000 some=new:1 N0=1", numa_maps.Line(0x7FFD1000, None, {0: 1}, False, 1, 0, 4096)),
    ],
)
def test_line(line: str, expected: numa_maps.Line) -> None:
    assert numa_maps.parse_line(line) == expected


def test_a_process(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7/task/9"
    folder.mkdir(parents=True)
    (tmp_path / "proc/7/numa_maps").write_text("1000 default\n2000 default N0=1\n")
    (folder / "numa_maps").write_text("1000 default N3=1\n")
    root = Root(tmp_path)
    assert [line.pages for line in numa_maps.read(root, 7)] == [{}, {0: 1}]
    assert [line.pages for line in numa_maps.read(root, 7, 9)] == [{3: 1}]
    with pytest.raises(FileNotFoundError):
        numa_maps.read(root, 8)


def test_maps() -> None:
    text = (
        "5610d8fe7000-5610d8fe9000 r--p 00000000 fe:00 260131                     /usr/bin/cat\n"
        "7f0000000000-7f0000001000 rw-s 00000000 00:01 3                          /memfd:a b (deleted)\n"
        "7f0000002000-7f0000004000 rw-p 00000000 00:00 0 \n"
        "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n"
    )
    assert maps.parse(text) == [
        maps.Mapping(0x5610D8FE7000, 0x5610D8FE9000, "r--p", "fe:00", 260131, "/usr/bin/cat"),
        maps.Mapping(0x7F0000000000, 0x7F0000001000, "rw-s", "00:01", 3, "/memfd:a b (deleted)"),
        maps.Mapping(0x7F0000002000, 0x7F0000004000, "rw-p", "00:00", 0, ""),
        maps.Mapping(0x7FFD00000000, 0x7FFD00021000, "rw-p", "00:00", 0, "[stack]"),
    ]
    assert maps.parse("") == []

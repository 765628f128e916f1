"""The disk's first sector, the image's key, the packages behind them, and apt's own files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.lab.hetmemlab import disk, image, kernels, parcel, sources
from tests.lab.hetmemlab.apt import Package, parse_uris
from tests.lab.hetmemlab.emulator import Emulator
from tests.lab.hetmemlab.say import LabError

A = Package("a", "1.0", "a_1.0_amd64.deb")
B = Package("b", "2:3-1", "b_2%3a3-1_all.deb")


def test_master_boot_record() -> None:
    record = disk.master_boot_record(64 << 20)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    assert struct.unpack_from("<I", record, 440) == (0xC0FFEE01,)
    # One Linux partition from sector 2048, and three empty entries.
    assert struct.unpack_from("<B3xB3xII", record, 446) == (0, 0x83, 2048, (64 << 20) // 512)
    assert record[462:510] == bytes(48)
    assert disk.PARTUUID == "c0ffee01-01"


@pytest.mark.parametrize("size", [0, -512, 513])
def test_a_partition_is_whole_sectors(size: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        disk.master_boot_record(size)


@pytest.mark.parametrize("tree", [0, 1, 330 << 20, (5 << 30) + 7])
def test_a_partition_has_room_for_its_tree(tree: int) -> None:
    size = disk.partition_bytes(tree)
    assert size % (1 << 20) == 0
    assert size > tree * 1.1 + (900 << 20)


def test_the_key_is_versions_and_recipe() -> None:
    key = image.key([A, B], [b"one", b"two"])
    assert key == image.key([B, A], [b"one", b"two"])
    others = [
        image.key([A], [b"one", b"two"]),
        image.key([A, Package("b", "2:3-2", "b_2%3a3-2_all.deb")], [b"one", b"two"]),
        image.key([A, B], [b"one", b"twoo"]),
        image.key([A, B], [b"onet", b"wo"]),
    ]
    assert len({key, *others}) == 5


def test_exact_versions_from_apt() -> None:
    lines = (
        "Reading package lists...",
        "'http://mirror/b.deb' b_2%3a3-1_all.deb 10 SHA256:0",
        "'http://mirror/a.deb' a_1.0_amd64.deb 9 ",
    )
    assert parse_uris("\n".join(lines)) == [A, B]


STANZAS = """\
Types: deb
# a comment
URIs: http://mirror/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /keys/a.gpg

Types: deb-src
URIs: http://mirror/sources
Suites: trixie

Types: deb
URIs: http://mirror/debian-security
Suites: trixie-security
Components: main
Signed-By: /keys/b.gpg
"""

LINES = """\
# deb http://old/debian bullseye main
deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror/debian trixie main contrib
deb-src http://mirror/debian trixie main
deb http://other/tool stable-tool main
deb [signed-by=/keys/b.gpg] http://mirror/debian-security trixie-security main # fixes
"""


@pytest.mark.parametrize("text", [STANZAS, LINES], ids=["deb822", "one-line"])
def test_the_machines_mirror_is_used(text: str) -> None:
    assert sources.lab_lines(sources.parse(text), backports=True) == [
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm main",
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm-updates main",
        "deb [signed-by=/keys/b.gpg] http://mirror/debian-security bookworm-security main",
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm-backports main",
    ]
    assert len(sources.lab_lines(sources.parse(text), backports=False)) == 3


def test_a_machine_without_a_mirror_is_told() -> None:
    with pytest.raises(LabError, match="no Debian mirror"):
        sources.lab_lines(sources.parse("deb http://other/tool stable-tool main\n"), backports=True)


def test_both_files_are_read(tmp_path: Path) -> None:
    assert sources.of_machine(tmp_path) == []
    for name, text in (("sources.list.d/debian.sources", STANZAS), ("sources.list", LINES)):
        path = tmp_path / "etc/apt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [source.suites[0] for source in sources.of_machine(tmp_path)] == [
        "trixie",
        "trixie-security",
        "trixie",
        "stable-tool",
        "trixie-security",
    ]


def test_old_emulators_run_one_thread(tmp_path: Path) -> None:
    assert Emulator(tmp_path, "1:10.0.2+ds-2").threads == "multi"
    assert Emulator(tmp_path, "1:7.2+dfsg-7").threads == "single"


def test_kernels_by_name() -> None:
    assert kernels.named("6.12").package == "linux-image-6.12-cloud-amd64"
    with pytest.raises(kernels.KernelError, match=r"there are: .*6\.12"):
        kernels.named("2.4")


@pytest.mark.parametrize(
    ("given", "place"),
    [("a/b", "a/b"), ("./a//b/", "a/b"), ("/x/y", "y"), ("../z", "z"), ("a/../b", "b"), (".", ".")],
)
def test_relative_paths_keep_their_place(given: str, place: str) -> None:
    assert str(parcel.place_of(given)) == place

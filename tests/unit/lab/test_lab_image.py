"""The disk's first sector, the image's key, the packages behind them, and apt's own files."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hetmemlab import disk, kernels, parcel, sources, store
from tests.lab.hetmemlab.apt import Package, parse_show, parse_uris
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
    key = store.key([A, B], [b"one", b"two"])
    assert key == store.key([B, A], [b"one", b"two"])
    others = [
        store.key([A], [b"one", b"two"]),
        store.key([A, Package("b", "2:3-2", "b_2%3a3-2_all.deb")], [b"one", b"two"]),
        store.key([A, B], [b"one", b"twoo"]),
        store.key([A, B], [b"onet", b"wo"]),
    ]
    assert len({key, *others}) == 5


def test_exact_versions_from_apt() -> None:
    lines = (
        "Reading package lists...",
        "'http://mirror/b.deb' b_2%3a3-1_all.deb 10 SHA256:0",
        "'http://mirror/a.deb' a_1.0_amd64.deb 9 ",
    )
    assert parse_uris("\n".join(lines)) == [A, B]


def test_dependencies_from_apt() -> None:
    text = """\
Package: linux-image-7.3.4-cloud-amd64
Version: 7.3.4-1~bpo13+1
Depends: dracut | initramfs-tools (>= 0.120), linux-binary-7.3.4-cloud-amd64 (= 7.3.4-1~bpo13+1)
Pre-Depends: linux-base (>= 4.17~)
Description: Linux
 Depends: a line of prose
Filename: pool/main/l/linux/linux-image-7.3.4-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb
"""
    package, depends = parse_show(text)
    file = "linux-image-7.3.4-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb"
    assert package == Package("linux-image-7.3.4-cloud-amd64", "7.3.4-1~bpo13+1", file)
    assert depends == ["linux-base", "dracut", "initramfs-tools", "linux-binary-7.3.4-cloud-amd64"]
    assert parse_show("Package: a\nVersion: 1\nFilename: a.deb\n")[1] == []


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
    machine = sources.parse(text)
    with_backports, without = sources.release_lines(machine)
    assert with_backports == [
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm main",
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm-updates main",
        "deb [signed-by=/keys/b.gpg] http://mirror/debian-security bookworm-security main",
        "deb [signed-by=/keys/a.gpg] http://mirror/debian bookworm-backports main",
    ]
    assert without == with_backports[:3]
    sid, backports = (f"deb [signed-by=/keys/a.gpg] http://mirror/debian {suite} main" for suite in sources.NEWEST)
    assert sources.newest_lines(machine) == [[sid, backports], [sid], [backports]]


def test_a_machine_without_a_mirror_is_told() -> None:
    with pytest.raises(LabError, match="no Debian mirror"):
        sources.release_lines(sources.parse("deb http://other/tool stable-tool main\n"))


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


def shelf(folder: Path) -> store.Shelf:
    recipe = folder / "recipe"
    if not recipe.exists():
        recipe.write_text("one")
    return store.Shelf(folder, "things", "a-thing", ("wish",), (recipe,))


def test_a_thing_is_made_once_and_whole(tmp_path: Path) -> None:
    made = []

    def build(folder: Path) -> None:
        made.append(folder)
        (folder / "content").write_text("all of it")

    assert shelf(tmp_path).cached() is None
    folder = shelf(tmp_path).ensure([A], build)
    assert shelf(tmp_path).ensure([A], build) == shelf(tmp_path).cached() == folder
    assert (folder / "content").read_text() == "all of it"
    assert len(made) == 1
    assert shelf(tmp_path).ensure([A, B], build) == shelf(tmp_path).cached() != folder
    (tmp_path / "recipe").write_text("two")
    assert shelf(tmp_path).cached() is None


def test_a_torn_thing_is_none(tmp_path: Path) -> None:
    def tear(folder: Path) -> None:
        (folder / "content").write_text("half of")
        raise LabError("no more")

    with pytest.raises(LabError, match="no more"):
        shelf(tmp_path).ensure([A], tear)
    assert shelf(tmp_path).cached() is None
    assert list((tmp_path / "things").iterdir()) == []


def test_two_runs_do_not_build_at_once(tmp_path: Path) -> None:
    """Two processes that count in a file under the lock: neither sees the other's half-done work."""
    program = (
        "import sys, time; from pathlib import Path; from tests.lab.hetmemlab import store\n"
        "file = Path(sys.argv[1], 'count')\n"
        "for _ in range(20):\n"
        "    with store.lock(Path(sys.argv[1])):\n"
        "        count = int(file.read_text()); time.sleep(0.002); file.write_text(str(count + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    runs = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3]) for _ in "ab"
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert (tmp_path / "count").read_text() == "40"


def test_kernels_by_name() -> None:
    assert [kernel.name for kernel in kernels.TABLE] == ["6.1", "6.12", "newest"]
    assert kernels.named("6.12").package == "linux-image-6.12-cloud-amd64"
    with pytest.raises(kernels.KernelError, match=r"there are: .*6\.12"):
        kernels.named("2.4")


@pytest.mark.parametrize(
    ("given", "place"),
    [("a/b", "a/b"), ("./a//b/", "a/b"), ("/x/y", "y"), ("../z", "z"), ("a/../b", "b"), (".", ".")],
)
def test_relative_paths_keep_their_place(given: str, place: str) -> None:
    assert str(parcel.place_of(given)) == place

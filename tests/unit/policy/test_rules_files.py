"""Rules F1 and F2 on small trees: which files are in force, and what stands in for broken ones."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.policy import last_good, parse
from hetmemd.policy.language import DIRECTORIES
from hetmemd.policy.library import Library, load
from hetmemd.policy.resolve import CgroupFacts, resolve
from tests.unit.policy.given import DRAM_CXL, policy, write

GOOD = policy("/a", nodes="0")
OTHER = policy("/b", nodes="1")
BROKEN = '[[policy]]\ncgruop = "/a"\n'
ETC, RUN, LOCAL, USR = DIRECTORIES


def put(top: Path, path: str, content: str | bytes = GOOD) -> Path:
    return write(top / path.lstrip("/"), content)


def states(library: Library) -> dict[str, str]:
    return {file.path: file.state for file in library.files}


def patterns(library: Library) -> list[str]:
    return [table.pattern.text for table in library.tables]


def copies(top: Path) -> list[str]:
    folder = top / last_good.FOLDER.lstrip("/")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_no_directories_is_no_policies(tmp_path: Path) -> None:
    assert load(Root(tmp_path), keep=True) == Library()


def test_F1_four_directories(tmp_path: Path) -> None:
    for number, directory in enumerate(DIRECTORIES):
        put(tmp_path, f"{directory}/{number}0.toml", policy(f"/{number}"))
    assert patterns(load(Root(tmp_path), keep=False)) == ["/0", "/1", "/2", "/3"]


def test_F1_a_file_masks_its_namesakes_in_weaker_directories(tmp_path: Path) -> None:
    for number, directory in enumerate(DIRECTORIES[1:]):
        put(tmp_path, f"{directory}/50.toml", policy(f"/{number}"))
    library = load(Root(tmp_path), keep=False)
    assert patterns(library) == ["/0"]
    assert states(library) == {f"{RUN}/50.toml": "in-force", f"{LOCAL}/50.toml": "masked", f"{USR}/50.toml": "masked"}
    assert {file.masked_by for file in library.files} == {"", f"{RUN}/50.toml"}


def test_F1_masked_tables_are_losers(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", "")
    put(tmp_path, f"{USR}/50.toml", GOOD)
    effective = resolve({"/a": CgroupFacts()}, load(Root(tmp_path), keep=False), DRAM_CXL)["/a"]
    assert effective.state == "default" and effective.rules == ("F1", "I1")
    assert [(loser.file, loser.why) for loser in effective.losers] == [
        (f"{USR}/50.toml", f"the file is masked by {ETC}/50.toml (F1)")
    ]


@pytest.mark.parametrize("link", ["/dev/null", "../../../../../../../../../dev/null", "other"])
def test_F1_a_link_to_dev_null_masks_away(tmp_path: Path, link: str) -> None:
    put(tmp_path, f"{USR}/50.toml")
    etc = tmp_path / ETC.lstrip("/")
    etc.mkdir(parents=True)
    (etc / "other").symlink_to("/dev/null")
    (etc / "50.toml").symlink_to(link)
    library = load(Root(tmp_path), keep=True)
    assert library.tables == ()
    assert states(library) == {f"{ETC}/50.toml": "mask", f"{USR}/50.toml": "masked"}
    assert [by for _, by in library.masked_tables] == [f"{ETC}/50.toml, a link to /dev/null"]


def test_F1_order_is_by_name_alone(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/20.toml", policy("/2"))
    put(tmp_path, f"{USR}/10.toml", policy("/1"))
    put(tmp_path, f"{USR}/30.toml", policy("/3"))
    assert patterns(load(Root(tmp_path), keep=False)) == ["/1", "/2", "/3"]


def test_F1_leftovers_are_ignored(tmp_path: Path) -> None:
    names = (".hidden.toml", "a.toml~", "a.toml.dpkg-new", "a.toml.rpmsave", ".a.toml.swp", "README", "#a.toml#")
    for name in names:
        put(tmp_path, f"{ETC}/{name}", BROKEN)
    assert load(Root(tmp_path), keep=False).files == ()


def test_F1_the_directory_may_be_a_link_that_is_swapped(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: names are links through `..data`, itself a link that is replaced."""
    etc = tmp_path / ETC.lstrip("/")
    put(tmp_path, f"{ETC}/..one/50.toml", GOOD)
    put(tmp_path, f"{ETC}/..two/50.toml", OTHER)
    (etc / "..data").symlink_to("..one")
    (etc / "50.toml").symlink_to("..data/50.toml")
    assert patterns(load(Root(tmp_path), keep=True)) == ["/a"]
    (etc / "..next").symlink_to("..two")
    (etc / "..next").rename(etc / "..data")
    assert patterns(load(Root(tmp_path), keep=True)) == ["/b"]


def test_F1_an_absolute_link_means_what_it_means_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "/srv/policies/50.toml", GOOD)
    (tmp_path / "etc").mkdir()
    (tmp_path / ETC.lstrip("/")).symlink_to("/srv/policies")
    library = load(Root(tmp_path), keep=False)
    assert states(library) == {f"{ETC}/50.toml": "in-force"}


def test_F2_a_file_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD + BROKEN)
    put(tmp_path, f"{ETC}/60.toml", OTHER)
    library = load(Root(tmp_path), keep=True)
    assert patterns(library) == ["/b"]
    assert states(library) == {f"{ETC}/50.toml": "rejected", f"{ETC}/60.toml": "in-force"}
    assert library.rejected == (f"{ETC}/50.toml",)
    assert len(library.files[0].faults) == 2


def test_F2_the_last_good_version_holds_across_restarts(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD)
    load(Root(tmp_path), keep=True)
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    library = load(Root(tmp_path), keep=True)
    assert patterns(library) == ["/a"]
    assert library.files[0].state == "last-good" and library.files[0].faults
    effective = resolve({"/a": CgroupFacts()}, library, DRAM_CXL)["/a"]
    assert effective.rules == ("F2", "M1")


@pytest.mark.parametrize(
    "content",
    [
        f"min_age = {'9' * 400}",
        f"tolerance = {'9' * 400}",
        f'min_region = "{"9" * 400}.0GiB"',
        f"home_node = 0x{'f' * 4000}",
        f"x = {'9' * 5000}",
        "x = " + "[" * 10_000,
    ],
)
def test_F2_no_content_disturbs_other_files(tmp_path: Path, content: str) -> None:
    put(tmp_path, f"{ETC}/50.toml", policy("/a", "bind", "0") + content)
    put(tmp_path, f"{ETC}/60.toml", OTHER)
    library = load(Root(tmp_path), keep=True)
    assert states(library) == {f"{ETC}/50.toml": "rejected", f"{ETC}/60.toml": "in-force"}


def test_F2_a_fault_of_the_reader_is_one_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD)
    put(tmp_path, f"{ETC}/60.toml", OTHER)
    good = load(Root(tmp_path), keep=True)

    reader = parse.parse

    def surprised(data: bytes, path: str) -> parse.Parsed:
        if b"surprise" in data:
            raise ZeroDivisionError
        return reader(data, path)

    put(tmp_path, f"{ETC}/50.toml", "surprise = 1")
    monkeypatch.setattr("hetmemd.policy.library.parse", surprised)
    found = load(Root(tmp_path), keep=True, previous=good)
    assert states(found) == {f"{ETC}/50.toml": "last-good", f"{ETC}/60.toml": "in-force"}
    assert "ZeroDivisionError" in str(found.files[0].faults[0])
    put(tmp_path, f"{ETC}/70.toml", "surprise = 1")
    assert states(load(Root(tmp_path), keep=True, previous=good))[f"{ETC}/70.toml"] == "rejected"


def test_F2_the_copy_is_of_the_last_good_version_not_the_first(tmp_path: Path) -> None:
    for content in (GOOD, OTHER, BROKEN):
        put(tmp_path, f"{ETC}/50.toml", content)
        library = load(Root(tmp_path), keep=True)
    assert patterns(library) == ["/b"]


def test_F2_copies_are_by_full_path_and_go_with_their_files(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml")
    put(tmp_path, f"{USR}/50.toml")
    load(Root(tmp_path), keep=True)
    assert copies(tmp_path) == ["etc/hetmemd.d/50.toml", "usr/lib/hetmemd.d/50.toml"]
    (tmp_path / f"{ETC}/50.toml".lstrip("/")).unlink()
    load(Root(tmp_path), keep=True)
    assert copies(tmp_path) == ["usr/lib/hetmemd.d/50.toml"]


def test_F2_a_file_that_comes_again_does_not_wake_an_old_copy(tmp_path: Path) -> None:
    path = put(tmp_path, f"{ETC}/50.toml")
    load(Root(tmp_path), keep=True)
    path.unlink()
    load(Root(tmp_path), keep=True)
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    assert states(load(Root(tmp_path), keep=True)) == {f"{ETC}/50.toml": "rejected"}


def test_F2_a_file_that_was_never_good_masks_nothing(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    put(tmp_path, f"{USR}/50.toml", GOOD)
    library = load(Root(tmp_path), keep=True)
    assert patterns(library) == ["/a"]
    assert states(library) == {f"{ETC}/50.toml": "rejected", f"{USR}/50.toml": "in-force"}


def test_F2_a_broken_file_with_a_good_version_goes_on_masking(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", OTHER)
    put(tmp_path, f"{USR}/50.toml", GOOD)
    load(Root(tmp_path), keep=True)
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    assert patterns(load(Root(tmp_path), keep=True)) == ["/b"]


def test_F2_a_mask_is_a_version_too(tmp_path: Path) -> None:
    put(tmp_path, f"{USR}/50.toml", GOOD)
    etc = tmp_path / ETC.lstrip("/")
    etc.mkdir(parents=True)
    (etc / "50.toml").symlink_to("/dev/null")
    load(Root(tmp_path), keep=True)
    (etc / "50.toml").unlink()
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    library = load(Root(tmp_path), keep=True)
    assert library.tables == () and library.files[0].state == "last-good"


def test_F2_a_node_that_does_not_exist_is_no_fault(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", policy("/a", nodes="900"))
    assert states(load(Root(tmp_path), keep=True)) == {f"{ETC}/50.toml": "in-force"}


def test_F2_a_broken_copy_is_a_lost_copy(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    put(tmp_path, f"{last_good.FOLDER}{ETC}/50.toml", "x = [")
    library = load(Root(tmp_path), keep=True)
    assert states(library) == {f"{ETC}/50.toml": "rejected"}
    assert "its last good copy is broken" in library.notes[0]


def test_F2_what_was_loaded_before_stands_in_where_no_copy_can_be_kept(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD)
    put(tmp_path, "/var/lib/hetmemd", "a file where the folder should be")
    before = load(Root(tmp_path), keep=True)
    assert "no copy of this good version could be kept" in before.notes[0]
    put(tmp_path, f"{ETC}/50.toml", BROKEN)
    library = load(Root(tmp_path), keep=True, previous=before)
    assert patterns(library) == ["/a"] and library.files[0].state == "last-good"


def test_F2_a_directory_that_cannot_be_listed_loses_nothing(tmp_path: Path) -> None:
    path = put(tmp_path, f"{ETC}/50.toml", GOOD)
    put(tmp_path, f"{USR}/60.toml", OTHER)
    before = load(Root(tmp_path), keep=True)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no directory any more")
    library = load(Root(tmp_path), keep=True, previous=before)
    assert patterns(library) == ["/a", "/b"]
    assert library.files[0].state == "last-good"
    assert f"{ETC}: the directory cannot be read: Not a directory" in library.notes
    assert "etc/hetmemd.d/50.toml" in copies(tmp_path)


def test_offline_writes_nothing(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD)
    load(Root(tmp_path), keep=False)
    assert not (tmp_path / "var").exists()


def test_loading_again_changes_and_writes_nothing(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/50.toml", GOOD)
    first = load(Root(tmp_path), keep=True)
    copy = tmp_path / f"{last_good.FOLDER}{ETC}/50.toml".lstrip("/")
    stamp = copy.stat()
    assert load(Root(tmp_path), keep=True, previous=first) == first
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    assert [path.name for path in copy.parents[2].iterdir()] == ["etc"], "no temporary file is left"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a directory, not a file"),
        (make_fifo, "is a fifo, not a file"),
        (make_socket, "cannot be read: No such device or address"),
        (make_circle, "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link that leads nowhere"),
        (lambda path: path.write_bytes(b"#" * (10 << 20)), "larger than 1 MiB"),
        (lambda path: path.write_bytes(b"\xff"), "is not UTF-8"),
        (lambda path: path.write_bytes(b"\0"), "not TOML"),
    ],
)
def test_what_is_no_policy_file_disturbs_no_other(tmp_path: Path, make: object, says: str) -> None:
    put(tmp_path, f"{ETC}/10.toml", GOOD)
    make(tmp_path / f"{ETC}/50.toml".lstrip("/"))  # type: ignore[operator]
    library = load(Root(tmp_path), keep=True)
    assert states(library) == {f"{ETC}/10.toml": "in-force", f"{ETC}/50.toml": "rejected"}
    (fault,) = library.files[1].faults
    assert (fault.line, says in fault.message) == (1, True), fault


def test_a_name_that_is_not_utf8_is_a_fault_of_its_own(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/10.toml", GOOD)
    name = os.fsencode(tmp_path / ETC.lstrip("/")) + b"/50-\xff.toml"
    with open(name, "w") as file:
        file.write(OTHER)
    library = load(Root(tmp_path), keep=True)
    assert patterns(library) == ["/a"]
    assert str(library.files[1].faults[0]) == f"{ETC}/50-\\xff.toml:1: the file's name is not UTF-8 (rename it)"


def test_the_longest_name_there_is_has_a_copy(tmp_path: Path) -> None:
    name = "x" * 250 + ".toml"
    put(tmp_path, f"{ETC}/{name}", GOOD)
    assert load(Root(tmp_path), keep=True).notes == ()
    assert copies(tmp_path) == [f"etc/hetmemd.d/{name}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the superuser gives up its rights here, others have none to give up")
def test_unreadable_files_and_folders_keep_their_last_good_versions() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let no other user in
        top = Path(name)
        top.chmod(0o755)
        file = put(top, f"{ETC}/50.toml", GOOD)
        folder = put(top, f"{USR}/60.toml", OTHER).parent
        load(Root(top), keep=True)
        file.chmod(0)
        folder.chmod(0)
        os.seteuid(65534)
        try:
            library = load(Root(top), keep=False)
        finally:
            os.seteuid(0)
        assert states(library) == {f"{ETC}/50.toml": "last-good", f"{USR}/60.toml": "last-good"}
        assert library.files[0].faults[0].message == "cannot be read: Permission denied"
        assert library.notes == (f"{USR}: the directory cannot be read: Permission denied",)


@pytest.mark.skipif(os.geteuid() != 0, reason="the superuser gives up its rights here, others have none to give up")
def test_copies_that_cannot_be_read_are_said() -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        folder = put(top, f"{ETC}/50.toml", GOOD).parent
        load(Root(top), keep=True)
        folder.chmod(0)
        (top / "var/lib/hetmemd").chmod(0)
        os.seteuid(65534)
        try:
            library = load(Root(top), keep=False)
        finally:
            os.seteuid(0)
        assert library.files == ()
        assert "the last good copies cannot be read: Permission denied" in library.notes[1]


def test_F3_a_file_in_the_middle_of_a_write_is_not_taken_yet(tmp_path: Path) -> None:
    root = Root(tmp_path)
    path = root.path("/etc/hetmemd.d/50-a.toml")
    path.parent.mkdir(parents=True)
    path.write_text('[[policy]]\ncgroup = "/a"\nmode = "local"\n')
    before = load(root, keep=True)
    with path.open("w") as writer:
        writer.write('[[policy]]\ncgroup = "/b"\n')
        writer.flush()
        during = load(root, keep=True, previous=before)
        assert during == before
        fresh = root.path("/etc/hetmemd.d/60-new.toml")
        with fresh.open("w") as other:
            other.write("[[pol")
            other.flush()
            assert load(root, keep=True, previous=before) == before
        fresh.unlink()
        writer.write('mode = "default"\n')
    after = load(root, keep=True, previous=during)
    assert [table.pattern.text for table in after.tables] == ["/b"]

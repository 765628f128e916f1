"""Policy files watched below a root of their own: appearing directories, links that are swapped, unfinished files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.watch.files import SETTLE, FilesSource, ways
from hetmemd.watch.hint import FilesHint, Hint, LostHint

DEADLINE = 30.0


class Eyes:
    """A watched tree: `after` runs a change and waits for its hint."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.hints = 0
        self._more = asyncio.Event()
        self.source = FilesSource(Root(top), asyncio.get_running_loop(), self._deliver)
        self.source.start()
        assert self.source.up, self.source.note

    def _deliver(self, hints: Sequence[Hint]) -> None:
        assert set(hints) == {FilesHint()}
        self.hints += len(hints)
        self._more.set()

    async def after(self, change: Callable[[], object]) -> None:
        """Run `change`, and wait until it is hinted."""
        seen = self.hints
        change()
        async with asyncio.timeout(DEADLINE):
            while self.hints == seen:
                self._more.clear()
                await self._more.wait()

    async def silent_until(self, change: Callable[[], object], end: Callable[[], object]) -> None:
        """`change` must not be hinted; `end` must be, and only once. What is being settled is over by the middle."""
        seen = self.hints
        change()
        await asyncio.sleep(SETTLE * 3)
        assert self.hints == seen
        await self.after(end)


def run(top: Path, story: Callable[[Eyes], Awaitable[None]]) -> None:
    async def main() -> None:
        eyes = Eyes(top)
        try:
            await story(eyes)
        finally:
            eyes.source.close()

    asyncio.run(main())


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("etc/hetmemd.d", "run", "usr/lib"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_written_renamed_changed_removed(top: Path) -> None:
    folder = top / "etc/hetmemd.d"

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: (folder / "a.toml").write_text("x"))
        await eyes.after(lambda: (folder / "a.toml").write_text("y"))
        (folder / "new").write_text("z")
        await eyes.after(lambda: (folder / "new").rename(folder / "a.toml"))
        await eyes.after(lambda: (folder / "a.toml").rename(folder / "a.toml.old"))
        await eyes.after(lambda: (folder / "a.toml.old").rename(folder / "a.toml"))
        await eyes.after((folder / "a.toml").unlink)

    run(top, story)


def test_an_unfinished_file_is_not_hinted_before_it_is_closed(top: Path) -> None:
    async def story(eyes: Eyes) -> None:
        with (top / "etc/hetmemd.d/a.toml").open("w") as file:

            def half() -> None:
                file.write("[[policy]]\ncgroup =")
                file.flush()

            await eyes.silent_until(half, file.close)
        with (top / "etc/hetmemd.d/a.toml").open("a") as file:
            await eyes.silent_until(half, file.close)

    run(top, story)


def test_links_are_whole_at_birth(top: Path) -> None:
    folder = top / "etc/hetmemd.d"
    (top / "elsewhere.toml").write_text("x")

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: (folder / "masked.toml").symlink_to("/dev/null"))
        await eyes.after(lambda: (folder / "hard.toml").hardlink_to(top / "elsewhere.toml"))
        await eyes.after(lambda: (folder / "soft.toml").symlink_to("/elsewhere.toml"))
        # And what a link leads to is watched where it is.
        await eyes.after(lambda: (top / "elsewhere.toml").write_text("y"))

    run(top, story)


def test_a_file_without_a_name_until_it_is_done(top: Path) -> None:
    """O_TMPFILE and linkat(2): the name appears on a whole file, and no close follows that could tell."""
    folder = top / "etc/hetmemd.d"
    descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY)
    os.write(descriptor, b"x")
    reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    descriptors = os.open("/proc/self/fd", os.O_RDONLY)

    async def story(eyes: Eyes) -> None:
        # With a directory given, Python follows the link that an open file's entry is.
        await eyes.after(lambda: os.link(str(reader), folder / "a.toml", src_dir_fd=descriptors))

    run(top, story)
    os.close(descriptors)
    os.close(reader)


@pytest.mark.parametrize("place", ["etc/hetmemd.d", "run/hetmemd.d", "usr/local/lib/hetmemd.d", "usr/lib/hetmemd.d"])
def test_a_directory_that_comes_later_goes_and_comes_again(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place

    async def story(eyes: Eyes) -> None:
        for _ in range(2):
            await eyes.after(lambda: folder.mkdir(parents=True))
            await eyes.after(lambda: (folder / "a.toml").write_text("x"))
            await eyes.after((folder / "a.toml").unlink)
            await eyes.after(folder.rmdir)

    run(tmp_path, story)


def test_a_directory_that_is_replaced_by_another(top: Path) -> None:
    folder, other = top / "etc/hetmemd.d", top / "etc/new.d"

    async def story(eyes: Eyes) -> None:
        other.mkdir()
        (other / "a.toml").write_text("x")
        await eyes.after(lambda: folder.rename(top / "etc/old.d"))
        await eyes.after(lambda: other.rename(folder))
        await eyes.after(lambda: (folder / "a.toml").write_text("y"))
        # The old one is nobody's any more.
        await eyes.silent_until(
            lambda: (top / "etc/old.d/a.toml").write_text("z"), lambda: (folder / "a.toml").write_text("w")
        )

    run(top, story)


def publish(volume: Path, version: str, content: str) -> None:
    """A new set of files in one step, as Kubernetes does it for a mounted ConfigMap."""
    (volume / version).mkdir()
    (volume / version / "a.toml").write_text(content)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").rename(volume / "..data")


def test_a_swapped_link_inside_of_the_directory(top: Path) -> None:
    volume = top / "etc/hetmemd.d"
    publish(volume, "..2026_1", "x")
    (volume / "a.toml").symlink_to("..data/a.toml")

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: publish(volume, "..2026_2", "y"))
        await eyes.after(lambda: publish(volume, "..2026_3", "z"))
        # Also below the newest one.
        await eyes.after(lambda: (volume / "..2026_3/a.toml").write_text("w"))

    run(top, story)


def test_the_directory_is_itself_a_link_that_is_swapped(top: Path) -> None:
    volume, folder = top / "volume", top / "etc/hetmemd.d"
    volume.mkdir()
    publish(volume, "1", "x")
    folder.rmdir()
    folder.symlink_to("/volume/..data")

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: publish(volume, "2", "y"))
        await eyes.after(lambda: (volume / "2/b.toml").write_text("z"))
        await eyes.after(lambda: publish(volume, "3", "z"))
        await eyes.after(lambda: (volume / "3/b.toml").write_text("z"))

    run(top, story)


def test_a_link_that_leads_nowhere_yet_and_one_in_a_circle(top: Path) -> None:
    folder = top / "etc/hetmemd.d"
    (folder / "a.toml").symlink_to("../../later/on/a.toml")
    (folder / "b.toml").symlink_to("c.toml")
    (folder / "c.toml").symlink_to("b.toml")

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: (top / "later/on").mkdir(parents=True))
        await eyes.after(lambda: (top / "later/on/a.toml").write_text("x"))

    run(top, story)


def test_settings_and_switch(top: Path) -> None:
    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: (top / "etc/hetmemd.toml").write_text("x"))
        await eyes.after((top / "etc/hetmemd.toml").unlink)
        (top / "run/hetmemd").mkdir()
        await eyes.after((top / "run/hetmemd/observe").touch)
        await eyes.after((top / "run/hetmemd/observe").unlink)

    run(top, story)


def test_what_nobody_asked_for_is_not_hinted(top: Path) -> None:
    folder = top / "etc/hetmemd.d"

    def litter() -> None:
        (top / "etc/passwd").write_text("x")
        (folder / "a.toml~").write_text("x")
        (folder / ".a.toml.swp").write_text("x")
        (folder / ".#a.toml").symlink_to("user@host.1234")
        (folder / "README").write_text("x")

    async def story(eyes: Eyes) -> None:
        await eyes.silent_until(litter, lambda: (folder / "a.toml").write_text("x"))

    run(top, story)


def test_hostile_names_survive(top: Path) -> None:
    folder = top / "etc/hetmemd.d"
    file = top / os.fsdecode(b"\xff\xfe/\x80.toml")
    file.parent.mkdir()
    file.write_text("x")

    async def story(eyes: Eyes) -> None:
        await eyes.after(lambda: (folder / os.fsdecode(b"\xff.toml")).write_text("x"))
        await eyes.after(lambda: (folder / "link.toml").symlink_to(f"../../{file.relative_to(top)}"))
        # The directory that it leads to has a name that is not text, and is watched all the same.
        await eyes.after(lambda: file.write_text("y"))
        assert eyes.source.note == ""

    run(top, story)


def test_many_files_at_once_are_few_hints(top: Path) -> None:
    async def story(eyes: Eyes) -> None:
        def many() -> None:
            for index in range(200):
                (top / f"etc/hetmemd.d/{index}.toml").write_text("x")

        await eyes.after(many)
        assert eyes.hints == 1

    run(top, story)


def test_an_overflow_is_told(top: Path) -> None:
    async def main() -> None:
        got: list[Hint] = []
        more = asyncio.Event()

        def deliver(hints: Sequence[Hint]) -> None:
            got.extend(hints)
            more.set()

        source = FilesSource(Root(top), asyncio.get_running_loop(), deliver)
        source.start()
        queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        names = [top / "etc/hetmemd.d/a", top / "etc/hetmemd.d/b"]
        names[0].write_text("x")
        for index in range(queue // 2 + 2):
            names[index % 2].rename(names[1 - index % 2])
        async with asyncio.timeout(DEADLINE):
            await more.wait()
        assert LostHint(source.name) in got
        assert source.losses == 1
        source.close()

    asyncio.run(main())


def inotify_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own descriptor is gone when it is asked
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":  # noqa: PTH115
                found.add(int(name))
    return found


def test_a_descriptor_that_is_lost_is_noted(top: Path) -> None:
    async def main() -> None:
        got: list[Hint] = []
        more = asyncio.Event()

        def deliver(hints: Sequence[Hint]) -> None:
            got.extend(hints)
            more.set()

        before = inotify_descriptors()
        source = FilesSource(Root(top), asyncio.get_running_loop(), deliver)
        source.start()
        (number,) = inotify_descriptors() - before
        # A change makes it readable; by then a folder stands there, and reading that is an error.
        (top / "etc/hetmemd.d/a.toml").touch()
        kept, folder = os.dup(number), os.open(top, os.O_RDONLY)
        os.dup2(folder, number)
        async with asyncio.timeout(DEADLINE):
            await more.wait()
        assert got == [LostHint(source.name)]
        assert not source.up
        assert "SIGHUP" in source.note
        os.close(folder)
        os.close(kept)
        source.close()

    asyncio.run(main())


def test_ways_name_what_matters_in_each_directory(top: Path) -> None:
    places = ways(Root(top))
    assert places[str(top)] == {"etc", "run", "usr", "var"}
    assert places[f"{top}/etc"] == {"hetmemd.d", "hetmemd.toml"}
    assert places[f"{top}/etc/hetmemd.d"] == {"*.toml"}
    assert places[f"{top}/run"] == {"hetmemd", "hetmemd.d"}
    assert places[f"{top}/usr/lib"] == {"hetmemd.d"}
    assert f"{top}/usr/local" not in places

"""inotify on the policy directories, the settings and the kill switch, wherever they really are.

A path such as /etc/hetmemd.d may not exist yet, may be a link, or a link to a link that is swapped to publish a new set
of files at once (Kubernetes' `..data`). So every directory that has a say in the way to a file is watched for the names
that matter in it, and after each change that concerns the way, the way is walked again.

A change is a hint only when it is complete (F3): closed after writing, renamed, removed, or a link made. A file that
was just created is somebody's unfinished work until it is closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from typing import ClassVar

from hetmemd import settings
from hetmemd.kernel import lease, libc
from hetmemd.kernel.root import Root
from hetmemd.policy.language import DIRECTORIES
from hetmemd.watch import inotify
from hetmemd.watch.hint import FilesHint
from hetmemd.watch.source import Deliver

FILES = (settings.PATH, *settings.OBSERVE_FILES)

SETTLE = 0.05
"""Seconds from the first complete change to the hint: a package or a sync brings several files at once."""

_COMPLETE = inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO | inotify.IN_DELETE
_MASK = _COMPLETE | inotify.IN_CREATE | inotify.IN_ONLYDIR
_LINKS = 40
"""MAXSYMLINKS in include/linux/namei.h: the kernel gives up there as well."""

Places = dict[str, set[str]]
"""By directory: the names in it that matter. `*.toml` stands for all policy files."""
_POLICIES = "*.toml"


class FilesSource(inotify.InotifySource):
    name: ClassVar[str] = "inotify-files"
    advice: ClassVar[str] = "; send SIGHUP after a change"

    def __init__(self, root: Root, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        super().__init__(loop, deliver)
        self._root = root
        self._places: Places = {}
        self._watches: dict[str, int] = {}
        self._directories: dict[int, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._changed = False
        self._born: set[str] = set()
        """Names that appeared since the last hint, and may still be written."""

    def start(self) -> None:
        """Watch what there is. Returns with the source up, or down with a note."""
        if self.open():
            self._walk()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().close()

    def take(self, events: Sequence[inotify.Event], overflow: bool) -> None:
        moved = False
        for event in events:
            if self._concerns(event):
                if event.mask & inotify.IN_CREATE:
                    self._born.add(f"{self._directories[event.watch]}/{event.name}")
                else:
                    self._changed = True
                moved = moved or not event.mask & inotify.IN_CLOSE_WRITE
        if overflow or moved:
            self._walk()
        if overflow:
            self.lost()
        if (self._changed or self._born) and self._timer is None:
            self._timer = self._loop.call_later(SETTLE, self._settled)

    def _settled(self) -> None:
        self._timer = None
        changed = self._changed or any(_complete(name) for name in self._born)
        self._changed = False
        self._born.clear()
        if changed:
            self.tell((FilesHint(),))

    def _concerns(self, event: inotify.Event) -> bool:
        """Whether the event is about a file that matters, or about the way to one."""
        directory = self._directories.get(event.watch)
        if directory is None:
            return False
        if event.mask & (inotify.IN_IGNORED | inotify.IN_UNMOUNT):
            return True
        names = self._places.get(directory, set())
        return event.name in names or (_POLICIES in names and _is_policy(event.name))

    def _walk(self) -> None:
        """Find the ways again and watch them; repeated until nothing new is found after the watches stood."""
        for _ in range(8):
            places = ways(self._root)
            watches: dict[str, int] = {}
            self.note = ""
            for directory in places:
                try:
                    assert self.inotify is not None
                    # Also where it is watched already: another directory may stand there by now.
                    watches[directory] = self.inotify.add(directory, _MASK)
                except OSError as error:
                    if not libc.is_gone(error) and error.errno != errno.ENOTDIR:
                        self.note = f"{directory} is not watched: {error.strerror}; send SIGHUP after a change"
            stable = places == self._places and watches == self._watches
            for watch in set(self._watches.values()) - set(watches.values()):
                if self.inotify is not None:
                    self.inotify.remove(watch)
            self._places, self._watches = places, watches
            self._directories = {watch: directory for directory, watch in watches.items()}
            if stable:
                return


def ways(root: Root) -> Places:
    """Every directory that has a say in which policy files, settings and switches there are, and the names that do."""
    places: Places = {}
    for path in FILES:
        _follow(root, path, places)
    for path in DIRECTORIES:
        directory = _follow(root, path, places)
        if directory is None:
            continue
        try:
            with os.scandir(directory) as entries:
                links = [entry.path for entry in entries if _is_policy(entry.name) and entry.is_symlink()]
        except OSError:
            continue
        places.setdefault(directory, set()).add(_POLICIES)
        for link in links:
            _follow(root, root.strip(link), places)
    return places


def _is_policy(name: str) -> bool:
    # Editors lock and save under names that begin with a dot.
    return name.endswith(".toml") and not name.startswith(".")


def _follow(root: Root, path: str, places: Places) -> str | None:
    """Walk to `path` link by link, noting each directory and the name looked up in it; where it leads, if anywhere."""
    top = root.name("/").rstrip("/")
    directory, parts, links = top, path.split("/"), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            directory = directory if directory == top else directory.rpartition("/")[0]
            continue
        places.setdefault(directory or "/", set()).add(part)
        name = f"{directory}/{part}"
        try:
            mode = os.lstat(name).st_mode
            if not stat.S_ISLNK(mode):
                directory = name
                continue
            target = os.readlink(name)  # noqa: PTH115
        except OSError:
            return None
        links += 1
        if links > _LINKS or target == "/dev/null":
            # Masked away: nothing that happens in /dev matters.
            return None
        if target.startswith("/"):
            directory = top
        parts.extend(reversed(target.split("/")))
    return directory or "/"


def _complete(name: str) -> bool:
    """Whether what appeared a moment ago is whole: links and directories are; a plain file, if nobody writes it.

    One that is being written is told by its close. One that never will be was linked here, from a file that had its
    content already (link(2), or O_TMPFILE).
    """
    try:
        status = os.lstat(name)
    except OSError:
        return True
    if not stat.S_ISREG(status.st_mode):
        return True
    written = lease.being_written(name)
    return status.st_nlink > 1 if written is None else not written

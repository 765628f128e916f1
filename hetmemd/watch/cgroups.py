"""inotify on the cgroup tree: cgroups made and removed, tasks moved, cpusets changed.

Two watches for each cgroup. The one on its directory sees mkdir, rmdir and writes to its files, through every mount and
namespace, since all cgroup2 mounts share their inodes; which task was moved it does not tell. The one on cgroup.events
keeps that file's inode in memory, without which the kernel's own notification finds nobody (kernfs_notify): it is the
only sign of a process that was made directly in another, empty cgroup (clone3 with CLONE_INTO_CGROUP).

Order matters when a cgroup appears: watch it first, list it then, so that what comes in between is seen twice and not
missed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import ClassVar

from hetmemd.kernel import cgroupfs, libc
from hetmemd.kernel.root import Root
from hetmemd.watch import inotify
from hetmemd.watch.hint import CgroupGone, CgroupHint, CpusetHint, Hint
from hetmemd.watch.source import Deliver

_DIRECTORY = inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_MODIFY | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW
_TASKS = frozenset({"cgroup.procs", "cgroup.threads", "cgroup.events", "cgroup.type"})
# Enabling the controller for the children gives them cpusets of their own.
_CPUSETS = frozenset({"cpuset.mems", "cpuset.cpus", "cpuset.cpus.partition", "cgroup.subtree_control"})


class _Watched:
    """One cgroup directory that is being watched."""

    __slots__ = ("children", "identity", "parent", "path", "watches")

    def __init__(self, path: str, identity: int, parent: _Watched | None) -> None:
        self.path = path
        self.identity = identity
        self.parent = parent
        self.children: dict[str, _Watched] = {}
        self.watches: list[int] = []


class CgroupSource(inotify.InotifySource):
    name: ClassVar[str] = "inotify-cgroup"

    def __init__(self, root: Root, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        super().__init__(loop, deliver)
        self._root = root
        self._mount = ""
        self._top: _Watched | None = None
        self._by_watch: dict[int, _Watched] = {}
        self._unwatched = ""

    def start(self) -> None:
        """Watch the whole tree as it is. Returns with the source up, or down with a note."""
        try:
            self._mount = self._root.name(cgroupfs.mount_point(self._root))
        except (cgroupfs.NoCgroup2, OSError) as error:
            self.fail(str(error))
            return
        if self.open():
            self._watch_all()

    def close(self) -> None:
        super().close()
        self._by_watch.clear()
        self._top = None

    def watched(self, path: str) -> int:
        """How many watches there are at and below a cgroup: two for each but the root, which has one."""
        top = path.rstrip("/") + "/"
        return sum(watched.path == path or watched.path.startswith(top) for watched in self._by_watch.values())

    # Events

    def take(self, events: Sequence[inotify.Event], overflow: bool) -> None:
        # A dictionary, since a batch repeats itself: the first mention keeps its place.
        hints: dict[Hint, None] = {}
        for event in events:
            self._take(event, hints)
        if overflow:
            self._watch_all()
            self.lost()
        self.tell(tuple(hints))

    def _take(self, event: inotify.Event, hints: dict[Hint, None]) -> None:
        watched = self._by_watch.get(event.watch)
        if watched is None:
            return
        if event.mask & (inotify.IN_IGNORED | inotify.IN_UNMOUNT):
            self._by_watch.pop(event.watch, None)
        elif event.mask & inotify.IN_ISDIR:
            path = _below(watched.path, event.name)
            if event.mask & inotify.IN_CREATE:
                self._watch(watched, event.name, hints)
            elif event.mask & inotify.IN_DELETE:
                child = watched.children.get(event.name)
                if child is not None:
                    self._drop(child)
                hints[CgroupGone(path)] = None
        elif not event.name or event.name in _TASKS:
            hints[CgroupHint(watched.path)] = None
        elif event.name in _CPUSETS:
            hints[CpusetHint(watched.path)] = None

    # Watches

    def _watch_all(self) -> None:
        """Watch what is not watched and drop what is gone: at the start, and after an overflow."""
        self._unwatched = self.note = ""
        if self._top is None:
            self._top = _Watched("/", 0, None)
        self._cover(self._top, {})

    def _watch(self, parent: _Watched, name: str, hints: dict[Hint, None]) -> None:
        """Watch the child `name` and all below it, by the identity that it has at this moment."""
        path = _below(parent.path, name)
        try:
            identity = os.lstat(self._mount + path).st_ino
        except OSError as error:
            self._failed(path, error)
            return
        child = parent.children.get(name)
        if child is not None and child.identity != identity:
            self._drop(child)
            hints[CgroupGone(path)] = None
            child = None
        if child is None:
            child = parent.children[name] = _Watched(path, identity, parent)
        hints[CgroupHint(path)] = None
        self._cover(child, hints)

    def _cover(self, top: _Watched, hints: dict[Hint, None]) -> None:
        stack = [top]
        while stack:
            watched = stack.pop()
            self._add(watched)
            try:
                with os.scandir(self._mount + watched.path) as entries:
                    found = {entry.name: entry.inode() for entry in entries if entry.is_dir(follow_symlinks=False)}
            except OSError as error:
                self._failed(watched.path, error)
                continue
            for name, child in list(watched.children.items()):
                if found.get(name) != child.identity:
                    self._drop(child)
                    hints[CgroupGone(child.path)] = None
            for name, identity in found.items():
                if name not in watched.children:
                    watched.children[name] = _Watched(_below(watched.path, name), identity, watched)
                    hints[CgroupHint(watched.children[name].path)] = None
                stack.append(watched.children[name])

    def _add(self, watched: _Watched) -> None:
        if watched.watches or self.inotify is None:
            return
        try:
            watches = [self.inotify.add(self._mount + watched.path, _DIRECTORY)]
            if watched.parent is not None:
                watches.append(self.inotify.add(f"{self._mount}{watched.path}/cgroup.events", inotify.IN_MODIFY))
        except OSError as error:
            self._failed(watched.path, error)
            return
        watched.watches = watches
        for watch in watches:
            self._by_watch[watch] = watched

    def _drop(self, top: _Watched) -> None:
        """Forget a cgroup and all below it. The kernel keeps the watch on a removed cgroup until it is told."""
        if top.parent is not None and top.parent.children.get(top.path.rpartition("/")[2]) is top:
            del top.parent.children[top.path.rpartition("/")[2]]
        stack = [top]
        while stack:
            watched = stack.pop()
            stack.extend(watched.children.values())
            for watch in watched.watches:
                if self._by_watch.get(watch) is watched:
                    del self._by_watch[watch]
                if self.inotify is not None:
                    self.inotify.remove(watch)
            watched.watches = []

    def _failed(self, path: str, error: OSError) -> None:
        if libc.is_gone(error) or error.errno == errno.ENOTDIR:
            return
        if not self._unwatched:
            advice = "; raise fs.inotify.max_user_watches" if error.errno == errno.ENOSPC else ""
            self._unwatched = f"some cgroups are only scanned, first {os.fsencode(path)!r}: {error.strerror}{advice}"
            self.note = self._unwatched


def _below(path: str, name: str) -> str:
    return f"/{name}" if path == "/" else f"{path}/{name}"

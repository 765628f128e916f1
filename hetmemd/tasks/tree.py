"""The cgroup tree by identity: what is there now, and what came and went since the last look."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from hetmemd.kernel import cgroupfs
from hetmemd.kernel.root import Root

# What scandir(3) says of a directory that went away, or that nobody may read: neither stops a scan.
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup for as long as it exists: a path may be used again, an id (the directory's inode) is not."""

    id: int
    path: str
    parent: int | None
    """The parent's id, None for the root."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look found; a cgroup that was made again under its name is in both."""

    appeared: tuple[Cgroup, ...]
    vanished: tuple[Cgroup, ...]


class CgroupTree:
    """The tree as it was last seen. `by_path` and `by_id` are for reading only."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._mount = root.name(cgroupfs.mount_point(root))
        self.by_path: dict[str, Cgroup] = {}
        self.by_id: dict[int, Cgroup] = {}
        self._children: dict[int, set[int]] = {}
        self.unreadable: dict[str, str] = {}
        """Paths that could not be listed at the last look, and why (a right, a name too long)."""

    def scan(self) -> Changes:
        """Look at everything."""
        return self.look("/")

    def look(self, path: str) -> Changes:
        """Look at the cgroup `path` and all below it. One whose parent is not known yet is found from where it is."""
        while path != "/" and _parent(path) not in self.by_path:
            path = _parent(path)
        for stale in [name for name in self.unreadable if _within(name, path)]:
            del self.unreadable[stale]
        before = {cgroup.id: cgroup for cgroup in self._below(path)}
        now: dict[int, Cgroup] = {}
        for cgroup in self._walk(path):
            now[cgroup.id] = cgroup
        vanished = tuple(cgroup for key, cgroup in before.items() if key not in now)
        appeared = tuple(cgroup for key, cgroup in now.items() if key not in before)
        for cgroup in vanished:
            self._forget(cgroup)
        for cgroup in appeared:
            self._keep(cgroup)
        return Changes(appeared, vanished)

    def children(self, cgroup: Cgroup) -> list[Cgroup]:
        """The known cgroups right below."""
        return [self.by_id[child] for child in self._children.get(cgroup.id, ())]

    def _walk(self, path: str) -> Iterator[Cgroup]:
        try:
            identity = os.stat(self._mount + path).st_ino  # noqa: PTH116
        except OSError as error:
            if error.errno not in _GONE:
                self.unreadable[path] = error.strerror or str(error)
            return
        parent = None if path == "/" else self.by_path[_parent(path)].id
        stack = [Cgroup(identity, path, parent)]
        while stack:
            cgroup = stack.pop()
            yield cgroup
            prefix = "" if cgroup.path == "/" else cgroup.path
            try:
                # d_type and d_ino come with the listing, so that a cgroup costs no stat(2).
                with os.scandir(self._mount + cgroup.path) as entries:
                    stack.extend(
                        Cgroup(entry.inode(), f"{prefix}/{entry.name}", cgroup.id)
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                    )
            except OSError as error:
                if error.errno not in _GONE:
                    self.unreadable[cgroup.path] = error.strerror or str(error)

    def _below(self, path: str) -> Iterator[Cgroup]:
        top = self.by_path.get(path)
        stack = [] if top is None else [top]
        while stack:
            cgroup = stack.pop()
            yield cgroup
            stack.extend(self.children(cgroup))

    def _keep(self, cgroup: Cgroup) -> None:
        self.by_id[cgroup.id] = cgroup
        self.by_path[cgroup.path] = cgroup
        if cgroup.parent is not None:
            self._children.setdefault(cgroup.parent, set()).add(cgroup.id)

    def _forget(self, cgroup: Cgroup) -> None:
        del self.by_id[cgroup.id]
        if self.by_path.get(cgroup.path) is cgroup:
            del self.by_path[cgroup.path]
        self._children.pop(cgroup.id, None)
        if cgroup.parent is not None and cgroup.parent in self._children:
            self._children[cgroup.parent].discard(cgroup.id)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _within(path: str, top: str) -> bool:
    return top in ("/", path) or path.startswith(top + "/")

"""The cgroup2 filesystem: where it is mounted, and what its files say.

Formats: Documentation/admin-guide/cgroup-v2.rst.

A cgroup is named by its path below the mount (`/`, `/a/b`). Names are bytes of any kind: they are decoded with
`os.fsdecode`, so that one that is not UTF-8 survives as surrogates. Everything raises `OSError` that carries the path;
`kernel.libc.is_gone` tells a cgroup that was removed (ENOENT from a path, ENODEV from an open file).
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache

from hetmemd.kernel import nodelist
from hetmemd.kernel.root import Root

_OCTAL = re.compile(r"\\([0-7]{3})")


class NoCgroup2(Exception):
    """This machine has no cgroup2 mount: hetmemd has nothing to attach a policy to."""


def parse_mountinfo(text: str) -> str | None:
    """The mount point of the cgroup2 hierarchy in /proc/PID/mountinfo (proc_pid_mountinfo(5)), None where it has none.

    On a hybrid machine it is /sys/fs/cgroup/unified. A mount of the hierarchy's own root is better than a bind mount
    of some cgroup below it; among equals the first mounted is what everybody else uses.
    """
    found: str | None = None
    for line in text.split("\n"):  # splitlines() would also split at control characters in a name
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or right.split(" ")[0] != "cgroup2" or len(fields) < 5:
            continue
        point = _OCTAL.sub(_unescape, fields[4])
        if fields[3] == "/":
            return point
        found = found or point
    return found


def _unescape(match: re.Match[str]) -> str:
    # Space, tab, newline and backslash are written in octal; all other bytes stand as they are.
    return os.fsdecode(bytes([int(match[1], 8)]))


@lru_cache(maxsize=16)
def mount_point(root: Root) -> str:
    """Where cgroup2 is mounted, as an absolute path below `root`. Raises `NoCgroup2` with what to do."""
    point = parse_mountinfo(root.read_text("/proc/self/mountinfo"))
    if point is None:
        raise NoCgroup2(
            "no cgroup2 filesystem is mounted: boot with systemd.unified_cgroup_hierarchy=1, "
            "or mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
        )
    return point.rstrip("/")


def directory(root: Root, path: str) -> str:
    """The name to open for the cgroup `path`."""
    return root.name(mount_point(root) + path)


def read(root: Root, path: str, file: str) -> bytes:
    """The whole of a cgroup's file: cgroupfs hands out at most 4092 bytes at a time."""
    return root.read_bytes(f"{mount_point(root)}{path.rstrip('/')}/{file}")


def cgroup_id(root: Root, path: str) -> int:
    """The cgroup's identity: the inode of its directory. A cgroup made again under the same name has another one."""
    return os.stat(directory(root, path)).st_ino  # noqa: PTH116


def procs(root: Root, path: str) -> list[int]:
    """cgroup.procs: pids in the order of the kernel, of the whole subtree in a threaded domain.

    A threaded cgroup answers EOPNOTSUPP. Processes of other pid namespaces stand as 0 and are left out.
    """
    return _ids(read(root, path, "cgroup.procs"))


def threads(root: Root, path: str) -> list[int]:
    """cgroup.threads: the tids that are in this very cgroup."""
    return _ids(read(root, path, "cgroup.threads"))


def _ids(data: bytes) -> list[int]:
    ids = [int(line) for line in data.split()]
    return [number for number in ids if number] if 0 in ids else ids


def kind(root: Root, path: str) -> str:
    """cgroup.type: `domain`, `domain threaded`, `threaded` or `domain invalid`; the root has no such file: `domain`."""
    try:
        return os.fsdecode(read(root, path, "cgroup.type")).strip()
    except FileNotFoundError:
        return "domain"


def events(root: Root, path: str) -> dict[str, bool]:
    """cgroup.events: `populated` (tasks here or below) and `frozen`; empty for the root, which has no such file."""
    try:
        data = read(root, path, "cgroup.events")
    except FileNotFoundError:
        if path == "/":
            return {}
        raise
    return {key: value == "1" for key, value in (line.split() for line in os.fsdecode(data).splitlines())}


def populated(root: Root, path: str) -> bool:
    """Whether a task lives in the cgroup or below it."""
    return events(root, path).get("populated", True)


def frozen(root: Root, path: str) -> bool:
    """Whether the cgroup is frozen, by itself or by an ancestor."""
    return events(root, path).get("frozen", False)


def effective_cpus(root: Root, path: str) -> frozenset[int] | None:
    """cpuset.cpus.effective; None where this hierarchy does not have the cpuset controller here."""
    return _effective(root, path, "cpuset.cpus.effective")


def effective_nodes(root: Root, path: str) -> frozenset[int] | None:
    """cpuset.mems.effective; None where this hierarchy does not have the cpuset controller here."""
    return _effective(root, path, "cpuset.mems.effective")


def _effective(root: Root, path: str, file: str) -> frozenset[int] | None:
    try:
        return nodelist.parse(os.fsdecode(read(root, path, file)).strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise

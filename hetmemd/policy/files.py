"""Policy files on disk: which there are, and their bytes, whatever stands under their names (F1).

Reading never blocks and never trusts: a fifo, a device, a directory or 10 MB under the name of a policy is a fault
with a sentence. Links are followed below the root, so that another machine's tree keeps its own meaning.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from hetmemd.kernel import lease
from hetmemd.kernel.root import Root
from hetmemd.policy.document import LARGEST

_MOST_LINKS = 40  # as the kernel: MAXSYMLINKS in include/linux/namei.h
_NULL_DEVICE = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt


class UnreadableError(Exception):
    """The text says what stands there instead of a policy file."""


class BeingWrittenError(UnreadableError):
    """Somebody has the file open for writing, so that what can be read now may be half of it (F3)."""


@dataclass(frozen=True, slots=True)
class Content:
    """What stands under a policy file's name."""

    data: bytes
    is_mask: bool = False
    """A link to /dev/null: the name is masked away (F1)."""


def is_policy_name(name: str) -> bool:
    """Leftovers of editors and packagers end otherwise (`~`, `.dpkg-new`, `.rpmsave`, `.swp`) or begin with a dot."""
    return name.endswith(".toml") and not name.startswith(".")


def names(root: Root, directory: str) -> list[str]:
    """The policy files of a directory, which may be a link; none where it does not exist. `OSError` otherwise."""
    try:
        found = os.listdir(root.name(follow(root, directory)))  # noqa: PTH208 - names, undecodable ones too
    except FileNotFoundError:
        if os.path.islink(root.name(directory)):  # noqa: PTH114
            raise
        return []
    return sorted((name for name in found if is_policy_name(name)), key=os.fsencode)


def read(root: Root, path: str) -> Content | None:
    """The file's content, None where there is none. `UnreadableError` for everything that is no readable file.

    `BeingWrittenError`, one of these, where somebody has it open for writing and the filesystem can tell.
    """
    for _ in range(3):  # a link may be swapped between following it and opening what it led to
        try:
            target = follow(root, path)
            if target == "/dev/null":
                return Content(b"", is_mask=True)
            return _read(root.name(target))
        except FileNotFoundError:
            if not os.path.lexists(root.name(path)):
                return None
        except OSError as error:
            raise UnreadableError(f"cannot be read: {os.strerror(error.errno or 0)}") from None
    raise UnreadableError("is a link that leads nowhere")


def _read(name: str) -> Content:
    # Non-blocking, as opening a fifo for reading waits for a writer otherwise.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE:
            return Content(b"", is_mask=True)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError(f"is {_kind(status.st_mode)}, not a file")
        if lease.take(fd) is False:
            raise BeingWrittenError("is open for writing")
        parts: list[bytes] = []
        left = LARGEST + 1
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return Content(b"".join(parts))
    finally:
        os.close(fd)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a fifo"), (stat.S_ISSOCK, "a socket"))
    return next((word for test, word in kinds if test(mode)), "a device")


def follow(root: Root, path: str) -> str:
    """Where `path` leads, all links followed as they mean it below `root`. `OSError` (ELOOP) for a circle.

    What does not exist is no link: opening it tells.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done[-1:] = []
            continue
        here = "/" + "/".join([*done, part])
        try:
            target = os.readlink(root.name(here))  # noqa: PTH115
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), root.name(path))
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)

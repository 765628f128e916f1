"""Copies of the last good version of each policy file, so that a broken edit undoes nothing, also after a restart (F2).

A copy lies below FOLDER under the full path of its file. They are written whole or not at all.
"""

from __future__ import annotations

import os
import tempfile

from hetmemd.kernel.root import Root

FOLDER = "/var/lib/hetmemd/last-good"


def read(root: Root, path: str) -> bytes | None:
    """The copy for the file at `path`, None where there is none. `OSError` where it is there but unreadable."""
    try:
        return root.read_bytes(FOLDER + path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def keep(root: Root, path: str, data: bytes) -> None:
    """Make `data` the copy for `path`; nothing is written where it is already. `OSError`."""
    if read(root, path) == data:
        return
    name = root.name(FOLDER + path)
    os.makedirs(os.path.dirname(name), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
    # The temporary name has a length of its own: that of the policy may be the longest there is.
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=root.name(FOLDER))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, name)  # noqa: PTH105
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise


def kept(root: Root, directory: str) -> list[str]:
    """Full paths of the files of `directory` that have a copy. `OSError` where that cannot be listed."""
    try:
        found = os.listdir(root.name(FOLDER + directory))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [f"{directory}/{name}" for name in sorted(found, key=os.fsencode)]


def forget(root: Root, path: str) -> None:
    """The file is gone, so its copy has nothing to stand in for any more. `OSError`."""
    try:
        os.unlink(root.name(FOLDER + path))  # noqa: PTH108
    except (FileNotFoundError, NotADirectoryError):
        return

"""The one root on which every path to /proc, /sys, /etc and /run hangs.

Tests and `hetmemctl --root` build or collect a small tree in a folder; the daemon uses `/`.
"""

from __future__ import annotations

import os
from pathlib import Path


class Root:
    """A folder that stands for `/`. Reading gives `OSError` with the full path in `filename`."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str | os.PathLike[str] = "/") -> None:
        self._prefix = os.fspath(prefix).rstrip("/")

    def __repr__(self) -> str:
        return f"Root({self._prefix or '/'!r})"

    @property
    def is_live(self) -> bool:
        """True where paths lead to the running kernel, and syscalls on pids make sense."""
        return not self._prefix

    def name(self, path: str) -> str:
        """The path to open for an absolute `path`, as a string (the cheap form, for hot paths)."""
        return self._prefix + path

    def path(self, path: str) -> Path:
        """The same as a `Path`."""
        return Path(self._prefix + path)

    def strip(self, name: str) -> str:
        """What `name` is called below this root."""
        return name.removeprefix(self._prefix) if self._prefix else name

    def read_bytes(self, path: str) -> bytes:
        """The whole file, read to its end: procfs and cgroupfs hand out a page or less at a time."""
        fd = os.open(self.name(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
            return b"".join(parts)
        except OSError as error:
            # read(2) knows no path; an error without one cannot be acted on.
            raise OSError(error.errno, error.strerror, self.name(path)) from None
        finally:
            os.close(fd)

    def read_text(self, path: str) -> str:
        """The whole file as text; bytes that are not UTF-8 survive as surrogates (`os.fsdecode`)."""
        return os.fsdecode(self.read_bytes(path))

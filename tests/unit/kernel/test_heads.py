"""Beginnings of small files, read many at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hetmemd.kernel.heads import Heads


def test_each_file_has_its_own_answer(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    (tmp_path / "long").write_bytes(b"0123456789" * 3)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    heads = Heads([16] * 7 + [2])
    directory = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    names = [b"short", b"missing", b"long", b"folder", b"empty", b"missing", b"folder/../short", b"short"]
    wanted = [b"abc", errno.ENOENT, b"0123456789012345", errno.EISDIR, b"", errno.ENOENT, b"abc", b"ab"]
    try:
        assert heads.read(directory, names) == wanted
        assert heads.read(directory, names[6::-1]) == wanted[6::-1]
        assert heads.read(directory, [b"short"]) == [b"abc"]
        assert heads.read(directory, []) == []
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    finally:
        os.close(directory)


def test_another_directory(tmp_path: Path) -> None:
    heads = Heads([4, 4])
    for content in (b"one", b"two"):
        folder = tmp_path / content.decode()
        folder.mkdir()
        (folder / "file").write_bytes(content)
        directory = os.open(folder, os.O_RDONLY)
        # The number of the first one is taken again.
        assert heads.read(directory, [b"file", b"file"]) == [content, content]
        os.close(directory)


def test_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="xxx"):
        Heads([4]).read(-1, [b"x" * 64])

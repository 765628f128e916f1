"""Files that are read only while nobody writes them."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from hetmemd.kernel import lease


def test_a_quiet_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 200_000)
    assert lease.being_written(str(file)) is False
    assert lease.read_settled(str(file)) == b"x" * 200_000


def test_a_file_in_somebodys_hands_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("wb"):
        assert lease.being_written(str(file)) is True
        with pytest.raises(lease.BeingWritten) as caught:
            lease.read_settled(str(file))
        assert caught.value.filename == str(file)
    assert lease.read_settled(str(file)) == b""


def test_a_writer_who_comes_meanwhile_ends_nobody(tmp_path: Path) -> None:
    """The kernel signals the holder of a lease that is broken: the usual signal would end the process."""
    file = tmp_path / "a"
    file.write_text("x")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.close(os.open(file, os.O_WRONLY))

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2000):
        with suppress(lease.BeingWritten):
            assert lease.read_settled(str(file)) == b"x"
    stop.set()
    writer.join()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert lease.being_written(str(tmp_path / "fifo")) is None
    assert lease.being_written(str(tmp_path / "missing")) is None
    with pytest.raises(FileNotFoundError):
        lease.read_settled(str(tmp_path / "missing"))
    with pytest.raises(IsADirectoryError) as caught:
        lease.read_settled(str(tmp_path))
    assert caught.value.filename == str(tmp_path)

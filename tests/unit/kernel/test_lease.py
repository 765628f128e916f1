"""Files of which it is told whether somebody writes them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from hetmemd.kernel import lease


def test_a_quiet_file_is_nobodys(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    assert lease.being_written(str(file)) is False


def test_a_file_in_somebodys_hands(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("wb"):
        assert lease.being_written(str(file)) is True
    assert lease.being_written(str(file)) is False


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
    taken = rounds = 0
    try:
        # On a busy machine the writer can be stopped for long just where it has the file.
        while rounds < 2000 or not taken:
            rounds += 1
            descriptor = os.open(file, os.O_RDONLY)
            try:
                taken += lease.take(descriptor) is True
                assert os.read(descriptor, 2) == b"x"
            finally:
                os.close(descriptor)
            assert rounds < 1_000_000, "sometimes nobody had it"
    finally:
        stop.set()
        writer.join()
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path / "fifo", tmp_path / "missing", tmp_path):
        assert lease.being_written(str(name)) is None

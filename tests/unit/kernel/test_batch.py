"""Batches of system calls: the routine and its interpreted form do the same."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from hetmemd.kernel import batch
from hetmemd.kernel.batch import Batch

GETPID, GETPPID, CLOSE, LSEEK = 39, 110, 3, 8


@pytest.fixture(params=["native", "interpreted"])
def table(request: pytest.FixtureRequest) -> Batch:
    made = Batch(8)
    runner = batch.native() if request.param == "native" else batch.interpreted
    assert runner, "no executable memory to be had"
    made._run = runner
    return made


def test_calls_one_after_another(table: Batch) -> None:
    assert table.call(GETPID) == 0
    assert table.call(GETPPID) == 1
    assert table.run(0, 2) == 2
    assert (table.result(0), table.result(1)) == (os.getpid(), os.getppid())


def test_it_ends_where_a_call_fails(table: Batch) -> None:
    table.call(GETPID)
    table.call(CLOSE, 1 << 30)
    table.call(GETPPID)
    assert table.run(0, 3) == 1
    assert table.result(1) == -errno.EBADF
    assert table.result(2) == 0
    assert table.run(2, 1) == 1


def test_it_ends_where_a_comparison_fails(table: Batch) -> None:
    value = ctypes.c_uint32(0xFFFFFFFE)
    table.call(GETPID)
    same = table.compare(ctypes.addressof(value), 0xFFFFFFFE)
    table.compare(table.address_of(0), os.getpid())
    table.compare(ctypes.addressof(value), 7)
    table.call(GETPPID)
    assert not table.is_call(same)
    assert table.run(0, 5) == 3
    assert table.result(4) == 0
    value.value = 7
    assert table.run(3, 2) == 2
    assert table.result(4) == os.getppid()


def test_all_arguments_arrive(table: Batch) -> None:
    read, write = os.pipe()
    try:
        buffer = ctypes.create_string_buffer(b"abcdef")
        table.call(1, write, ctypes.addressof(buffer), 6)
        table.call(LSEEK, read, 0, 0)  # a pipe: fails
        assert table.run(0, 2) == 1
        assert os.read(read, 10) == b"abcdef"
        assert table.result(1) == -errno.ESPIPE
    finally:
        os.close(read)
        os.close(write)


def test_copies(table: Batch) -> None:
    source, sink = ctypes.create_string_buffer(b"0123456789"), ctypes.create_string_buffer(11)
    copy = table.copy(ctypes.addressof(sink) + 1, ctypes.addressof(source) + 2, 3)
    table.call(GETPID)
    assert not table.is_call(copy)
    assert table.run(0, 2) == 2
    assert sink.raw == b"\0" + b"234" + bytes(7)
    assert table.result(1) == os.getpid()


def test_it_goes_on_where_values_differ(table: Batch) -> None:
    value = ctypes.c_uint64(0x1_0000_0007)
    differs = table.differ(ctypes.addressof(value), 8)
    table.differ(ctypes.addressof(value) + 4, 7)
    table.differ(ctypes.addressof(value), 7)
    assert not table.is_call(differs)
    assert table.run(0, 3) == 2


def test_it_goes_on_where_bytes_are_the_same(table: Batch) -> None:
    one, other = ctypes.create_string_buffer(b"0123456789"), ctypes.create_string_buffer(b"x123456780")
    same = table.same(ctypes.addressof(one) + 1, ctypes.addressof(other) + 1, 8)
    table.same(ctypes.addressof(one) + 1, ctypes.addressof(other) + 1, 9)
    table.call(GETPID)
    assert not table.is_call(same)
    assert table.run(0, 3) == 1
    other[9] = b"9"
    assert table.run(1, 2) == 2
    table.same(ctypes.addressof(one), ctypes.addressof(other), 1)
    assert table.run(3, 1) == 0


def test_a_result_becomes_an_argument(table: Batch) -> None:
    name, content = ctypes.create_string_buffer(b"/proc/self/comm"), ctypes.create_string_buffer(16)
    opened = table.call(257, -100, ctypes.addressof(name), os.O_RDONLY, 0)
    table.copy(table.address_of(opened + 3, 1), table.address_of(opened), 8)
    table.copy(table.address_of(opened + 4, 1), table.address_of(opened), 8)
    table.call(0, -1, ctypes.addressof(content), 15)
    table.call(CLOSE, -1)
    assert table.run(0, 5) == 5
    assert content.value.decode().strip()
    with pytest.raises(OSError):
        os.fstat(table.result(opened))


def test_nothing_is_nothing(table: Batch) -> None:
    assert table.run(0, 0) == 0

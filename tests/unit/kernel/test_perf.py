"""Records of perf events, as include/uapi/linux/perf_event.h lays them out."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.perf import _ring_pages, gather

pids, times = st.integers(0, 9), st.integers(0, 2**63)


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("=IHH", kind, 0, 8 + len(content)) + content


def mapping(pid: int, time: int, name: bytes) -> bytes:
    name = name.ljust(len(name) // 8 * 8 + 8, b"\0")  # as the kernel pads it
    return record(1, struct.pack("=IIQQQ", pid, pid, 4096, 4096, 0) + name + struct.pack("=Q", time))


mappings = st.tuples(pids, times, st.binary(max_size=40))
losses = st.integers(1, 1000)
others = st.tuples(st.integers(3, 20), st.binary(max_size=40))


@given(st.lists(mappings | losses | others))
def test_who_mapped_something_first_when(told: list[tuple[int, int, bytes] | int | tuple[int, bytes]]) -> None:
    records, first, count, lost = b"", dict[int, int](), 0, 0
    for each in told:
        match each:
            case int():
                records += record(2, struct.pack("=QQQ", 7, each, 0))
                lost += each
            case (pid, time, name):
                records += mapping(pid, time, name)
                first[pid] = min(time, first.get(pid, time))
                count += 1
            case (kind, content):
                records += record(kind, content)
    mapped: dict[int, int] = {}
    assert gather(records, mapped) == (count, lost)
    assert mapped == first


@given(st.binary(max_size=7))
def test_what_is_cut_off_ends_it(rest: bytes) -> None:
    mapped: dict[int, int] = {}
    assert gather(mapping(1, 5, b"//anon") + rest, mapped) == (1, 0)
    assert gather(record(3, b"") + b"\0" * 8, mapped) == (0, 0)
    assert mapped == {1: 5}


@given(st.integers(1, 4096))
def test_rings_of_many_processors_are_smaller(cpus: int) -> None:
    pages = _ring_pages(cpus)
    assert pages & (pages - 1) == 0
    assert 4 <= pages <= 64
    assert pages == 4 or pages * 4096 * cpus <= 4 << 20
    assert pages == 64 or pages * 2 * 4096 * cpus > 4 << 20

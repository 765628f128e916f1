"""What tasks map, told by perf events: perf_event_open(2), include/uapi/linux/perf_event.h.

A dummy event on every CPU with `mmap_data` makes a record of each mapping that is not of code: mmap(2), brk(2) (also
where the heap only grows), mprotect(2), and of each page by which a stack grows. Not of mremap(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct

from hetmemd.kernel import libc, nodelist
from hetmemd.kernel.root import Root

_ATTRIBUTES = struct.Struct("=IIQQQQQII4QIiQIHH")  # struct perf_event_attr, PERF_ATTR_SIZE_VER5
_SOFTWARE, _DUMMY = 1, 9  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
_SAMPLE_TIME = 1 << 2
_WATERMARK, _MMAP_DATA, _SAMPLE_ID_ALL, _USE_CLOCKID = (1 << bit for bit in (14, 17, 18, 25))
_CLOCK_MONOTONIC = 1
_FD_CLOEXEC = 8
_NEVER = (1 << 32) - 1
"""Bytes after which a reader would be woken; the kernel makes that a ring."""
_MEMORY = 4 << 20
_FEWEST, _MOST = 4, 64
"""Pages of each CPU's ring, a power of two, so that all of them have so much memory: some 50 records a page."""
_HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Words of struct perf_event_mmap_page, which stands in a page before the ring."""

_HEADER = struct.Struct("=IHH")  # type, misc, size
_RECORD_MMAP, _RECORD_LOST = 1, 2
_PID = struct.Struct("=I")
_TIME = struct.Struct("=Q")
_PID_AT = _HEADER.size


class Mappings:
    """The records of all CPUs that are online now (`cpus`), from now on.

    `OSError` EACCES or EPERM without the right (CAP_PERFMON, or sysctl kernel.perf_event_paranoid -1), another one
    where the kernel has no such events.
    """

    def __init__(self, root: Root) -> None:
        self._rings: list[_Ring] = []
        try:
            self.cpus = online(root)
            for cpu in sorted(self.cpus):
                try:
                    ring = _Ring(cpu, _ring_pages(len(self.cpus)))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        continue  # it went offline
                    raise
                self._rings.append(ring)
        except BaseException:
            self.close()
            raise

    def take(self) -> tuple[dict[int, int], int, int]:
        """What was recorded since: by pid when it first mapped something (CLOCK_MONOTONIC, ns), the number of records,
        and how many more were lost."""
        mapped: dict[int, int] = {}
        count = lost = 0
        for ring in self._rings:
            told, missing = gather(ring.take(), mapped)
            count, lost = count + told, lost + missing
        return mapped, count, lost

    def close(self) -> None:
        for ring in self._rings:
            ring.close()
        self._rings.clear()


def online(root: Root) -> frozenset[int]:
    """The CPUs that are online."""
    return nodelist.parse(root.read_text("/sys/devices/system/cpu/online"))


def _ring_pages(cpus: int) -> int:
    most = max(_MEMORY // mmap.PAGESIZE // cpus, 1)
    return min(max(1 << most.bit_length() - 1, _FEWEST), _MOST)


class _Ring:
    """Of one CPU."""

    def __init__(self, cpu: int, pages: int) -> None:
        flags = _WATERMARK | _MMAP_DATA | _SAMPLE_ID_ALL | _USE_CLOCKID
        attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
        # Nobody is woken by it: a wake-up costs the task that maps 20 us in a virtual machine, a record less than 1.
        _ATTRIBUTES.pack_into(
            attributes,
            0,
            *(_SOFTWARE, _ATTRIBUTES.size, _DUMMY, 0, _SAMPLE_TIME, 0, flags, _NEVER, 0),
            *(0, 0, 0, 0),
            *(0, _CLOCK_MONOTONIC),
            *(0, 0, 0, 0),
        )
        self.descriptor = libc.syscall(
            libc.PERF_EVENT_OPEN,
            attributes,
            ctypes.c_int(-1),
            ctypes.c_int(cpu),
            ctypes.c_int(-1),
            ctypes.c_ulong(_FD_CLOEXEC),
            about=f"the mappings of CPU {cpu}",
        )
        try:
            self._memory = mmap.mmap(self.descriptor, (1 + pages) * mmap.PAGESIZE)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._size = pages * mmap.PAGESIZE
        self._all = memoryview(self._memory)
        # Words, so that one is read and written with one instruction. The kernel writes the records before the head;
        # x86 keeps that order for a reader as well, and elsewhere nothing is bound.
        self._words = self._all[: mmap.PAGESIZE].cast("Q")
        self._data = self._all[mmap.PAGESIZE :]

    def take(self) -> bytes:
        head, tail = self._words[_HEAD], self._words[_TAIL]
        begin, count = tail % self._size, head - tail
        records = bytes(self._data[begin : begin + count])
        records += bytes(self._data[: count - len(records)])
        self._words[_TAIL] = head
        return records

    def close(self) -> None:
        for view in (self._words, self._data, self._all):
            view.release()
        self._memory.close()
        os.close(self.descriptor)


def gather(records: bytes, mapped: dict[int, int]) -> tuple[int, int]:
    """Note in `mapped` which process mapped something first when; how many records say so, and how many were lost."""
    at = count = lost = 0
    while at + _HEADER.size <= len(records):
        kind, _, size = _HEADER.unpack_from(records, at)
        if kind == _RECORD_MMAP:
            (pid,) = _PID.unpack_from(records, at + _PID_AT)
            (time,) = _TIME.unpack_from(records, at + size - _TIME.size)
            if time < mapped.get(pid, time + 1):
                mapped[pid] = time
            count += 1
        elif kind == _RECORD_LOST:
            lost += _TIME.unpack_from(records, at + _HEADER.size + 8)[0]  # after an id
        at += max(size, _HEADER.size)
    return count, lost

"""The kernel's process events connector: its messages, and who may hear it. Source: drivers/connector/cn_proc.c.

A message is a netlink header (16 bytes), a cn_msg (20) and a proc_event (40); numbers are in the machine's order.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys

NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
CN_VAL_PROC = 1
LISTEN = 1
IGNORE = 2

NONE = 0x0
FORK = 0x1
EXEC = 0x2
COREDUMP = 0x40000000
EXIT = 0x80000000

FATAL = frozenset({signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGSEGV, signal.SIGSYS})
"""Signals by which the kernel ends a task for what the task did, signal(7)."""

SIZE = 76
"""Of one event, the same for all kinds."""

SO_RCVBUF = 8
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_RCVBUFFORCE = 33

Event = tuple[int, int, int, int, int, int, int, int]
"""Number answered, kind, nanoseconds (CLOCK_MONOTONIC), and five numbers by kind:

FORK: parent tid, parent pid, child tid, child pid. EXEC, and COREDUMP before it is written: tid, pid. EXIT: tid,
pid, status as wait(2) has it, signal for the parent, and the parent's pid since 4.18, 0 before. NONE: an errno; the
number answered is that of the request plus 1."""

_EVENT = struct.Struct("=28xI4xI4xQ4I4xI")
_KIND = 36
_FIRST = 52
"""Offsets of the kind and of the first number by kind."""

PROC_PID_INIT_INO = 0xEFFFFFFC
PROC_USER_INIT_INO = 0xEFFFFFFD
"""Inodes of the initial namespaces (include/linux/proc_ns.h). In any other one the connector is silent."""


def request(operation: int, number: int, mask: int | None = None) -> bytes:
    """A subscription. The answer to `number` is an event of kind NONE, sent only while the kernel counts a listener.

    With a mask of kinds (since 6.6) the kernel sends only those, and not the answer either; older kernels drop the
    longer request without a word.
    """
    body = struct.pack("=I", operation) if mask is None else struct.pack("=II", operation, mask)
    message = struct.pack("=IIIIHH", CN_IDX_PROC, CN_VAL_PROC, 0, number, len(body), 0) + body
    # NLMSG_DONE is 3 (include/uapi/linux/netlink.h).
    return struct.pack("=IHHII", 16 + len(message), 3, 0, 0, 0) + message


class _Vector(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct mmsghdr: a struct msghdr, and the size of what was received"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_size", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        # A long, though it is an int: what follows belongs to another structure, and is aligned accordingly.
        ("flags", ctypes.c_long),
        ("received", ctypes.c_uint32),
    )


_HEADER_SIZE = ctypes.sizeof(_Header)
_RECEIVED = struct.Struct(f"={_Header.received.offset}xI{_HEADER_SIZE - _Header.received.offset - 4}x")


class Receiver:
    """Takes many events with one call, into slots that lie side by side, so that they are unpacked in one go."""

    SLOTS = 256

    def __init__(self) -> None:
        self._buffer = bytearray(SIZE * self.SLOTS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._vectors = (_Vector * self.SLOTS)(*(_Vector(start + SIZE * slot, SIZE) for slot in range(self.SLOTS)))
        self._headers = (_Header * self.SLOTS)(
            *(_Header(vectors=ctypes.pointer(vector), vectors_size=1) for vector in self._vectors)
        )

    def receive(self, descriptor: int) -> list[Event]:
        """What is queued, up to `SLOTS`, never waiting: empty where nothing is. `OSError` otherwise, ENOBUFS once."""
        count = _recvmmsg(descriptor, self._headers, self.SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                return []
            raise OSError(code, os.strerror(code))
        events: list[Event] = list(_EVENT.iter_unpack(memoryview(self._buffer)[: SIZE * count]))
        sizes = _RECEIVED.iter_unpack(memoryview(self._headers).cast("B")[: _HEADER_SIZE * count])
        if any(size != SIZE for (size,) in sizes):
            events = [event for event, header in zip(events, self._headers, strict=False) if header.received == SIZE]
        return events


_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg


class Filter:
    """A classic BPF program for `SO_ATTACH_FILTER` that drops what nobody here asks for, before it takes buffer space.

    Kept are acknowledgements, forks of processes and threads (their number is compared with the kernel's own), execs,
    core dumps, exits of thread group leaders, and exits of threads by a `FATAL` signal: the leader may have ended long
    before, and all threads of a process that is ended so tell the same status (do_group_exit() in kernel/exit.c).
    Numbers are loaded in network order, hence the swapped constants. Keep the object until the option was set: the
    kernel copies from its memory.
    """

    def __init__(self) -> None:
        # include/uapi/linux/bpf_common.h: LD|W|ABS 0x20, LD|B|ABS 0x30, ALU|AND|K 0x54, JMP|JEQ|K 0x15, JMP|JEQ|X 0x1d,
        # MISC|TAX 0x07, RET|K 0x06. Jumps are counted from the next instruction: `keep` and `drop` are the last two.
        signals = sorted(FATAL)
        body = [
            (0x20, None, None, _KIND),
            (0x15, "keep", None, _swapped(FORK)),
            (0x15, "keep", None, _swapped(EXEC)),
            (0x15, "keep", None, _swapped(NONE)),
            (0x15, "keep", None, _swapped(COREDUMP)),
            (0x15, None, "drop", _swapped(EXIT)),
            (0x20, None, None, _FIRST),
            (0x07, None, None, 0),
            (0x20, None, None, _FIRST + 4),
            (0x1D, "keep", None, 0),
            (0x30, None, None, _FIRST + 8 + (0 if sys.byteorder == "little" else 3)),
            (0x54, None, None, 0x7F),
            *((0x15, "keep", "drop" if number == signals[-1] else None, number) for number in signals),
        ]
        places = {None: 0, "keep": len(body), "drop": len(body) + 1}
        program = [
            (code, *(places[where] - at - 1 if where else 0 for where in (yes, no)), number)
            for at, (code, yes, no, number) in enumerate(body)
        ]
        program += [(0x06, 0, 0, SIZE * 4), (0x06, 0, 0, 0)]
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        self._code = ctypes.create_string_buffer(code, len(code))
        self.option = struct.pack("HP", len(program), ctypes.addressof(self._code))


def _swapped(number: int) -> int:
    return int.from_bytes(struct.pack("=I", number), "big")

"""The kernel's process events connector: its messages, and who may hear it. Source: drivers/connector/cn_proc.c.

A message is a netlink header (16 bytes), a cn_msg (20) and a proc_event (40); numbers are in the machine's order.
"""

from __future__ import annotations

import ctypes
import struct

NETLINK_CONNECTOR = 11
CN_IDX_PROC = 1
CN_VAL_PROC = 1
LISTEN = 1
IGNORE = 2

NONE = 0x0
FORK = 0x1
EXEC = 0x2
EXIT = 0x80000000

SIZE = 76
"""Of one event, the same for all kinds."""

SO_RCVBUF = 8
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_RCVBUFFORCE = 33

EVENT = struct.Struct("=IIQIIII").unpack_from
"""At `EVENT_OFFSET`: kind, CPU, nanoseconds (CLOCK_MONOTONIC), then by kind
FORK: parent tid, parent pid, child tid, child pid; EXEC and EXIT: tid, pid; NONE: errno of the acknowledgement."""
EVENT_OFFSET = 36
EXIT_PARENT = struct.Struct("=II").unpack_from
EXIT_PARENT_OFFSET = 68
"""EXIT only, since 4.18: parent tid, parent pid; zeros before."""
ACK = struct.Struct("=I").unpack_from
ACK_OFFSET = 28
"""NONE: the number of the request that it answers, plus 1."""

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


class Filter:
    """A classic BPF program for `SO_ATTACH_FILTER` that drops what nobody here asks for, before it takes buffer space.

    Kept are acknowledgements, forks of processes and threads (their number is compared with the kernel's own), execs,
    and exits of thread group leaders. Numbers are loaded in network order, hence the swapped constants. Keep the object
    until the option was set: the kernel copies from its memory.
    """

    def __init__(self) -> None:
        # include/uapi/linux/bpf_common.h: LD|W|ABS 0x20, JMP|JEQ|K 0x15, JMP|JEQ|X 0x1d, MISC|TAX 0x07, RET|K 0x06
        program = [
            (0x20, 0, 0, EVENT_OFFSET),
            (0x15, 7, 0, _swapped(FORK)),
            (0x15, 6, 0, _swapped(EXEC)),
            (0x15, 5, 0, _swapped(NONE)),
            (0x15, 0, 5, _swapped(EXIT)),
            (0x20, 0, 0, EVENT_OFFSET + 16),
            (0x07, 0, 0, 0),
            (0x20, 0, 0, EVENT_OFFSET + 20),
            (0x1D, 0, 1, 0),
            (0x06, 0, 0, SIZE * 4),
            (0x06, 0, 0, 0),
        ]
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        self._code = ctypes.create_string_buffer(code, len(code))
        self.option = struct.pack("HP", len(program), ctypes.addressof(self._code))


def _swapped(number: int) -> int:
    return int.from_bytes(struct.pack("=I", number), "big")

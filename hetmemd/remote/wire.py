"""What the daemon and the tracer process say to each other, as JSON.

A request is one packet of a SOCK_SEQPACKET pair. Results stand on the `board`; the tracer sends `DONE` once all do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.procfs import ProcessId
from hetmemd.remote.result import Outcome, ThreadResult

PACKET = 1 << 16
"""No packet is longer."""
DONE = b"done"


@dataclass(frozen=True, slots=True)
class Call:
    """One syscall to make in the thread."""

    name: str
    arguments: tuple[int, ...]
    pointers: tuple[int, ...] = ()
    """Which of the arguments are offsets into the request's data, to become addresses in the target."""


@dataclass(frozen=True, slots=True)
class Request:
    """Make these calls in each of these threads, in one stop each."""

    process: ProcessId
    tids: tuple[int, ...]
    calls: tuple[Call, ...]
    data: bytes
    """Placed in the slot, for as long as the calls last."""
    policy: Mempolicy | None
    """What the thread has then: not called if it has that already, and read back after. None: not looked at."""
    expected: tuple[Mempolicy, ...] = ()
    """What the thread may show before: one that shows another is left alone. Empty: whatever it shows."""
    sweep: bool = False
    """A tracer died in this process: look for what it left even where nothing is to be done."""
    once: bool = False
    """Not in each, but in the first of these threads in which they can be made; as many as a stop has time for."""


def set_mempolicy(policy: Mempolicy) -> tuple[Call, bytes]:
    """set_mempolicy(2) with its nodemask."""
    if not policy.nodes:
        return Call("set_mempolicy", (policy.mode_argument, 0, 0)), b""
    mask, maxnode = mempolicy.nodemask(policy.nodes)
    return Call("set_mempolicy", (policy.mode_argument, 0, maxnode), pointers=(1,)), mask


def pack_request(request: Request) -> bytes:
    return json.dumps(
        {
            "process": request.process,
            "tids": request.tids,
            "calls": [(call.name, call.arguments, call.pointers) for call in request.calls],
            "data": request.data.hex(),
            "policy": _text(request.policy),
            "expected": [_text(policy) for policy in request.expected],
            "sweep": request.sweep,
            "once": request.once,
        }
    ).encode()


def unpack_request(packet: bytes) -> Request:
    fields = json.loads(packet)
    return Request(
        process=ProcessId(*fields["process"]),
        tids=tuple(fields["tids"]),
        calls=tuple(Call(name, tuple(args), tuple(pointers)) for name, args, pointers in fields["calls"]),
        data=bytes.fromhex(fields["data"]),
        policy=_policy(fields["policy"]),
        expected=tuple(mempolicy.parse(text) for text in fields["expected"]),
        sweep=fields["sweep"],
        once=fields["once"],
    )


class Packer:
    """Results as lines. Most threads of a process come to the same: all but three numbers is worked out once."""

    def __init__(self) -> None:
        self._common: tuple[object, ...] = ()
        self._packed = b""

    def pack(self, result: ThreadResult) -> bytes:
        tid, outcome, reason, errno, before, after, pause_ns, errnos, stops = result
        common = (outcome, reason, errno, before, after, errnos)
        if common != self._common:
            self._common = common
            self._packed = json.dumps((outcome, reason, errno, _text(before), _text(after), errnos)).encode()
        return b"%d %d %d %b" % (tid, pause_ns, stops, self._packed)


def unpack_result(row: bytes) -> ThreadResult:
    tid, pause_ns, stops, common = row.split(b" ", 3)
    outcome, reason, errno, before, after, errnos = _unpack_common(common)
    return ThreadResult(int(tid), outcome, reason, errno, before, after, int(pause_ns), errnos, int(stops))


_Common = tuple[Outcome, str, int, Mempolicy | None, Mempolicy | None, tuple[int, ...]]


@lru_cache(maxsize=256)
def _unpack_common(text: bytes) -> _Common:
    outcome, reason, errno, before, after, errnos = json.loads(text)
    return Outcome(outcome), reason, errno, _policy(before), _policy(after), tuple(errnos)


@lru_cache(maxsize=256)
def _text(policy: Mempolicy | None) -> str | None:
    return None if policy is None else str(policy)


@lru_cache(maxsize=256)
def _policy(text: str | None) -> Mempolicy | None:
    return None if text is None else mempolicy.parse(text)

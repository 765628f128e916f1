"""Calls that concern regions of a process rather than a thread: what can be asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetmemd.kernel import mempolicy
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.remote.result import Outcome
from hetmemd.remote.wire import Call

CALLS = 128
"""Most in one request, which is one stop: more than it has time for."""
_MASKS = 64
"""Bytes of nodemasks in one request, unless the first is longer: a vdso has little room."""


@dataclass(frozen=True, slots=True)
class Bind:
    """mbind(2): this policy for this range, as it is mapped now. Pages stay where they are."""

    start: int
    length: int
    """Bytes, both multiples of a page."""
    policy: Mempolicy


@dataclass(frozen=True, slots=True)
class HomeNode:
    """set_mempolicy_home_node(2) (5.17): for a range whose policy is BIND or PREFERRED_MANY."""

    start: int
    length: int
    node: int


RegionCall = Bind | HomeNode


@dataclass(frozen=True, slots=True)
class RegionsResult:
    outcome: Outcome
    """APPLIED: all calls were made, whatever came of each."""
    reason: str
    """As of a thread: why the calls that are missing were not made."""
    errno: int
    errnos: tuple[int, ...]
    """Of each call that was made, in the order asked for, 0 where it succeeded; shorter where some were not made."""
    pauses_ns: tuple[int, ...]
    """How long a thread was held, each time that calls were made."""
    stops: int = 0
    """How often a thread was stopped, whatever came of it; at least 1 where it may have been (the tracer died)."""


def calls(requests: Sequence[RegionCall]) -> tuple[tuple[Call, ...], bytes]:
    """The calls for as many of these, from the first on, as go into one request; and their data."""
    made: list[Call] = []
    places: dict[bytes, int] = {}
    data = b""
    for request in requests[:CALLS]:
        if isinstance(request, HomeNode):
            made.append(Call("set_mempolicy_home_node", (request.start, request.length, request.node, 0)))
            continue
        policy = request.policy
        if not policy.nodes:
            made.append(Call("mbind", (request.start, request.length, policy.mode_argument, 0, 0, 0)))
            continue
        mask, maxnode = mempolicy.nodemask(policy.nodes)
        if mask not in places:
            if data and len(data) + len(mask) > _MASKS:
                break
            places[mask] = len(data)
            data += mask
        arguments = (request.start, request.length, policy.mode_argument, places[mask], maxnode, 0)
        made.append(Call("mbind", arguments, pointers=(3,)))
    return tuple(made), data

"""What is to be done about one thread: a pure comparison of what should be with what is (rules T3, T4, I6, L1, L3)."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.policy.effective import Placement
from hetmemd.remote.result import Outcome


class Verb(enum.Enum):
    NOTHING = "nothing"
    """What is, is right, or concerns nobody."""
    APPLY = "apply"
    RESTORE = "restore"
    """The thread carries what hetmemd gave it, and should not: it gets back what was replaced."""
    LEAVE = "leave"
    """The policy is the application's own, and is respected."""


@dataclass(frozen=True, slots=True)
class Decision:
    verb: Verb
    policy: Mempolicy
    """What the thread should carry after it; what it carries, with NOTHING and LEAVE."""
    outcome: Outcome | None
    """The word for `status`; None where no policy reaches the thread."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the ledger knows of one thread."""

    issued: Mempolicy
    replaced: Mempolicy = DEFAULT


_KEEPS_ITS_MASK = (Mode.PREFERRED, Mode.PREFERRED_MANY)
# mpol_rebind_preferred() in mm/mempolicy.c leaves the mask as it was when the policy was set.


def expected(issued: Mempolicy, allowed: frozenset[int]) -> Mempolicy:
    """What numa_maps shows right after `issued` was set by a thread that may use the nodes `allowed` (I6).

    A static mask that `allowed` cuts to nothing shows as all of `allowed`: mpol_rebind_nodemask() in mm/mempolicy.c
    spreads it there once a cpuset has changed.
    """
    if not issued.mode.takes_nodes:
        return issued
    return Mempolicy(issued.mode, nodes_within(issued, allowed) or allowed, issued.flags)


def nodes_within(issued: Mempolicy, allowed: frozenset[int]) -> frozenset[int]:
    """The nodes that the kernel makes of the mask: cut, or folded where they are relative."""
    return Placement(issued).nodes_within(allowed)


def shows(now: Mempolicy, issued: Mempolicy, allowed: frozenset[int]) -> bool:
    """True if a thread that shows `now` was issued `issued`, whatever its cpuset did since."""
    if now == expected(issued, allowed):
        return True
    return (
        issued.mode in _KEEPS_ITS_MASK
        and (now.mode, now.flags) == (issued.mode, issued.flags)
        and nodes_within(issued, allowed) <= now.nodes <= issued.nodes
    )


def decide(
    now: Mempolicy,
    wanted: Mempolicy | None,
    allowed: frozenset[int],
    mark: Mark | None,
    issued: Collection[Mempolicy],
) -> Decision:
    """Compare one thread's policy `now` (as numa_maps shows it) with the one that should be issued.

    `wanted` is None where no policy reaches the thread. `allowed` are the nodes of its `Mems_allowed` that are online
    with memory. `issued` is every value that was issued since boot: it decides ownership where the ledger has no
    `mark` (T4).
    """
    blocked = wanted is not None and wanted.mode.takes_nodes and not nodes_within(wanted, allowed)
    values = [mark.issued] if mark else issued
    ours = now != DEFAULT and any(shows(now, value, allowed) for value in values)

    if wanted is None or blocked:
        outcome = Outcome.DEFERRED if blocked else None
        reason = "no-allowed-node" if blocked else ""
        if ours:
            return Decision(Verb.RESTORE, mark.replaced if mark else DEFAULT, outcome, reason)
        return Decision(Verb.NOTHING, now, outcome, reason)
    if shows(now, wanted, allowed):
        return Decision(Verb.NOTHING, now, Outcome.APPLIED)
    if now == DEFAULT or ours:
        return Decision(Verb.APPLY, wanted, None)
    return Decision(Verb.LEAVE, now, Outcome.FOREIGN, f"own-{now.mode.word}")


def issuable(policy: Mempolicy, weighted: bool) -> Mempolicy:
    """The policy that this kernel can be given: before 6.9 interleave stands for weighted interleave (L5)."""
    if policy.mode is Mode.WEIGHTED_INTERLEAVE and not weighted:
        return Mempolicy(Mode.INTERLEAVE, policy.nodes, policy.flags)
    return policy

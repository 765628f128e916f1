"""What is to be done about one thread: a pure comparison of what should be with what is (rules T3, T4, I6, L1, L3)."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from hetmemd.kernel.mempolicy import DEFAULT, Flag, Mempolicy, Mode
from hetmemd.machine.topology import Machine
from hetmemd.policy.effective import Placement
from hetmemd.remote.readback import is_shown
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
    """What the ledger knows of one thread or region."""

    issued: Mempolicy
    replaced: Mempolicy = DEFAULT
    """What it had before, and gets back (T3)."""
    earlier: Mempolicy | None = None
    """What was issued before, while it is not known whether the newer value arrived."""
    arrived: bool = False
    """The kernel has shown `issued`: whatever else is found from then on was set by somebody else."""
    strikes: int = 0
    """How often that was answered by issuing it again (T4)."""
    at: float = 0.0
    """When it was issued last, seconds of CLOCK_BOOTTIME; 0 where that is not known."""


_KEEPS_ITS_MASK = (Mode.PREFERRED, Mode.PREFERRED_MANY)
# mpol_rebind_preferred() in mm/mempolicy.c leaves the mask as it was when the policy was set.


def nodes_within(issued: Mempolicy, allowed: frozenset[int]) -> frozenset[int]:
    """The nodes that the kernel makes of the mask: cut, or folded where they are relative."""
    return Placement(issued).nodes_within(allowed)


def shows(now: Mempolicy, issued: Mempolicy, allowed: frozenset[int]) -> bool:
    """True if a thread that shows `now` was issued `issued`, whatever its cpuset did since (I6)."""
    if is_shown(issued, now, allowed):
        return True
    if not issued.mode.takes_nodes or (now.mode, now.flags) != (issued.mode, issued.flags):
        return False
    if issued.mode in _KEEPS_ITS_MASK:
        return nodes_within(issued, allowed) <= now.nodes <= issued.nodes
    # A static mask that a cpuset cuts to nothing is spread over all that is allowed: mpol_rebind_nodemask().
    return not nodes_within(issued, allowed) and now.nodes == allowed


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
    `mark` (T4), for values with nodes: `local` alone is too common to be known again.
    """
    blocked = wanted is not None and wanted.mode.takes_nodes and not nodes_within(wanted, allowed)
    if mark:
        values = [value for value in (mark.issued, mark.earlier) if value is not None]
    else:
        values = [value for value in issued if value.mode.takes_nodes]
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


def issuable(policy: Mempolicy, machine: Machine) -> Mempolicy:
    """The policy that this kernel can be given instead (L5): interleave before weighted interleave (6.9), and nothing
    of balancing with a mode that it does not take the flag with."""
    if policy.mode is Mode.WEIGHTED_INTERLEAVE and machine.kernel_weights is None:
        return Mempolicy(Mode.INTERLEAVE, policy.nodes, policy.flags)
    if Flag.NUMA_BALANCING in policy.flags and policy.mode not in machine.features.balancing:
        return Mempolicy(policy.mode, policy.nodes, policy.flags & ~Flag.NUMA_BALANCING)
    return policy

"""What is to be done about one thread: a pure comparison of what should be with what is (rules T3, T4, I6, L1, L3)."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace

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
class Wanted:
    """What should hold for a thread, by its cgroup: the value to issue (None: nothing) and why."""

    policy: Mempolicy | None
    why: str
    """`file:line` of the table, or the rule that takes it away."""
    key: str = ""
    """Which policy that is, to be tried and held as one (`braking.policy_key`)."""
    overrides: bool = False
    """Where the application has a policy of its own, that is replaced (T4)."""
    holds: bool = False
    """Where nothing is wanted: what is there stays all the same (F2)."""
    leaves_task: bool = False
    """Where nothing is wanted: the policy is about regions alone, which `binding` sees to."""
    reason: str = "blocked"
    """Where nothing is wanted though a policy reaches the cgroup: the word for `status`."""


UNDO = Wanted(None, "hetmemctl undo", reason="undone")
"""What it was given is given back on demand, whatever the kill switch says."""


FIRST_WAIT = 1.0
"""Seconds after which a policy is issued again that the application has replaced; doubled each time."""
STRIKES = 5
"""After so many times it is the application's: half a minute, if it never rests."""
FORGIVEN = 600.0
"""Seconds of rest after which the count begins anew: to set a policy at a rare occasion is no contest."""


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


@dataclass(frozen=True, slots=True)
class Decision:
    verb: Verb
    policy: Mempolicy
    """What the thread should carry after it; what it carries, with NOTHING and LEAVE."""
    outcome: Outcome | None
    """The word for `status`; None where no policy reaches the thread."""
    reason: str = ""
    mark: Mark | None = None
    """With APPLY: what the ledger has to know before the act."""


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


def carries(now: Mempolicy, allowed: frozenset[int], mark: Mark | None, issued: Collection[Mempolicy]) -> bool:
    """True if what a thread shows is what hetmemd gave it (T4).

    `issued` is every value that was issued since boot: it decides where the ledger has no `mark`, for values with
    nodes: `local` alone is too common to be known again.
    """
    if mark:
        values = [value for value in (mark.issued, mark.earlier) if value is not None]
        # Where the policy is `default`, what hetmemd gave is the absence of what was replaced.
        return (now != DEFAULT or mark.replaced != DEFAULT) and any(shows(now, value, allowed) for value in values)
    return now != DEFAULT and any(shows(now, value, allowed) for value in issued if value.mode.takes_nodes)


def decide(
    now: Mempolicy,
    wanted: Mempolicy | None,
    allowed: frozenset[int],
    mark: Mark | None,
    issued: Collection[Mempolicy],
    overrides: bool = False,
    at: float = 0.0,
) -> Decision:
    """Compare one thread's policy `now` (as numa_maps shows it) with the one that should be issued.

    `wanted` is None where no policy reaches the thread. `allowed` are the nodes of its `Mems_allowed` that are online
    with memory. `issued` as in `carries`. `overrides` is `foreign = "override"`. `at` is CLOCK_BOOTTIME.
    """
    blocked = wanted is not None and wanted.mode.takes_nodes and not nodes_within(wanted, allowed)
    ours = carries(now, allowed, mark, issued)
    if wanted is None or blocked:
        outcome = Outcome.DEFERRED if blocked else None
        reason = "no-allowed-node" if blocked else ""
        if ours:
            return Decision(Verb.RESTORE, _given_back(mark, allowed), outcome, reason)
        return Decision(Verb.NOTHING, now, outcome, reason)
    if shows(now, wanted, allowed):
        return Decision(Verb.NOTHING, now, Outcome.APPLIED)
    if ours:
        kept, before = (mark.replaced, mark.issued) if mark else (DEFAULT, None)
        return Decision(Verb.APPLY, wanted, None, mark=Mark(wanted, kept, before, at=at))
    if now != DEFAULT and not overrides:
        return Decision(Verb.LEAVE, now, Outcome.FOREIGN, f"own-{now.mode.word}")
    strikes = 0
    if mark and mark.arrived and mark.issued == wanted:
        # It was there, and is not any more: the application has set its own again.
        strikes = mark.strikes + 1
        if mark.strikes >= STRIKES:
            return Decision(Verb.LEAVE, now, Outcome.CONTESTED, "set-again")
        if at - mark.at > FORGIVEN:
            strikes = 1
        elif at - mark.at < FIRST_WAIT * 2**mark.strikes:
            return Decision(Verb.LEAVE, now, Outcome.DEFERRED, "set-again")
    return Decision(Verb.APPLY, wanted, None, mark=Mark(wanted, _remembered(now), strikes=strikes, at=at))


def seen_applied(wanted: Mempolicy, mark: Mark | None, inherited: Mempolicy | None) -> Mark | None:
    """What the ledger has of a thread that shows what it should. `inherited` is what was replaced in the one that made
    it, None where that one carries nothing of ours."""
    if mark is None:
        keeps = inherited is not None and (wanted != DEFAULT or inherited != DEFAULT)
        return Mark(wanted, inherited or DEFAULT, arrived=True) if keeps else None
    if wanted == mark.replaced == DEFAULT:
        return None
    if mark.issued != wanted:
        return Mark(wanted, mark.replaced, arrived=True, at=mark.at)
    return replace(mark, earlier=None, arrived=True)


def inherited(now: Mempolicy, allowed: frozenset[int], maker: Mark | None) -> Mark | None:
    """The mark of a thread that nobody has looked at before: where it carries what the one that made it was given, it
    has that from it, and gets back the same (T3). Values without nodes are too common to be known again (T4)."""
    if maker is None or not maker.issued.mode.takes_nodes or not carries(now, allowed, maker, ()):
        return None
    return Mark(maker.issued, maker.replaced)


def _remembered(now: Mempolicy) -> Mempolicy:
    """A policy as it can be given back later. numa_maps shows the nodes that relative ones came to: those are meant."""
    return replace(now, flags=now.flags & ~Flag.RELATIVE_NODES)


def _given_back(mark: Mark | None, allowed: frozenset[int]) -> Mempolicy:
    """What was replaced, or the default where the kernel would not take that any more."""
    if mark is None or (mark.replaced.mode.takes_nodes and not nodes_within(mark.replaced, allowed)):
        return DEFAULT
    return mark.replaced


def issuable(policy: Mempolicy, machine: Machine) -> Mempolicy:
    """The policy that this kernel can be given instead (L5): interleave before weighted interleave (6.9), and nothing
    of balancing with a mode that it does not take the flag with."""
    if policy.mode is Mode.WEIGHTED_INTERLEAVE and machine.kernel_weights is None:
        return Mempolicy(Mode.INTERLEAVE, policy.nodes, policy.flags)
    if Flag.NUMA_BALANCING in policy.flags and policy.mode not in machine.features.balancing:
        return Mempolicy(policy.mode, policy.nodes, policy.flags & ~Flag.NUMA_BALANCING)
    return policy

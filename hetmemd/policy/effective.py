"""What a policy comes to for one cgroup: the result of resolution, and the only thing other rooms know of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode


@dataclass(frozen=True, slots=True)
class Source:
    """Where something was said: the cgroup that owns the policy, and the file and line of its table."""

    cgroup: str
    """Path below the cgroup2 root, `/` for the root itself."""
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Loser:
    """A table that matched the cgroup as well, and why it does not hold."""

    file: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where memory belongs: one atom (I3)."""

    mempolicy: Mempolicy
    """As it is issued: after the walls, with static nodes, not cut by cpusets (I6)."""
    weights: Mapping[int, int] = field(default_factory=dict)
    """By node, for weighted interleave; empty with other modes."""
    memory: tuple[str, ...] = ("all",)
    home_node: int | None = None

    def shares(self, allowed: frozenset[int]) -> dict[int, float]:
        """The share of pages that each node should hold, of the nodes `allowed` (online with memory, in the cpuset).

        Sums to 1. Empty where the mode asks for no place (default, local) or nothing is allowed. `bind`, `preferred`
        and `preferred-many` ask for no ratio among their nodes: any node of the mask is right (`is_ratio`).
        """
        nodes = sorted(self.nodes_within(allowed))
        if self.mempolicy.mode is Mode.WEIGHTED_INTERLEAVE:
            parts = {node: self._weight(node, allowed) for node in nodes}
        else:
            parts = dict.fromkeys(nodes, 1)
        total = sum(parts.values())
        return {node: part / total for node, part in parts.items()} if total else {}

    @property
    def is_ratio(self) -> bool:
        """Whether the shares are to be met, as opposed to any node of the mask being right."""
        return self.mempolicy.mode in (Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE)

    def nodes_within(self, allowed: frozenset[int]) -> frozenset[int]:
        """The nodes that the kernel uses where only `allowed` may be used; relative ones are folded onto them."""
        if Flag.RELATIVE_NODES in self.mempolicy.flags:
            return fold(self.mempolicy.nodes, allowed)
        return self.mempolicy.nodes & allowed

    def _weight(self, node: int, allowed: frozenset[int]) -> int:
        """Weights of relative nodes are by place; where two places fold onto one node, it is in the mask once."""
        if Flag.RELATIVE_NODES not in self.mempolicy.flags:
            return self.weights[node]
        return max(
            weight for place, weight in self.weights.items() if fold(frozenset((place,)), allowed) == frozenset((node,))
        )


def fold(places: frozenset[int], allowed: frozenset[int]) -> frozenset[int]:
    """Relative nodes as real ones: place n is the n-th allowed node, counted round (mpol_relative_nodemask())."""
    order = sorted(allowed)
    return frozenset(order[place % len(order)] for place in places) if order else frozenset()


@dataclass(frozen=True, slots=True)
class Handling:
    """How pages get there. Rates are bytes per second, `min_age` seconds, `min_region` bytes."""

    existing: str = "rebalance"
    rate: int = 256 << 20
    rate_total: int | None = None
    burst: int | None = None
    tolerance: float = 0.02
    min_region: int = 0
    min_age: float = 0.0
    shared: str = "skip"
    foreign: str = "respect"


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit on moving (I7)."""

    key: str
    rate: int
    """Bytes per second."""
    burst: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Effective:
    """What holds for one cgroup, with its reasons."""

    cgroup: str
    state: str
    """`active`, `blocked`, `conflict` or `default`."""
    placement: Placement | None
    """None in state `default` (nothing is asked of its tasks) and `blocked` (nothing may be applied)."""
    handling: Handling
    own: Source | None
    inherited_from: Source | None
    rules: tuple[str, ...]
    """Numbers of the rules that decided, in order: `("M1", "I1")`."""
    buckets: tuple[Bucket, ...] = ()
    """Every limit that a move in this cgroup must pay, innermost first, without the global one."""
    losers: tuple[Loser, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for a person: why blocked, what was cut."""
    wanted: Placement | None = None
    """What a blocked placement came to, as far as it could be resolved; `placement` in every other state."""
    wall: frozenset[int] | None = None
    """The nodes within which walls keep whatever is issued here (I5); None where none stands."""

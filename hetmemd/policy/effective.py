"""What a policy comes to for one cgroup: the result of resolution, and the only thing other rooms know of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hetmemd.kernel.mempolicy import Mempolicy


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
        raise NotImplementedError


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
    """None in state `default` (nothing is asked of its tasks) and `blocked`."""
    handling: Handling
    own: Source | None
    inherited_from: Source | None
    rules: tuple[str, ...]
    """Numbers of the rules that decided, in order: `("M1", "I1")`."""
    buckets: tuple[Bucket, ...] = ()
    """Every limit that a move in this cgroup must pay, innermost first, without the global one."""
    losers: tuple[Loser, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for a person: why blocked, what was cut, what is not yet supported."""

"""What a policy file says, as values: one `Table` for each `[[policy]]`. Nothing is looked up or decided here."""

from __future__ import annotations

from dataclasses import dataclass, field

from hetmemd.kernel.mempolicy import NO_FLAGS, Flag, Mode
from hetmemd.policy.nodes import NodeSet
from hetmemd.policy.pattern import Pattern

DIRECTORIES = ("/etc/hetmemd.d", "/run/hetmemd.d", "/usr/local/lib/hetmemd.d", "/usr/lib/hetmemd.d")
"""Where policy files are, strongest first (F1)."""

MODES = {mode.word: mode for mode in Mode}
FLAGS = {"static": Flag.STATIC_NODES, "relative": Flag.RELATIVE_NODES, "balancing": Flag.NUMA_BALANCING}
CLASSES = ("heap", "anon", "stack", "exec", "file", "shm", "hugetlb")
COMPUTED_WEIGHTS = ("bandwidth", "capacity", "kernel")

MATCH_KEYS = ("cgroup", "enabled", "inherit", "confine")
PLACEMENT_KEYS = ("mode", "nodes", "weights", "flags", "home_node", "memory")
HANDLING_KEYS = (
    "existing",
    "rate",
    "rate_total",
    "burst",
    "tolerance",
    "min_region",
    "min_age",
    "shared",
    "foreign",
)
KEYS = MATCH_KEYS + PLACEMENT_KEYS + HANDLING_KEYS
WORDS = {
    "inherit": ("subtree", "self"),
    "existing": ("rebalance", "once", "leave"),
    "shared": ("skip", "move"),
    "foreign": ("respect", "override"),
}
RATE_KEYS = ("rate", "rate_total", "burst")
"""Handling that is not inherited key by key: each is a wall of its own (I4, I7)."""


Weights = str | tuple[tuple[NodeSet, int], ...]
"""How weights are asked for: a word, or 1 to 255 by number and selector."""


@dataclass(frozen=True, slots=True)
class Request:
    """The placement half as it was asked for: selectors are evaluated for each cgroup that receives it."""

    mode: Mode
    nodes: NodeSet | None = None
    """None exactly where the mode takes no nodes."""
    weights: Weights = "kernel"
    """With one of `COMPUTED_WEIGHTS` for a word. Means something with weighted interleave only."""
    flags: Flag = NO_FLAGS
    """As asked for: relative and balancing. Static is added when a policy is issued."""
    home_node: int | None = None
    memory: tuple[str, ...] = ("all",)

    @property
    def asks_for_cpus(self) -> bool:
        """Whether another set of CPUs may come to other nodes."""
        named = [self.nodes] if self.nodes else []
        if not isinstance(self.weights, str):
            named += [nodes for nodes, _ in self.weights]
        return any(nodes.asks_for_cpus for nodes in named)


@dataclass(frozen=True, slots=True)
class HandlingRequest:
    """The handling half; None where a key was left out. Units as in `effective.Handling`."""

    existing: str | None = None
    rate: int | None = None
    rate_total: int | None = None
    burst: int | None = None
    tolerance: float | None = None
    min_region: int | None = None
    min_age: float | None = None
    shared: str | None = None
    foreign: str | None = None

    def said(self) -> dict[str, str | int | float]:
        """What was said, by key."""
        return {key: value for key in HANDLING_KEYS if (value := getattr(self, key)) is not None}


@dataclass(frozen=True, slots=True)
class Table:
    """One `[[policy]]`."""

    file: str
    """Full path below the root."""
    line: int
    """Of its header."""
    index: int
    """Which table of its file, from 0."""
    pattern: Pattern
    request: Request | None = None
    """None where the table is handling only."""
    handling: HandlingRequest = field(default_factory=HandlingRequest)
    enabled: bool = True
    inherit: str = "subtree"
    confine: bool = False

    @property
    def name(self) -> str:
        """The file's name: files are ordered by it alone (F1)."""
        return self.file.rpartition("/")[2]

    @property
    def strength(self) -> int:
        """Which directory it is from, 0 the strongest."""
        return strength(self.file)


def strength(file: str) -> int:
    """The place of a file's directory in `DIRECTORIES`; a file from elsewhere counts as the strongest."""
    directory = file.rpartition("/")[0]
    return DIRECTORIES.index(directory) if directory in DIRECTORIES else 0

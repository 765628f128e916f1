"""One placement for one cgroup: selectors evaluated, walls kept, weights computed (I5, I6). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetmemd.kernel import nodelist
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.machine import weights
from hetmemd.machine.topology import Machine
from hetmemd.policy import weighing
from hetmemd.policy.effective import Placement, fold
from hetmemd.policy.faults import shown
from hetmemd.policy.language import Request
from hetmemd.policy.nodes import NodeSet


@dataclass(frozen=True, slots=True)
class Confines:
    """Where the cgroup's tasks can be and allocate: None where nothing is known to confine them."""

    cpus: frozenset[int] | None = None
    mems: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """What a request came to for one cgroup."""

    placement: Placement | None
    """What is issued; None where nothing may be."""
    wanted: Placement | None
    """The same, or as far as it was resolved before something blocked it."""
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _BlockedError(Exception):
    """Nothing can be issued; the text says why."""

    def __init__(self, why: str, rule: str = "") -> None:
        super().__init__(why)
        self.rule = rule


class WallError(Exception):
    """The walls leave nothing of the request (I5)."""


def place(
    request: Request, machine: Machine, confines: Confines, wall: frozenset[int] | None, is_issued: bool = True
) -> Placed:
    """The request for a cgroup so confined; `is_issued`: as the policy of a task, so that new pages are a matter of it.
    `WallError` where the wall gives way to nothing of it."""
    return _Placing(request, machine, confines, wall, is_issued).run()


def wall_nodes(request: Request, machine: Machine, confines: Confines) -> frozenset[int]:
    """The nodes that a confining policy makes a wall of, for the cgroup that sets it."""
    chosen = request.nodes.select(machine, confines.cpus) if request.nodes else frozenset()
    if Flag.RELATIVE_NODES in request.flags:
        return fold(chosen, _allowed(machine, confines))
    return chosen


def within(nodes: frozenset[int], request: Request, machine: Machine, confines: Confines) -> Placed:
    """The request on `nodes` instead of its own: what a wall gives to a cgroup for which its own come to nothing."""
    return _Placing(request, machine, confines, nodes).on(nodes, is_relative=False)


def _allowed(machine: Machine, confines: Confines) -> frozenset[int]:
    return machine.memory_nodes if confines.mems is None else confines.mems & machine.memory_nodes


def _seats(places: frozenset[int], allowed: frozenset[int]) -> dict[int, int]:
    """The node that each place stands for; none where no node is allowed."""
    return {place: node for place in sorted(places) for node in fold(frozenset((place,)), allowed)}


class _Placing:
    def __init__(
        self,
        request: Request,
        machine: Machine,
        confines: Confines,
        wall: frozenset[int] | None,
        is_issued: bool = True,
    ) -> None:
        self._is_issued = is_issued
        self._request = request
        self._machine = machine
        self._confines = confines
        self._wall = wall
        self._folded: Mapping[int, int] = {}
        """Where relative nodes were folded for a wall's sake: the node that each place came to."""
        self._rules: list[str] = []
        self._notes: list[str] = []

    def run(self) -> Placed:
        request = self._request
        if request.nodes is None:
            if self._wall is not None:
                raise WallError(f"mode {request.mode.word} names no nodes")
            return self._done(Placement(Mempolicy(request.mode), memory=request.memory))
        chosen = request.nodes.select(self._machine, self._confines.cpus)
        if not chosen:
            wanted = Placement(Mempolicy(request.mode), memory=request.memory)
            why = f"nodes = {shown(request.nodes.text)} selects no node of this machine"
            if any(selector.startswith("tier:") for selector in request.nodes.selectors):
                tiers = sorted({node.tier for node in self._machine.nodes.values() if node.tier is not None})
                why += f", whose memory tiers are {', '.join(map(str, tiers)) or 'not told by the kernel'}"
            return self._blocked(why, "", wanted)
        is_relative = Flag.RELATIVE_NODES in request.flags
        if self._wall is None:
            return self.on(chosen, is_relative)
        if is_relative:
            self._folded = _seats(chosen, _allowed(self._machine, self._confines))
            chosen = frozenset(self._folded.values())
            self._decided("I5", "relative nodes were folded onto the cpuset and are issued as static, as a wall stands")
        left = chosen & self._wall
        if not left:
            raise WallError(f"nodes {_list(chosen)} are all outside of {_list(self._wall) or 'it'}")
        if left != chosen:
            self._decided("I5", f"the wall cuts nodes {_list(chosen)} to {_list(left)}")
        return self.on(left, is_relative=False)

    def on(self, chosen: frozenset[int], is_relative: bool) -> Placed:
        """The placement on these nodes, which respect the wall."""
        request = self._request
        nodes = chosen
        if not is_relative:
            nodes = chosen & self._machine.memory_nodes
            if nodes != chosen:
                self._decided("I6", f"cut: there is no memory node {_list(chosen - nodes)} on this machine")
        flags = (Flag.RELATIVE_NODES if is_relative else Flag.STATIC_NODES) | request.flags & Flag.NUMA_BALANCING
        placement = Placement(Mempolicy(request.mode, nodes, flags), memory=request.memory, home_node=self._home_node())
        if Flag.NUMA_BALANCING in flags and request.mode not in self._machine.features.balancing:
            self._decided("L5", f"this kernel does not take balancing with {request.mode.word}: it is left out")
        try:
            self._check(nodes, is_relative)
            if request.mode is Mode.WEIGHTED_INTERLEAVE:
                given = self._weights(nodes, is_relative)
                placement = Placement(placement.mempolicy, given, placement.memory, placement.home_node)
        except _BlockedError as error:
            return self._blocked(str(error), error.rule, placement)
        return self._done(placement)

    def _check(self, nodes: frozenset[int], is_relative: bool) -> None:
        if not nodes:
            raise _BlockedError("no node is left to place memory on", "I6")
        if self._request.mode not in self._machine.features.modes | {Mode.WEIGHTED_INTERLEAVE}:
            raise _BlockedError(f"this kernel has no mode {self._request.mode.word}", "L5")
        if is_relative:
            self._seats()
        if not is_relative and self._confines.mems is not None and not nodes & self._confines.mems:
            mems = _list(self._confines.mems)
            raise _BlockedError(f"the cpuset allows nodes {mems}, and none of {_list(nodes)}", "I6")
        if self._request.mode is Mode.PREFERRED and len(nodes) != 1:
            raise _BlockedError(
                f"preferred takes one node, and came to {_list(nodes)}: use preferred-many, or name one"
            )

    def _weights(self, nodes: frozenset[int], is_relative: bool) -> dict[int, int]:
        given = self._request.weights
        seats = _seats(nodes, self._seats()) if is_relative else {node: node for node in nodes}
        if not isinstance(given, str):
            found = self._given_weights(given, seats)
            real = found
        else:
            compute = {"bandwidth": weights.bandwidth, "capacity": weights.capacity, "kernel": weights.kernel}[given]
            # Places in the cpuset have no bandwidth; the nodes they stand for now have.
            try:
                real = compute(self._machine, frozenset(seats.values()))
            except weights.NoFiguresError as error:
                raise _BlockedError(f"weights = {given!r}: {error}") from None
            found = {node: real[seat] for node, seat in sorted(seats.items())}
        if self._is_issued and (not is_relative or isinstance(given, str)):
            self._compare_with_kernel(real)
        return found

    def _seats(self) -> frozenset[int]:
        allowed = _allowed(self._machine, self._confines)
        if not allowed:
            raise _BlockedError("no node with memory is allowed", "I6")
        return allowed

    def _given_weights(self, given: Sequence[tuple[NodeSet, int]], seats: Mapping[int, int]) -> dict[int, int]:
        """Every node needs a weight. Those of relative nodes are by place, also where a wall has them folded."""
        places = {place: node for place, node in self._folded.items() if node in seats} or seats
        try:
            found = weighing.explicit(given, places, self._machine, self._confines.cpus)
        except ValueError as error:
            raise _BlockedError(str(error)) from None
        if missing := sorted(places.keys() - found.keys()):
            raise _BlockedError(f"no weight is given for node {', '.join(map(str, missing))}")
        if places is seats:
            return found
        # As in Placement.shares(): where two places came to one node, the larger weight is its.
        return {node: max(found[place] for place in places if places[place] == node) for node in sorted(seats)}

    def _compare_with_kernel(self, wanted: dict[int, int]) -> None:
        """What the kernel does by itself, said where it differs from what is asked for (L5)."""
        table = self._machine.kernel_weights
        ratio = ":".join(str(weight) for _, weight in sorted(wanted.items()))
        if table is None and not self._machine.knows_weights:
            why = "the kernel's table of weights is not known here, nor its release"
            self._notes.append(f"{why}: where it gives another ratio than {ratio}, that comes about by moving (L5)")
        elif table is None:
            why = "this kernel has no weighted interleave (before 6.9): new pages interleave"
            self._decided("L5", f"{why}, and the ratio {ratio} comes about by moving")
        elif not weights.agrees_with_kernel(self._machine, wanted):
            now = ":".join(str(table.get(node, 1)) for node in sorted(wanted))
            why = f"the kernel's global table says {now}: new pages follow that"
            self._decided("L5", f"{why}, and the ratio {ratio} comes about by moving")

    def _home_node(self) -> int | None:
        home = self._request.home_node
        if home is not None and self._wall is not None and home not in self._wall:
            self._decided("I5", f"home_node {home} is outside of the wall {_list(self._wall)} and left out")
            return None
        if home is not None and home not in self._machine.nodes:
            self._decided("I6", f"home_node {home} does not exist on this machine and is left out")
            return None
        return home

    def _decided(self, rule: str, note: str) -> None:
        if rule not in self._rules:
            self._rules.append(rule)
        self._notes.append(note)

    def _blocked(self, why: str, rule: str = "", wanted: Placement | None = None) -> Placed:
        if rule and rule not in self._rules:
            self._rules.append(rule)
        return Placed(None, wanted, tuple(self._rules), (*self._notes, f"blocked: {why}"))

    def _done(self, placement: Placement) -> Placed:
        return Placed(placement, placement, tuple(self._rules), tuple(self._notes))


def _list(nodes: frozenset[int]) -> str:
    return nodelist.format_list(nodes)

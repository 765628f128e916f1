"""The `nodes` expression: nodelists and selectors, united by `+`, with `!` taking nodes out.

`dram+cpuless`, `0-1,3`, `all!2`, `tier:4`, `!0` (all but node 0). What is taken out is taken out whatever the order.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hetmemd.kernel import nodelist
from hetmemd.machine.topology import Machine
from hetmemd.policy.faults import did_you_mean, shown

WORDS = ("all", "dram", "cpuless", "nearest")
_TIER = re.compile(r"tier:([0-9]{1,6})", re.ASCII)
_SIGN = re.compile(r"\+?!|\+|")
_TERM = re.compile(r"[^+!]+")
_SIGNS = "+!,-:"


_NO_MACHINE = Machine({})


@dataclass(frozen=True, slots=True)
class Term:
    """One part: numbers as written, or a selector (`all`, `dram`, `cpuless`, `nearest`, `tier:4`)."""

    numbers: frozenset[int] = frozenset()
    selector: str = ""

    def select(self, machine: Machine, cpus: frozenset[int] | None) -> frozenset[int]:
        """The nodes it names for a cgroup with these CPUs (None: not confined). Numbers need not exist."""
        if not self.selector:
            return self.numbers
        memory = machine.memory_nodes
        if self.selector == "all":
            return memory
        if self.selector == "dram":
            return frozenset(node for node in memory if machine.nodes[node].cpus)
        if self.selector == "cpuless":
            return frozenset(node for node in memory if not machine.nodes[node].cpus)
        if self.selector == "nearest":
            return machine.nearest(machine.cpus if cpus is None else cpus)
        tier = int(self.selector.removeprefix("tier:"))
        return frozenset(node for node in memory if machine.nodes[node].tier == tier)


@dataclass(frozen=True, slots=True)
class NodeSet:
    """A checked expression. Made by `parse`."""

    text: str
    terms: tuple[Term, ...]
    without: tuple[Term, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Only numbers: the same nodes on every machine and for every cgroup."""
        return all(not term.selector for term in self.terms + self.without)

    @property
    def plainly(self) -> frozenset[int]:
        """The nodes that a plain one means: that needs no machine."""
        return self.select(_NO_MACHINE)

    @property
    def asks_for_cpus(self) -> bool:
        return any(term.selector == "nearest" for term in self.terms + self.without)

    @property
    def numbers(self) -> frozenset[int]:
        """Every node that is named by number, taken in or out."""
        return frozenset(number for term in self.terms + self.without for number in term.numbers)

    @property
    def selectors(self) -> tuple[str, ...]:
        return tuple(term.selector for term in self.terms + self.without if term.selector)

    def select(self, machine: Machine, cpus: frozenset[int] | None = None) -> frozenset[int]:
        """The nodes meant on this machine, for a cgroup with these CPUs. Numbers that do not exist stay in."""
        taken = _union(term.select(machine, cpus) for term in self.terms)
        return taken - _union(term.select(machine, cpus) for term in self.without)


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)


def parse(text: str) -> NodeSet:
    """`ValueError(message, hint)` where it is no such expression."""
    words = text.split()
    rest = "".join(words)
    if not rest:
        raise ValueError("no node is named", 'write "all" for every node with memory')
    if any(left[-1] not in _SIGNS and right[0] not in _SIGNS for left, right in itertools.pairwise(words)):
        # "0 1" is not read as "01", another node.
        raise ValueError(f"{shown(text)} has a space within a part", f"unite parts by +: {shown('+'.join(words))}")
    terms: list[Term] = []
    without: list[Term] = []
    at = 0
    while at < len(rest):
        sign = _SIGN.match(rest, at)
        term = _TERM.match(rest, sign.end()) if sign else None
        if sign is None or term is None or (at == 0 and sign[0] == "+"):
            raise ValueError(
                f"a node is missing beside {shown(rest[at])} in {shown(text)}", 'write it like "dram+cpuless"'
            )
        at = term.end()
        # A comma before a ! belongs to no list: "0-3,!2" is read as "0-3!2".
        word = term[0].removesuffix(",") if rest[at : at + 1] == "!" else term[0]
        (without if "!" in sign[0] else terms).append(_term(word))
    return NodeSet(text, tuple(terms) or (Term(selector="all"),), tuple(without))


def _term(word: str) -> Term:
    if not word:
        raise ValueError("a node is missing before ',!'", 'write it like "all!2"')
    if word in WORDS or _TIER.fullmatch(word):
        return Term(selector=word)
    if word.startswith("tier:"):
        raise ValueError(f"{shown(word)} names no memory tier", 'a tier is named by its number: "tier:4"')
    if word[0].isdigit():
        if re.search(r"[a-z]", word):
            raise ValueError(f"{shown(word)} mixes numbers and selectors", "unite them by +, as in 0-1+cpuless")
        try:
            return Term(numbers=nodelist.parse(word, nodelist.MAX_NUMNODES))
        except ValueError as error:
            raise ValueError(
                f"{shown(word)} is no list of nodes: {str(error)[:100]}", 'write it like "0-1,3"'
            ) from None
    if "," in word and all(part in WORDS or part[:1].isdigit() for part in word.split(",")):
        raise ValueError(f"{shown(word)} is no list of nodes", f"unite selectors by +: {shown(word.replace(',', '+'))}")
    hint = did_you_mean(word, (*WORDS, "tier:0"))
    raise ValueError(f"{shown(word)} selects no nodes", hint or "a nodelist, all, dram, cpuless, tier:N or nearest")

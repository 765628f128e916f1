"""One policy file, from bytes to tables or to everything that is wrong with it (F2: whole or not at all)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hetmemd.kernel.mempolicy import NO_FLAGS, Flag, Mode
from hetmemd.kernel.nodelist import MAX_NUMNODES
from hetmemd.policy import document, language, nodes, pattern, quantity, weighing
from hetmemd.policy.document import Document
from hetmemd.policy.faults import Fault, did_you_mean, shown
from hetmemd.policy.language import HandlingRequest, Request, Table
from hetmemd.policy.locate import Place, line_of

_MOST_FAULTS = 100
"""Of one file: a large file of another kind would have one in every line, each with its search for a hint."""
_SOME = nodes.parse("all")
"""Stands for an expression with a fault: which nodes were meant is not known."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Tables in the order of the file, or faults in the order of their lines, never both."""

    tables: tuple[Table, ...]
    faults: tuple[Fault, ...]


def parse(data: bytes, path: str) -> Parsed:
    """The tables of a file's content. Never raises for the content's sake."""
    found = document.read(data, path)
    return Parsed((), (found,)) if isinstance(found, Fault) else _Reader(path, found).read()


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "an integer"),
    (float, "a float"),
    (list, "an array"),
    (dict, "a table"),
)


def _kind(value: object) -> str:
    return next((word for kind, word in _KINDS if isinstance(value, kind)), "a date or time")


def _is(value: object, *kinds: type) -> bool:
    """isinstance, but a boolean is no number."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


class _EnoughError(Exception):
    """So much is wrong that nobody reads on."""


class _Reader:
    """Checks one file's content; goes on after each fault, so that all are told at once."""

    def __init__(self, path: str, found: Document) -> None:
        self._path = path
        self._content = found.content
        self._lines = found.lines
        self._faults: list[Fault] = []

    def read(self) -> Parsed:
        tables: list[Table | None] = []
        with contextlib.suppress(_EnoughError):
            tables = self._tables()
        if self._faults:
            return Parsed((), tuple(sorted(self._faults, key=lambda fault: fault.line)))
        return Parsed(tuple(table for table in tables if table is not None), ())

    def _tables(self) -> list[Table | None]:
        for key in self._content:
            if key == "policy":
                continue
            known = key in language.KEYS
            hint = "it belongs below a [[policy]] header" if known else did_you_mean(key, ("policy",))
            self._fault((key,), f"unknown key {shown(key)}", hint or "a file holds [[policy]] tables and nothing else")
        found = self._content.get("policy", [])
        if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
            self._fault(("policy",), f"policy is {_kind(found)}, not an array of tables", "write [[policy]]")
            found = []
        return [self._table(index, table) for index, table in enumerate(found)]

    def _fault(self, place: Place, message: str, hint: str = "") -> None:
        line = line_of(self._lines, place)
        if len(self._faults) == _MOST_FAULTS:
            self._faults.append(Fault(self._path, line, f"after {_MOST_FAULTS} faults the rest was not looked at"))
            raise _EnoughError
        self._faults.append(Fault(self._path, line, message, hint))

    def _table(self, index: int, table: dict[str, Any]) -> Table | None:
        at: Place = ("policy", index)
        for key in table:
            if key not in language.KEYS:
                self._fault((*at, key), f"unknown key {shown(key)}", did_you_mean(key, language.KEYS))
        found = self._pattern(at, table)
        enabled = self._flag(at, table, "enabled", True)
        inherit = self._word(at, table, "inherit") or "subtree"
        confine = self._flag(at, table, "confine", False)
        request = self._request(at, table)
        if "mode" not in table:
            for key in language.PLACEMENT_KEYS:
                if key in table:
                    self._fault((*at, key), f"{key} without mode", "placement is one atom: say its mode as well")
        if confine and not (request and request.nodes) and not (request is None and "mode" in table):
            self._fault((*at, "confine"), "confine without nodes", "a wall is made of a policy's nodes")
        handling = self._handling(at, table)
        if found is None:
            return None
        line = line_of(self._lines, at)
        return Table(self._path, line, index, found, request, handling, enabled, inherit, confine)

    # Values of the kinds that keys have. Each gives None after a fault, and where the key was left out.

    def _typed(self, at: Place, table: dict[str, Any], key: str, *kinds: type) -> Any:
        value = table.get(key)
        if value is None or _is(value, *kinds):
            return value
        wanted = " or ".join(dict.fromkeys(word for kind, word in _KINDS if kind in kinds))
        self._fault((*at, key), f"{key} is {_kind(value)}, not {wanted}", _instead(key, value))
        return None

    def _flag(self, at: Place, table: dict[str, Any], key: str, default: bool) -> bool:
        value = self._typed(at, table, key, bool)
        return default if value is None else bool(value)

    def _word(self, at: Place, table: dict[str, Any], key: str) -> str | None:
        value: str | None = self._typed(at, table, key, str)
        known = language.WORDS[key]
        if value is not None and value not in known:
            hint = did_you_mean(value, known) or "one of " + ", ".join(known)
            self._fault((*at, key), f"{key} is {shown(value)}, which is none of its words", hint)
            return None
        return value

    def _quantity(self, at: Place, table: dict[str, Any], key: str, read: Callable[[Any], Any], *kinds: type) -> Any:
        value = self._typed(at, table, key, str, int, *kinds)
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            self._fault((*at, key), f"{key} is {shown(value)}: {error}")
            return None

    def _expression(self, place: Place, text: str, key: str) -> nodes.NodeSet | None:
        try:
            return nodes.parse(text)
        except ValueError as error:
            message, *hint = error.args
            self._fault(place, f"{key}: {message}", *hint)
            return None

    # The keys.

    def _pattern(self, at: Place, table: dict[str, Any]) -> pattern.Pattern | None:
        if "cgroup" not in table:
            self._fault(at, "a policy without cgroup", 'say which: cgroup = "/system.slice/name.service"')
            return None
        text = self._typed(at, table, "cgroup", str)
        if text is None:
            return None
        try:
            return pattern.parse(text)
        except ValueError as error:
            message, *hint = error.args
            self._fault((*at, "cgroup"), f"cgroup is {shown(text)}: {message}", *hint)
            return None

    def _request(self, at: Place, table: dict[str, Any]) -> Request | None:
        """The placement. Everything in it is checked even where the mode is missing or wrong."""
        word = self._typed(at, table, "mode", str)
        mode = language.MODES.get(word) if word is not None else None
        if word is not None and mode is None:
            known = tuple(language.MODES)
            hint = did_you_mean(word, known) or "one of " + ", ".join(known)
            self._fault((*at, "mode"), f"mode is {shown(word)}, which is no mode", hint)
        chosen = self._nodes(at, table, mode)
        flags = self._flags(at, table, mode)
        weights = self._weights(at, table, mode)
        home_node = self._home_node(at, table, mode)
        memory = self._memory(at, table)
        if mode is None or (mode.takes_nodes and chosen is None):
            return None
        if chosen is not None and weights is not None and not isinstance(weights, str):
            self._check_weights(at, chosen, weights)
        return Request(mode, chosen, weights or "kernel", flags, home_node, memory)

    def _nodes(self, at: Place, table: dict[str, Any], mode: Mode | None) -> nodes.NodeSet | None:
        text = self._typed(at, table, "nodes", str)
        if mode is not None and mode.takes_nodes and "nodes" not in table:
            self._fault((*at, "mode"), f"mode {mode.word!r} without nodes", 'such as nodes = "dram"')
        if mode is not None and not mode.takes_nodes and "nodes" in table:
            self._fault((*at, "nodes"), f"mode {mode.word!r} takes no nodes")
            return None
        if text is None:
            return None
        found = self._expression((*at, "nodes"), text, "nodes")
        if found is not None and found.is_plain:
            count = len(found.plainly)
            if count == 0:
                self._fault((*at, "nodes"), f"nodes is {shown(text)}, which leaves no node")
                return None
            if mode is Mode.PREFERRED and count > 1:
                hint = "name one, or use preferred-many"
                self._fault((*at, "nodes"), f"mode 'preferred' takes exactly one node, not {count}", hint)
        return found

    def _flags(self, at: Place, table: dict[str, Any], mode: Mode | None) -> Flag:
        value = self._typed(at, table, "flags", str, list)
        words = [value] if isinstance(value, str) else value or []
        flags = NO_FLAGS
        for index, word in enumerate(words):
            place = (*at, "flags", index)
            if not isinstance(word, str):
                self._fault(place, f"a flag is {_kind(word)}, not a string")
            elif word not in language.FLAGS:
                known = tuple(language.FLAGS)
                hint = did_you_mean(word, known) or "one of " + ", ".join(known)
                self._fault(place, f"{shown(word)} is no flag", hint)
            else:
                flags |= language.FLAGS[word]
        place = (*at, "flags")
        if Flag.STATIC_NODES in flags and Flag.RELATIVE_NODES in flags:
            self._fault(place, "static and relative exclude each other", "static is what is used without relative")
        if flags and mode is not None and not mode.takes_nodes:
            self._fault(place, f"mode {mode.word!r} takes no flags")
        elif Flag.NUMA_BALANCING in flags and mode not in (None, Mode.BIND, Mode.PREFERRED_MANY):
            self._fault(place, "balancing goes with bind and preferred-many only")
        return flags & ~Flag.STATIC_NODES

    def _weights(self, at: Place, table: dict[str, Any], mode: Mode | None) -> language.Weights | None:
        value = self._typed(at, table, "weights", str, dict)
        if value is None:
            return None
        place = (*at, "weights")
        if mode not in (None, Mode.WEIGHTED_INTERLEAVE):
            self._fault(place, f"mode {shown(table['mode'])} takes no weights", "weighted-interleave does")
        if isinstance(value, str):
            if value not in language.COMPUTED_WEIGHTS:
                hint = did_you_mean(value, language.COMPUTED_WEIGHTS) or 'such as "bandwidth" or { 0 = 3, 1 = 1 }'
                self._fault(place, f"weights is {shown(value)}, which computes nothing", hint)
            return value
        if not value:
            self._fault(place, "weights is empty", "such as { dram = 3, cpuless = 1 }")
        found: list[tuple[nodes.NodeSet, int]] = []
        for key, weight in value.items():
            if isinstance(weight, dict) and key == "tier":
                self._fault((*place, key), "a tier as a key needs quotes", '{ "tier:4" = 3 }')
                found.append((_SOME, 0))
                continue
            named = self._expression((*place, key), key, "weights") or _SOME
            taken = 0
            if not _is(weight, int):
                self._fault((*place, key), f"the weight of {shown(key)} is {_kind(weight)}, not an integer")
            elif not 1 <= weight <= 255:
                hint = "to leave a node out, leave it out of nodes" if weight == 0 else "1 to 255"
                self._fault((*place, key), f"the weight of {shown(key)} is {shown(weight)}", hint)
            else:
                taken = weight
            # With a fault it is 0: its nodes are named all the same, and not to be called without a weight.
            found.append((named, taken))
        return tuple(found)

    def _check_weights(self, at: Place, chosen: nodes.NodeSet, weights: tuple[tuple[nodes.NodeSet, int], ...]) -> None:
        """What needs no machine to be seen: nodes without a weight, and nodes with two."""
        given = weighing.by_numbers(weights)
        for node, (first, *others) in given.items():
            for weight in others:
                if first and weight:
                    self._fault((*at, "weights"), f"node {node} has two weights, {first} and {weight}")
        if chosen.is_plain and all(named.is_plain for named, _ in weights) and weights:
            for node in sorted(chosen.plainly - given.keys()):
                self._fault((*at, "weights"), f"node {node} has no weight", f"add {node} = 1")

    def _home_node(self, at: Place, table: dict[str, Any], mode: Mode | None) -> int | None:
        value: int | None = self._typed(at, table, "home_node", int)
        if value is None:
            return None
        if not 0 <= value < MAX_NUMNODES:
            self._fault((*at, "home_node"), f"home_node is {shown(value)}, which is no node")
        if mode not in (None, Mode.BIND, Mode.PREFERRED_MANY):
            self._fault((*at, "home_node"), "home_node goes with bind and preferred-many only")
        return value

    def _memory(self, at: Place, table: dict[str, Any]) -> tuple[str, ...]:
        value = self._typed(at, table, "memory", str, list)
        if value is None:
            return ("all",)
        words = [value] if isinstance(value, str) else value
        place = (*at, "memory")
        known = ("all", *language.CLASSES)
        for index, word in enumerate(words):
            if not isinstance(word, str):
                self._fault((*place, index), f"a class of memory is {_kind(word)}, not a string")
            elif word.removeprefix("!") not in known or word == "!all":
                hint = did_you_mean(word.removeprefix("!"), known) or "one of " + ", ".join(known)
                self._fault((*place, index), f"{shown(word)} is no class of memory", hint)
        texts = list(dict.fromkeys(word for word in words if isinstance(word, str)))
        included = [word for word in texts if not word.startswith("!")]
        excluded = [word for word in texts if word.startswith("!")]
        if not words:
            self._fault(place, "memory names no class", 'leave it out for "all"')
        elif "all" in included and len(included) > 1:
            self._fault(place, "memory names classes beside all", 'either "all" with what is left out, or the classes')
        elif excluded and "all" not in included and excluded[0][1:] in known:
            self._fault(place, "memory leaves classes out of nothing", f'write ["all", "{excluded[0]}"]')
        elif len(set(excluded)) == len(language.CLASSES):
            self._fault(place, "memory leaves out every class")
        return tuple(texts)

    def _handling(self, at: Place, table: dict[str, Any]) -> HandlingRequest:
        tolerance = self._typed(at, table, "tolerance", int, float)
        if tolerance is not None and not 0 <= tolerance <= 1:
            self._fault((*at, "tolerance"), f"tolerance is {shown(tolerance)}", "a share from 0 to 1, such as 0.02")
            tolerance = None
        return HandlingRequest(
            existing=self._word(at, table, "existing"),
            rate=self._quantity(at, table, "rate", quantity.rate),
            rate_total=self._quantity(at, table, "rate_total", quantity.rate),
            burst=self._quantity(at, table, "burst", quantity.burst),
            tolerance=None if tolerance is None else float(tolerance),
            min_region=self._quantity(at, table, "min_region", quantity.size),
            min_age=self._quantity(at, table, "min_age", quantity.duration, float),
            shared=self._word(at, table, "shared"),
            foreign=self._word(at, table, "foreign"),
        )


def _instead(key: str, value: object) -> str:
    """What would be right, for a value of another type: its own words where these only lack their form."""
    if key in language.WORDS:
        return "one of " + ", ".join(language.WORDS[key])
    if key == "weights":
        return "write weights = { 0 = 3, 1 = 1 }"
    if key in ("rate", "rate_total"):
        return f'write {key} = "256MiB/s"'
    if key != "nodes":
        return ""
    if isinstance(value, list) and value and all(_is(item, int) for item in value):
        return f'write {key} = "{",".join(map(shown, value))}"'
    return f'write {key} = "{shown(value)}"' if _is(value, int, float) else ""

"""`hetmemctl bind` and `hetmemctl move`: what a person wants, as values, and what came of it, as text."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from hetmemd.ctl import regions
from hetmemd.ctl.regions import Answer, Show, size
from hetmemd.ctl.text import Paint
from hetmemd.engine import by_hand
from hetmemd.engine.by_hand import Choice
from hetmemd.kernel.mempolicy import Mode
from hetmemd.kernel.root import Root
from hetmemd.memory.scope import CLASSES
from hetmemd.policy import language, nodes, quantity, weighing
from hetmemd.policy.language import Request
from hetmemd.policy.nodes import NodeSet

_RANGE = re.compile(r"(?:0x)?([0-9a-f]+)-(?:0x)?([0-9a-f]+)", re.IGNORECASE)
PAGE = 4096


def run(chosen: argparse.Namespace, show: Show) -> int:
    """0 done, 1 where something failed. `ValueError` for what cannot be meant, `RuntimeError` where it is refused,
    `OSError` where the process is gone or the right is missing."""
    root = Root()
    is_move = chosen.verb == "move"
    choice = choice_of(chosen.what, by_hand.MOVABLE if is_move and chosen.what is None else by_hand.PRIVATE)
    told: dict[str, Any]
    if is_move:
        request = move_request(chosen.nodes, chosen.weights)
        try:
            rate = quantity.rate(chosen.rate)
        except ValueError as error:
            raise ValueError("--rate", repr(chosen.rate), *error.args) from None
        told = by_hand.run_move(root, chosen.pid, choice, request, rate, chosen.dry_run)
    else:
        request = bind_request(chosen.mode, chosen.nodes, chosen.home_node)
        told = by_hand.run_bind(root, chosen.pid, choice, request, chosen.override, chosen.dry_run)
    owner = owner_of(regions.asked(chosen.pid, chosen.socket), is_move)
    if owner:
        print(f"hetmemctl: {owner}", file=sys.stderr)
    told = {"schema": 1, **told, "owner": owner or None}
    show(chosen, told, lambda paint: move_lines(told, paint) if is_move else bind_lines(told, paint))
    return 1 if told.get("failed") or told.get("failed_pages") or told.get("stopped") else 0


def choice_of(text: str | None, kinds: frozenset[str]) -> Choice:
    """`START-END` or `CLASS,...`. `ValueError`."""
    if text is None:
        return Choice(kinds)
    if match := _RANGE.fullmatch(text):
        start, end = int(match[1], 16), int(match[2], 16)
        if start >= end or start % PAGE or end % PAGE:
            raise ValueError(f"{text}: a range begins and ends at pages, and has some")
        return Choice(span=(start, end))
    words = frozenset(text.split(","))
    if unknown := words - CLASSES:
        raise ValueError(f"{', '.join(sorted(unknown))}: neither START-END nor one of {', '.join(sorted(CLASSES))}")
    return Choice(words)


def bind_request(mode: str, where: str | None, home: int | None) -> Request:
    """`ValueError`."""
    if mode not in language.MODES:
        raise ValueError(f"--mode: there is no mode {mode!r}, only {', '.join(language.MODES)}")
    takes = language.MODES[mode]
    if takes.takes_nodes != (where is not None):
        raise ValueError(f"--nodes: {mode} {'needs' if takes.takes_nodes else 'takes no'} nodes")
    if home is not None and takes not in (Mode.BIND, Mode.PREFERRED_MANY):
        raise ValueError("--home-node goes with bind and preferred-many only")
    return Request(takes, _nodes(where) if where else None, home_node=home)


def _nodes(text: str, option: str = "--nodes") -> NodeSet:
    try:
        return nodes.parse(text)
    except ValueError as error:
        raise ValueError(option, *error.args) from None


def move_request(where: str | None, weights: str | None) -> Request:
    """`ValueError`."""
    if weights is None:
        if where is None:
            raise ValueError("--nodes or --weights: where to?")
        return Request(Mode.BIND, _nodes(where))
    if weights in language.COMPUTED_WEIGHTS:
        return Request(Mode.WEIGHTED_INTERLEAVE, _nodes(where or "all"), weights)
    pairs: list[tuple[NodeSet, int]] = []
    for part in weights.split(","):
        name, sign, number = part.partition("=")
        if not sign or not number.isdecimal() or not 1 <= int(number) <= 255:
            raise ValueError(f'--weights: {part!r}: write it like "0=3,1=1", with 1 to 255')
        pairs.append((_nodes(name, "--weights"), int(number)))
    for node, (first, *others) in weighing.by_numbers(pairs).items():
        if others:
            raise ValueError(f"--weights: node {node} has two weights, {first} and {others[0]}")
    named = _nodes(where or "+".join(named.text for named, _ in pairs))
    if besides := weighing.besides(named, pairs):
        raise ValueError(f"--weights: node {min(besides)} is not among --nodes {where}")
    return Request(Mode.WEIGHTED_INTERLEAVE, named, tuple(pairs))


def owner_of(told: Answer | None, is_move: bool) -> str:
    """Whose policy holds for the process, and what that means for what was done by hand; empty where none does."""
    source = (told.get("own") or told.get("inherited_from")) if told else None
    if told is None or source is None or told["state"] == "default":
        return ""
    then = "moves pages back to it" if is_move else "takes what is bound by hand for the application's own"
    return f"the policy {source['file']}:{source['line']} holds for this process: the service {then}"


def bind_lines(told: Answer, paint: Paint) -> list[str]:
    will = "would be bound" if told["dry_run"] else "to bind"
    rows = [f"{paint('title', told['policy'])}: {len(told['ranges'])} ranges, {size(told['bytes'])} {will}"]
    rows += [f"  note: {note}" for note in told["notes"]]
    rows += [f"  {each['start']:x}-{each['end']:x}" for each in told["ranges"]]
    rows += [f"  left: {count} {why}" for why, count in sorted(told["left"].items())]
    if told.get("bound") and told["policy"] != "default":
        rows.append("  to give it back: the same with --mode default --override")
    if "bound" in told:
        stop = f"{told['stops']} stops, the longest {told['longest_stop_seconds'] * 1e3:.2f} ms"
        rows.append(f"bound {told['bound']}, {stop}")
        rows += [f"  failed: {count} {why}" for why, count in sorted(told["failed"].items())]
    return rows


def move_lines(told: Answer, paint: Paint) -> list[str]:
    rows = [f"{paint('title', 'before')}  {_placed(told['before'])}"]
    rows += [f"  note: {note}" for note in told["notes"]]
    rows += [f"  left: {size(count)}, {why}" for why, count in told["left"].items()]
    if told["dry_run"]:
        return [*rows, f"would move {size(told['before']['misplaced_bytes'])}"]
    if "after" in told:
        rows.append(f"{paint('title', 'after')}   {_placed(told['after'])}")
    rows.append(f"moved {size(told['moved_bytes'])} in {told['seconds']:.1f} s")
    rows += [f"  stayed: {count} pages, {why}" for why, count in sorted(told["failed_pages"].items())]
    return rows + ([f"stopped: {told['stopped']}"] if told["stopped"] else [])


def _placed(where: Answer) -> str:
    shares = ", ".join(f"node {node} {size(count)}" for node, count in where["bytes_by_node"].items())
    return f"{shares or 'nothing'}; distance {where['distance']:.3f}"

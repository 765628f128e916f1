"""`[kernel] weights` of the settings, kept in the kernel's global table; what stood there before is given back.

It is written where the setting or the machine changes. What somebody else writes after that stays, and is said: two who
write the same table in turn would move every weighted program's new pages to and fro.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hetmemd.kernel import libc, nodelist
from hetmemd.kernel.root import Root
from hetmemd.machine import table, topology, weights
from hetmemd.machine.table import Table, Write
from hetmemd.machine.topology import Machine
from hetmemd.policy.language import Weights
from hetmemd.policy.weighing import explicit

log = logging.getLogger(__name__)

PATH = "/run/hetmemd/kernel-weights.json"
"""What stood in the table before, until it is given back: it must outlive a restart, and ends with the boot, as the
table does."""
SETTING = "[kernel] weights"


@dataclass(frozen=True, slots=True)
class _Record:
    before: Table
    wanted: Table
    found: Table | None
    """What was read back after the last write; None where a write was begun and nobody read what became of it."""


class KernelTable:
    """The one that writes the table. Never raises for what the kernel says: `notes` has it."""

    def __init__(self, root: Root, is_switched_off: Callable[[], bool]) -> None:
        self._root = root
        self._is_switched_off = is_switched_off
        self.notes: tuple[str, ...] = ()
        """Sentences for `status`: what could not be done, and why."""

    def hold(self, setting: Weights, machine: Machine, insist: bool = False) -> bool:
        """Have the table be what the setting says; True where anything was written, and the machine is another now.

        With `insist`, also where somebody else wrote it since. `leave` gives back what an earlier setting replaced.
        """
        if self._is_switched_off():
            return False
        held, self.notes = self.notes, ()
        record = self._read()
        if setting == "leave" and record is None:
            return False
        now = self._now()
        if now is None:
            self._note(f"{SETTING}: this kernel has no table of interleave weights (6.9 has), so nothing is written")
            return False
        if setting == "leave":
            return self.give_back()
        try:
            wanted = self._wanted(setting, machine, now)
        except weights.NoFiguresError as error:
            self._note(f"{SETTING} = {setting!r}: {error}: the table stays as it is")
            return False
        except ValueError as error:
            self._note(f"{SETTING}: {error}: the table stays as it is")
            return False
        if table.agrees(now, wanted):
            return False
        if record and record.found and record.wanted == wanted and not insist:
            # What could be done was done.
            if table.agrees(now, record.found):
                self.notes = held
            else:
                self._note(f"{SETTING}: somebody else changed the kernel's table; it is left as it is until a reload")
            return False
        before = record.before if record else now
        if not self._keep(_Record(before, wanted, None)):
            return False
        wrote = self._write(table.writes(now, wanted), machine)
        self._keep(_Record(before, wanted, self._now() or now))
        return wrote

    def give_back(self) -> bool:
        """Undo what was written, where nobody wrote over it; True where anything was written."""
        record, now = self._read(), self._now()
        if record is None or now is None or self._is_switched_off():
            return False
        # Amid a write nobody else's word can be told from ours: all of it is given back.
        found = record.found or now
        ours = {
            node: weight
            for node, weight in record.before.weights.items()
            if now.weights.get(node) == found.weights.get(node)
        }
        # That of somebody who turned it since stays turned.
        auto = record.before.auto if now.auto == found.auto else now.auto
        wrote = self._write(table.writes(now, Table(ours, auto)))
        left = self._now()
        if left is None or all(left.weights.get(node, weight) == weight for node, weight in ours.items()):
            self._root.path(PATH).unlink(missing_ok=True)
        return wrote

    def _wanted(self, setting: Weights, machine: Machine, now: Table) -> Table:
        """`NoFiguresError`; `ValueError` where selectors disagree."""
        if not isinstance(setting, str):
            named = frozenset().union(*(nodes.numbers for nodes, _ in setting))
            if missing := named - now.weights.keys():
                self._note(f"{SETTING}: there is no node {nodelist.format_list(missing)} on this machine")
            given = explicit(setting, {node: node for node in now.weights}, machine)
            return Table(given, None if now.auto is None else False)
        try:
            computed = weights.bandwidth(machine, machine.memory_nodes)
        except weights.NoFiguresError:
            if not now.auto:
                raise
            # The kernel may know what sysfs does not tell, and keeps the table by itself.
            return Table({}, True)
        return Table(computed if now.auto is None else {}, None if now.auto is None else True)

    def _write(self, steps: tuple[Write, ...], machine: Machine | None = None) -> bool:
        wrote = False
        for step in steps:
            try:
                table.write(self._root, step)
                wrote = True
            except OSError as error:
                if step == ("auto", "true") and error.errno == errno.ENODEV:
                    wrote = self._by_hand(machine) or wrote
                elif not libc.is_gone(error):
                    self._note(f"{SETTING}: {error.filename} cannot be written: {error.strerror}")
        if wrote:
            now = self._now()
            log.warning("the kernel's table of interleave weights is now %s", _words(now) if now else "gone")
        return wrote

    def _by_hand(self, machine: Machine | None) -> bool:
        """The kernel has no bandwidths to compute from; sysfs may have (of access class 0)."""
        now = self._now()
        if machine is None or now is None:
            self._note("the kernel's table holds its old weights again, and `auto` stays off until the next boot")
            return False
        return self._write(table.writes(now, Table(weights.bandwidth(machine, machine.memory_nodes), False)))

    def _now(self) -> Table | None:
        held, auto = topology.kernel_table(self._root)
        return None if held is None else Table(held, auto)

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, text)

    # -- what stood there before

    def _read(self) -> _Record | None:
        try:
            found = json.loads(self._root.read_bytes(PATH))
            after = found["found"]
            return _Record(_table(found["before"]), _table(found["wanted"]), after and _table(after))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note(f"{PATH} cannot be read ({error}): what the kernel's table held before is not known")
            return None

    def _keep(self, record: _Record) -> bool:
        name = self._root.name(PATH)
        try:
            os.makedirs(os.path.dirname(name), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
            with open(name + ".new", "w", encoding="ascii") as file:
                json.dump(asdict(record), file)
            os.replace(name + ".new", name)  # noqa: PTH105
        except OSError as error:
            self._note(f"{SETTING}: {PATH} cannot be written ({error.strerror}), so the table stays as it is")
            return False
        return True


def _table(found: Mapping[str, Any]) -> Table:
    return Table({int(node): int(weight) for node, weight in found["weights"].items()}, found["auto"])


def _words(held: Table) -> str:
    text = ", ".join(f"node {node}: {weight}" for node, weight in sorted(held.weights.items()))
    return text + (", kept by the kernel itself" if held.auto else "")

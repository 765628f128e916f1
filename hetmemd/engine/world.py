"""What should be: the policy files, the machine and the cgroup tree, resolved. No act, no task.

Every method that reads gives the paths of the cgroups for which something changed, for the engine to look at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hetmemd.engine.binding import Wish
from hetmemd.engine.braking import policy_key
from hetmemd.engine.decide import Wanted, issuable
from hetmemd.engine.regionwise import Asked
from hetmemd.kernel import cgroupfs, nodelist
from hetmemd.kernel.mempolicy import Mempolicy
from hetmemd.kernel.root import Root
from hetmemd.machine import movers, topology
from hetmemd.machine.topology import Machine
from hetmemd.memory.scope import scope
from hetmemd.policy import library
from hetmemd.policy.effective import Effective, Handling, Placement, Source
from hetmemd.policy.resolve import CgroupFacts, resolve
from hetmemd.tasks.tree import CgroupTree

log = logging.getLogger(__name__)

_BUILT_IN = Handling()


class World:
    def __init__(self, root: Root, defaults: Handling) -> None:
        """`NoCgroup2` where there is no cgroup2 mount."""
        self._root = root
        self.defaults = defaults
        self.tree = CgroupTree(root)
        self.machine: Machine = topology.read(root)
        self.movers = movers.read(root)
        """Who else moves pages here (L6)."""
        self.library = library.load(root, keep=True)
        self.holds = bool(self.library.rejected)
        """A file is broken whose last good version, if it had one, is lost: until it is mended or removed nothing that
        an earlier daemon applied is undone, since that may be what the file asked for (F2)."""
        self._patterns = _patterns(self.library)
        self.effective: dict[str, Effective] = {}
        self._facts: dict[str, CgroupFacts] = {}

    @property
    def any_policy(self) -> bool:
        return any(table.enabled for table in self.library.tables)

    # -- reading

    def read_files(self) -> set[str]:
        self.library = library.load(self._root, keep=True, previous=self.library)
        self._patterns = _patterns(self.library)
        held = self.holds
        self.holds = held and bool(self.library.rejected)
        changed = self._resolve(self.tree.by_path)
        return set(self.tree.by_path) if held and not self.holds else changed

    def read_machine(self) -> set[str]:
        self._read_movers()
        machine = topology.read(self._root)
        if machine == self.machine:
            return set()
        if machine.memory_nodes != self.machine.memory_nodes:
            now, before = (nodelist.format_list(each.memory_nodes) or "none" for each in (machine, self.machine))
            log.info("memory nodes are %s now, and were %s: policies are resolved again (I6)", now, before)
        self.machine = machine
        return self._resolve(self.tree.by_path)

    def _read_movers(self) -> None:
        before = {mover.name: mover.is_on for mover in self.movers}
        self.movers = movers.read(self._root)
        for mover in self.movers:
            if mover.is_on and not before[mover.name]:
                log.info("%s is on now, and moves pages too: %s (L6)", mover.name, mover.how)

    def read_cpusets(self, path: str) -> set[str]:
        """The cpuset of `path` changed: all below it are looked at, whatever they come to (I6)."""
        below = [each for each in self.tree.by_path if path in ("/", each) or each.startswith(path + "/")]
        for each in below:
            self._facts.pop(each, None)
        self._resolve(below)
        return set(below)

    def read_cpuset(self, path: str) -> None:
        """For the next resolution: that hotplug changes a cpuset no event tells, and an event may be lost (I6)."""
        if path in self._facts:
            self._facts[path] = self._read_facts(path)

    def look(self, path: str) -> set[str]:
        """The cgroup `path` was made, made again, or removed, or may have been."""
        known = self.tree.by_path.get(path)
        if known is not None and path != "/" and self._is_still(known.id, path):
            return set()
        changes = self.tree.look(path)
        for cgroup in changes.vanished:
            self.effective.pop(cgroup.path, None)
            self._facts.pop(cgroup.path, None)
        appeared = [cgroup.path for cgroup in changes.appeared]
        self._resolve(appeared)
        return set(appeared)

    def _is_still(self, identity: int, path: str) -> bool:
        try:
            return cgroupfs.cgroup_id(self._root, path) == identity
        except OSError:
            return False

    def _resolve(self, paths: Iterable[str]) -> set[str]:
        wanted = list(paths)
        for path in self.tree.by_path if wanted else ():
            if path not in self._facts:
                self._facts[path] = self._read_facts(path)
        results = resolve(self._facts, self.library, self.machine, self.defaults, only=wanted)
        changed = {path for path, effective in results.items() if self.effective.get(path) != effective}
        self.effective.update(results)
        return changed

    def _read_facts(self, path: str) -> CgroupFacts:
        try:
            return CgroupFacts(cgroupfs.effective_cpus(self._root, path), cgroupfs.effective_nodes(self._root, path))
        except OSError:
            return CgroupFacts()  # it is being removed: the tree follows

    # -- asking

    def reached(self, path: str) -> bool:
        """Whether a policy reaches this cgroup, be it one that is blocked."""
        effective = self.effective.get(path)
        return effective is not None and effective.state != "default"

    def placement(self, path: str) -> Placement | None:
        effective = self.effective.get(path)
        return effective.placement if effective else None

    def wanted(self, path: str) -> Wanted:
        """What a thread in this cgroup should be issued, and why."""
        effective = self.effective.get(path)
        if effective is None or effective.placement is None:
            reached = effective is not None and effective.state != "default"
            return Wanted(None, "I6: blocked" if reached else "T3: no policy reaches the cgroup", holds=self.holds)
        source = effective.inherited_from or effective.own
        why = f"{source.file}:{source.line}" if source else ""
        policy = issuable(effective.placement.mempolicy, self.machine)
        key = self._key(policy, effective.placement, effective.handling, source)
        if scope(effective.placement.memory).is_inclusive:
            # The task's policy is left alone: what it has of ours, from before, it is rid of.
            return Wanted(None, why, key, leaves_task=True)
        return Wanted(policy, why, key, overrides=effective.handling.foreign == "override")

    def _key(self, policy: Mempolicy, placement: Placement, handling: Handling, source: Source | None) -> str:
        """Names the table, and all of it that changes what is done to tasks: with any of that it is a new policy."""
        parts = [str(policy)]
        if placement.memory != ("all",):
            parts.append(f"memory {' '.join(placement.memory)}")
        if placement.home_node is not None:
            parts.append(f"home_node {placement.home_node}")
        parts += [
            f"{name} {value}"
            for name in ("min_region", "min_age", "foreign")
            if (value := getattr(handling, name)) != getattr(_BUILT_IN, name)
        ]
        file, line = (source.file, source.line) if source else ("", 0)
        return policy_key(f"{', '.join(parts)} for {self._patterns.get((file, line), '')}", file)

    def wish(self, path: str) -> Wish:
        """What is asked of the regions of a process whose leader is in this cgroup (T1)."""
        wanted, effective = self.wanted(path), self.effective.get(path)
        if effective is None or effective.placement is None:
            return Wish(Asked(None, scope(("all",))), wanted.why, holds=wanted.holds)
        placement, handling = effective.placement, effective.handling
        asked = Asked(
            issuable(placement.mempolicy, self.machine),
            scope(placement.memory),
            placement.home_node,
            handling.min_region,
            handling.foreign == "override",
        )
        return Wish(asked, wanted.why, handling.min_age, key=wanted.key)

    def explain(self, path: str) -> Effective:
        """What holds or would hold for a cgroup, be it there or not (M2)."""
        known = self.effective.get(path)
        if known is not None:
            return known
        facts = {**self._facts, path: CgroupFacts(exists=False)}
        return resolve(facts, self.library, self.machine, self.defaults, only=[path])[path]


def _patterns(found: library.Library) -> dict[tuple[str, int], str]:
    """For which cgroups each table is, by its file and line."""
    return {(table.file, table.line): table.pattern.text for table in found.tables}

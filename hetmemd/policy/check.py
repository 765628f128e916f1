"""What is wrong or doubtful in policy files, for `hetmemctl check`: as any user, with or without the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hetmemd.kernel import nodelist
from hetmemd.kernel.mempolicy import Flag
from hetmemd.kernel.root import Root
from hetmemd.machine import topology
from hetmemd.machine.topology import Machine
from hetmemd.policy import files, library, placing, surroundings, weighing
from hetmemd.policy.faults import Caution, Fault
from hetmemd.policy.language import Table
from hetmemd.policy.library import Library, PolicyFile
from hetmemd.policy.locate import Place, line_of, locate
from hetmemd.policy.matching import Matcher, Reach
from hetmemd.policy.parse import parse
from hetmemd.policy.placing import Confines

Finding = Fault | Caution


def check_files(root: Root, paths: Sequence[str] | None = None) -> list[Finding]:
    """Faults and warnings of the files in force below `root`, or of the files and folders named, in their order.

    Named files are judged by themselves, against the machine and the cgroups below `root`. Nothing is written. What
    cannot be read of that machine is a fault of its own.
    """
    found = library.load(root, keep=False) if paths is None else Library(tuple(_named(root, paths)))
    findings: dict[str, list[Finding]] = {file.path: list(file.faults) for file in found.files}
    notes: list[Finding] = [Caution(*_split(note)) for note in found.notes]
    try:
        machine = topology.read(root)
    except OSError as error:
        machine = Machine({})
        name = root.strip(os.fsdecode(error.filename or ""))
        notes.append(Fault(name, 1, f"{error.strerror}", "files are checked without what depends on the machine"))
    lines = {file.path: _lines(file) for file in found.files}
    for file in found.files:
        findings[file.path] += _about_file(file, found)
        if not file.faults and file.state != "masked":
            for table in file.tables:
                findings[file.path] += _about_table(table, machine, lines[file.path])
    tables = [table for file in found.files if file.state == "in-force" for table in file.tables]
    for caution in _about_matching(tables, found.tables, surroundings.cgroups(root), lines):
        findings[caution.file].append(caution)
    return notes + [each for file in found.files for each in sorted(findings[file.path], key=lambda each: each.line)]


def _split(note: str) -> tuple[str, int, str]:
    path, _, text = note.partition(": ")
    return path, 1, text


def _named(root: Root, paths: Iterable[str]) -> Iterator[PolicyFile]:
    """Files as they were named on the command line, folders as the policy files in them."""
    here = Root()
    for path in paths:
        full = os.path.abspath(path)  # noqa: PTH100 - a link stays a link: it may be a mask
        holder = here if os.path.lexists(full) else root
        if os.path.isdir(holder.name(full)) and not files.is_policy_name(os.path.basename(full)):  # noqa: PTH112, PTH119
            try:
                yield from (_read(holder, f"{full}/{name}") for name in files.names(holder, full))
            except OSError as error:
                yield _fault(full, f"the directory cannot be read: {error.strerror}")
        else:
            yield _read(holder, full)


def _read(root: Root, path: str) -> PolicyFile:
    try:
        content = files.read(root, path)
    except files.UnreadableError as error:
        return _fault(path, str(error))
    if content is None:
        return _fault(path, "does not exist")
    parsed = parse(content.data, path)
    state = "rejected" if parsed.faults else "mask" if content.is_mask else "in-force"
    return PolicyFile(path, state, parsed.faults, parsed.tables, None if parsed.faults else content.data)


def _fault(path: str, message: str) -> PolicyFile:
    return PolicyFile(path, "rejected", (Fault(path, 1, message),))


def _lines(file: PolicyFile) -> Mapping[Place, int]:
    return {} if file.good is None or file.faults else locate(file.good.decode("utf-8"))


def _about_file(file: PolicyFile, found: Library) -> Iterator[Caution]:
    masks = any(other.masked_by == file.path for other in found.files)
    if file.state == "masked":
        yield Caution(file.path, 1, f"masked by {file.masked_by}: nothing of it holds (F1)")
    elif file.state == "mask":
        if not masks:
            yield Caution(file.path, 1, "is a mask, a link to /dev/null, and masks no file of a weaker directory (F1)")
    elif not file.faults and not file.tables and not masks:
        yield Caution(file.path, 1, "says nothing", "a policy begins with [[policy]]")
    if file.state == "last-good":
        yield Caution(file.path, 1, "its last good version is in force until it is mended (F2)")
    elif file.state == "rejected":
        weaker = [other.path for other in found.files if _name(other) == _name(file) and other is not file]
        if weaker:
            yield Caution(file.path, 1, f"was never good, so it does not mask {weaker[0]} (F2)")


def _name(file: PolicyFile) -> str:
    return file.path.rpartition("/")[2]


def _about_table(table: Table, machine: Machine, lines: Mapping[Place, int]) -> Iterator[Caution]:
    """What needs the machine to be seen, and no cgroup."""

    def caution(key: str, message: str, hint: str = "") -> Caution:
        return Caution(table.file, line_of(lines, ("policy", table.index, key)), message, hint)

    request = table.request
    if request is not None and request.nodes is not None and machine.nodes:
        is_relative = Flag.RELATIVE_NODES in request.flags
        missing = request.nodes.numbers - machine.memory_nodes
        if missing and not is_relative:
            has = nodelist.format_list(machine.memory_nodes)
            message = f"there is no memory node {nodelist.format_list(missing)} on this machine"
            yield caution("nodes", message, f"it has {has}; what does not exist is cut (I6)")
        if request.home_node is not None and request.home_node not in machine.nodes:
            yield caution("home_node", f"there is no node {request.home_node} on this machine", "it is left out (I6)")
        if is_relative and any(selector != "all" for selector in request.nodes.selectors):
            yield caution("nodes", "a selector with relative nodes", "relative nodes count places in the cpuset")
        if not isinstance(request.weights, str) and (besides := weighing.besides(request.nodes, request.weights)):
            message = f"weights name node {nodelist.format_list(besides)}, which is not among nodes"
            yield caution("weights", message, "such a weight does nothing")
        placed = placing.place(request, machine, Confines(), None)
        if placed.placement is None:
            key = "weights" if "weight" in placed.notes[-1] else "nodes"
            yield caution(key, placed.notes[-1])


def _about_matching(
    judged: Sequence[Table],
    tables: Sequence[Table],
    cgroups: Sequence[str] | None,
    lines: Mapping[str, Mapping[Place, int]],
) -> Iterator[Caution]:
    """Tables that match no cgroup of the tree at hand, and those that lose wherever they match."""
    if cgroups is None:
        return
    matcher = Matcher(tables)
    reached: dict[str, Reach] = {}
    winners: set[tuple[str, int]] = set()
    lost: dict[tuple[str, int], str] = {}
    for path in cgroups:
        above = None if path == "/" else reached[path.rpartition("/")[0] or "/"]
        match = matcher.match(path, above)
        reached[path] = match.reached
        if match.own is not None:
            winners.add((match.own.file, match.own.line))
        for loser in match.losers:
            lost.setdefault((loser.file, loser.line), loser.why)
    for table in judged:
        key = (table.file, table.line)
        line = line_of(lines.get(table.file, {}), ("policy", table.index, "cgroup"))
        if key in winners or not table.enabled:
            continue
        if key in lost:
            yield Caution(table.file, line, f"holds nowhere: {lost[key]}")
        else:
            message = f"{table.pattern.text!r} matches no cgroup that exists now"
            yield Caution(table.file, line, message, "it will where one appears (M2)")

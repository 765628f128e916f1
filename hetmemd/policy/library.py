"""The policy files of a machine: which are in force, masked or broken, and what stands in for those (F1, F2)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from hetmemd.kernel.root import Root
from hetmemd.policy import files, last_good
from hetmemd.policy.faults import Fault
from hetmemd.policy.language import DIRECTORIES, Table
from hetmemd.policy.parse import Parsed, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file of one directory."""

    path: str
    state: str
    """`in-force`, `last-good` (broken, its last good version holds), `rejected` (never was good), `masked`, or `mask`
    (a link to /dev/null: it says nothing, and masks its namesakes)."""
    faults: tuple[Fault, ...] = ()
    """Of the version on disk; empty where that version is good."""
    tables: tuple[Table, ...] = ()
    """Of the version that holds; those of a masked file are kept for `explain`."""
    good: bytes | None = None
    """The content that holds or would hold, None where no version was ever good."""
    masked_by: str = ""
    """The stronger namesake, for a masked file."""


@dataclass(frozen=True, slots=True)
class Library:
    """All policy files at one moment, by name and then strength. Compares equal where nothing changed."""

    files: tuple[PolicyFile, ...] = ()
    notes: tuple[str, ...] = ()
    """What went wrong beside the files: an unreadable directory, a copy that could not be written."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table in force, those that are switched off among them, in the order of files (F1)."""
        return tuple(table for file in self.files if file.state in ("in-force", "last-good") for table in file.tables)

    @property
    def masked_tables(self) -> tuple[tuple[Table, str], ...]:
        """Tables of masked files, each with the file that masks it, in words."""
        masks = {file.path for file in self.files if file.state == "mask"}
        return tuple(
            (table, file.masked_by + (", a link to /dev/null" if file.masked_by in masks else ""))
            for file in self.files
            if file.state == "masked"
            for table in file.tables
        )

    @property
    def rejected(self) -> tuple[str, ...]:
        """Files that are broken and have no good version: what they said before, if anything, is not known.

        Nothing is undone on their account (F2).
        """
        return tuple(file.path for file in self.files if file.state == "rejected")

    @property
    def on_last_good(self) -> frozenset[str]:
        return frozenset(file.path for file in self.files if file.state == "last-good")


def load(root: Root, keep: bool, previous: Library | None = None) -> Library:
    """Read the four directories. With `keep`, copies of good files are written and those of removed files dropped.

    `previous` stands in for copies that could not be written. Never raises for what is on disk.
    """
    notes: list[str] = []
    known = {file.path: file.good for file in previous.files if file.good is not None} if previous else {}
    loaded: list[PolicyFile] = []
    for directory in DIRECTORIES:
        loaded += _directory(root, directory, keep, known, notes)
    return Library(_masked(loaded), tuple(notes))


def _directory(
    root: Root, directory: str, keep: bool, known: dict[str, bytes], notes: list[str]
) -> Iterable[PolicyFile]:
    try:
        found = [f"{directory}/{name}" for name in files.names(root, directory)]
    except OSError as error:
        # What cannot be listed was not removed: the last good versions of its files stay.
        why = f"the directory cannot be read: {error.strerror}"
        notes.append(f"{directory}: {why}")
        copies = {*_kept(root, directory, notes), *(path for path in known if _directory_of(path) == directory)}
        faults = {path: (Fault(path, 1, why),) for path in copies}
        return [_broken(root, path, faults[path], known, notes) for path in sorted(copies, key=os.fsencode)]
    present = [file for path in found if (file := _file(root, path, keep, known, notes)) is not None]
    if keep:
        _forget(root, directory, {file.path for file in present}, notes)
    return present


def _kept(root: Root, directory: str, notes: list[str]) -> list[str]:
    try:
        return last_good.kept(root, directory)
    except OSError as error:
        notes.append(f"{directory}: the last good copies cannot be read: {error.strerror}: {error.filename}")
        return []


def _directory_of(path: str) -> str:
    return path.rpartition("/")[0]


def _file(root: Root, path: str, keep: bool, known: dict[str, bytes], notes: list[str]) -> PolicyFile | None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return PolicyFile(path, "rejected", (Fault(path, 1, "the file's name is not UTF-8", "rename it"),))
    try:
        content = files.read(root, path)
    except files.BeingWrittenError:
        return _unfinished(root, path, known)
    except files.UnreadableError as error:
        return _broken(root, path, (Fault(path, 1, str(error)),), known, notes)
    if content is None:
        return None
    parsed = _parsed(content.data, path)
    if parsed.faults:
        return _broken(root, path, parsed.faults, known, notes)
    if keep:
        try:
            last_good.keep(root, path, content.data)
        except OSError as error:
            notes.append(f"{path}: no copy of this good version could be kept: {error.strerror}: {error.filename}")
    return PolicyFile(path, "mask" if content.is_mask else "in-force", (), parsed.tables, content.data)


def _parsed(data: bytes, path: str) -> Parsed:
    """`parse`; should it raise, against its word, that is this file's fault and disturbs no other (F2)."""
    try:
        return parse(data, path)
    except Exception as error:
        log.exception("%s cannot be parsed", path)
        return Parsed((), (Fault(path, 1, f"cannot be parsed, by a fault of hetmemd: {type(error).__name__}"),))


def _unfinished(root: Root, path: str, known: dict[str, bytes]) -> PolicyFile | None:
    """A file in the middle of a write: what held before holds on, and where that is nothing, it is not there yet.

    The close that ends the write is seen by itself (F3).
    """
    data = known.get(path)
    if data is None:
        with contextlib.suppress(OSError):
            data = last_good.read(root, path)
    if data is None:
        return None
    parsed = _parsed(data, path)
    return None if parsed.faults else PolicyFile(path, "in-force", (), parsed.tables, data)


def _broken(root: Root, path: str, faults: tuple[Fault, ...], known: dict[str, bytes], notes: list[str]) -> PolicyFile:
    """A file that cannot be taken as it is now: what held before holds on."""
    data = known.get(path)
    if data is None:
        try:
            data = last_good.read(root, path)
        except OSError as error:
            notes.append(f"{path}: its last good copy cannot be read: {error.strerror}: {error.filename}")
    if data is None:
        return PolicyFile(path, "rejected", faults)
    parsed = _parsed(data, path)
    if parsed.faults:
        notes.append(f"{path}: its last good copy is broken: {parsed.faults[0]}")
        return PolicyFile(path, "rejected", faults)
    return PolicyFile(path, "last-good", faults, parsed.tables, data)


def _forget(root: Root, directory: str, present: set[str], notes: list[str]) -> None:
    for path in _kept(root, directory, notes):
        if path not in present:
            try:
                last_good.forget(root, path)
            except OSError as error:
                notes.append(f"{path}: the copy of this removed file stays: {error.strerror}: {error.filename}")


def _masked(loaded: list[PolicyFile]) -> tuple[PolicyFile, ...]:
    """Files by name, and by strength under one name; a file masks its weaker namesakes unless it was never good."""
    by_name: dict[str, list[PolicyFile]] = {}
    for file in loaded:
        by_name.setdefault(file.path.rpartition("/")[2], []).append(file)
    result: list[PolicyFile] = []
    for name in sorted(by_name, key=os.fsencode):
        master = ""
        for file in by_name[name]:
            if master:
                result.append(PolicyFile(file.path, "masked", file.faults, file.tables, file.good, master))
                continue
            result.append(file)
            if file.state != "rejected":
                master = file.path
    return tuple(result)

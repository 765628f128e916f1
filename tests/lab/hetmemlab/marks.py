"""Which guests the tests ask for, read from their `lab` marks; pytest itself runs only in the guest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .say import LabError


@dataclass(frozen=True, order=True)
class Guest:
    """A guest as a mark names it: `lab(kernel="6.1", topology="two-sockets", append="PARAMETERS")`, each optional."""

    kernel: str = "6.12"
    topology: str = "dram+cxl"
    append: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kernel, self.topology, self.append)))


def asked_for(paths: list[Path]) -> list[Guest]:
    """The guests that the tests in these files and folders ask for, the default first, then in order."""
    found = {guest for path in paths for file in _files(path) for guest in _in(file)}
    return sorted(found, key=lambda guest: (guest != Guest(), guest))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(path.rglob("test_*.py"))
    elif path.is_file():
        yield path
    else:
        raise LabError(f"{path}: no such file of tests")


def _in(file: Path) -> Iterator[Guest]:
    """Marks are `pytest.mark.lab` or a call of it whose arguments are literal strings."""
    tree = ast.parse(file.read_text("utf-8"), str(file))
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and node.attr == "lab" and ast.unparse(node) == "pytest.mark.lab"):
            continue
        call = called.get(id(node))
        words: dict[str, str] = {}
        for word in call.keywords if call is not None else ():
            if word.arg not in Guest.__dataclass_fields__ or not (
                isinstance(word.value, ast.Constant) and isinstance(word.value.value, str)
            ):
                raise LabError(f"{file}:{node.lineno}: a mark names {', '.join(Guest.__dataclass_fields__)} as strings")
            words[word.arg] = word.value.value
        yield Guest(**words)

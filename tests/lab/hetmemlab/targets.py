"""The programs of tests/machine/targets, built with the machine's compiler; guests have none."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "machine" / "targets"
FOLDER = "targets"
"""Where a guest finds them, in its working folder."""

_USUAL = ("-pthread",)
_OPTIONS: Mapping[str, Sequence[str]] = {
    "compat": ("-pthread", "-fno-pie", "-no-pie"),
    "thirtytwo": ("-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector"),
}


def build(name: str, program: Path, *options: str) -> None:
    """Compile NAME.c into `program`, with `options` beside its own. `CalledProcessError` with gcc's words on stderr."""
    own = _OPTIONS.get(name, _USUAL)
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", *own, *options, "-o", program, SOURCES / f"{name}.c"], check=True)


def build_all(folder: Path) -> None:
    """Each as a static program, for a guest whose C library is another one."""
    for source in sorted(SOURCES.glob("*.c")):
        build(source.stem, folder / source.stem, "-static")

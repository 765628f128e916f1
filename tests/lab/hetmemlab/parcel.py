"""What goes into a guest: one tar on its second disk, unpacked over / before the job runs."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from .say import LabError

# Where the guest's job finds its things (guest/lab-job).
LAB = PurePosixPath("lab")
WORK = LAB / "work"

# Neither history, nor the host's own environment, nor what programs leave behind.
LEFT_OUT_NAMES = frozenset(
    (".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "node_modules")
)
LEFT_OUT_SUFFIXES = (".pyc", ".egg-info")


def place_of(path: str) -> PurePosixPath:
    """Where a path named on the command line stands in the working folder: relative ones keep their place."""
    pure = PurePosixPath(os.path.normpath(path))
    if pure.is_absolute() or ".." in pure.parts:
        return PurePosixPath(Path(path).resolve().name)
    return pure


def is_left_out(name: str) -> bool:
    """Whether a file or folder of that name stays on the host."""
    return name in LEFT_OUT_NAMES or name.endswith(LEFT_OUT_SUFFIXES)


def pack(
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    checkout: Path,
    extra: Iterable[str],
    staging: Path | None,
    service: bool,
) -> IO[bytes]:
    """The job as a tar in a file without a name, so that nothing can stay behind."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller hands it to QEMU
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if staging is not None:
            _add_tree(tar, staging, PurePosixPath("."), with_caches=True)
            _add_text(tar, LAB / "installed", "")
        _add_tree(tar, checkout, WORK)
        for path in extra:
            if not Path(path).exists():
                raise LabError(f"{path}: no such file to take along")
            _add_tree(tar, Path(path), WORK / place_of(path))
        _add_text(tar, LAB / "command", "".join(f"{word}\0" for word in command))
        lines = (f"{name}={shlex.quote(value)}\n" for name, value in environment.items())
        _add_text(tar, LAB / "environment", "".join(lines))
        if service:
            _add_text(tar, LAB / "service", "")
    file.flush()
    return file


def _add_text(tar: tarfile.TarFile, name: PurePosixPath, text: str) -> None:
    data = os.fsencode(text)
    member = tarfile.TarInfo(str(name))
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))


def _add_tree(tar: tarfile.TarFile, source: Path, name: PurePosixPath, *, with_caches: bool = False) -> None:
    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not with_caches and is_left_out(PurePosixPath(member.name).name):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    tar.add(source, arcname=str(name), filter=keep)

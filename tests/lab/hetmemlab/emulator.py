"""QEMU, unpacked beside the machine's own packages and run from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import sources
from .apt import Apt, Package, is_fresh, write_whole
from .say import LabError, say, stage

PACKAGE = "qemu-system-x86"
# Measured: QEMU 10 lost no guest of 195 with a thread for each CPU, 7.2 lost up to every fourth, and none with one.
SAFE_WITH_THREADS = 10
# The C library must be the one of the machine's own dynamic linker.
MACHINES_OWN = ("libc6", "libgcc-s1", "libstdc++6", "libc-bin")
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True)
class Emulator:
    """An unpacked QEMU: its folder and version as Debian writes it."""

    folder: Path
    version: str

    @property
    def threads(self) -> str:
        """What `-accel tcg,thread=` should be for this version."""
        return "multi" if int(self.version.partition(":")[2].partition(".")[0]) >= SAFE_WITH_THREADS else "single"

    def command(self) -> list[str]:
        """The program with its firmware."""
        command = [str(self.folder / "usr/bin/qemu-system-x86_64")]
        for part in FIRMWARE:
            if (self.folder / part).is_dir():
                command += ["-L", str(self.folder / part)]
        return command

    def environment(self) -> dict[str, str]:
        """The environment that finds its libraries."""
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(str(self.folder / part) for part in LIBRARIES)}


def cached(cache: Path, *, however_old: bool = False) -> Emulator | None:
    """The emulator of the last look at the mirror, if that is recent enough."""
    note = cache / "qemu" / "current.json"
    return _read(note) if note.is_file() and (however_old or is_fresh(note)) else None


def ensure(cache: Path, apt: Apt) -> Emulator:
    """The newest that Debian has for RELEASE, downloaded if need be. The caller holds the cache's lock."""
    note = cache / "qemu" / "current.json"
    has_backports = any(sources.BACKPORTS in line for line in apt.sources())
    packages = apt.resolve([PACKAGE], suite=sources.BACKPORTS if has_backports else None)
    version = next(package.version for package in packages if package.name == PACKAGE)
    parts = [package for package in packages if _belongs(package)]
    name = hashlib.sha256("\n".join(package.file for package in parts).encode()).hexdigest()[:16]
    emulator = Emulator(cache / "qemu" / name, version)
    if not emulator.folder.is_dir():
        _unpack(emulator, parts, apt)
    write_whole(note, json.dumps({"folder": str(emulator.folder), "version": version}))
    if emulator.threads == "single":
        say(f"QEMU {version}: {sources.BACKPORTS} is not to be had, so guests run on one thread and more slowly")
    return emulator


def _read(note: Path) -> Emulator | None:
    data = json.loads(note.read_text("utf-8"))
    emulator = Emulator(Path(data["folder"]), data["version"])
    return emulator if emulator.folder.is_dir() else None


def _belongs(package: Package) -> bool:
    """Only libraries, QEMU and its firmware: the closure also names much that a Debian machine is made of."""
    if package.name in MACHINES_OWN:
        return False
    return package.name.startswith(("lib", "qemu-", "seabios", "ipxe-"))


def _unpack(emulator: Emulator, packages: list[Package], apt: Apt) -> None:
    emulator.folder.parent.mkdir(parents=True, exist_ok=True)
    for torn in emulator.folder.parent.glob("unpacking-*"):
        shutil.rmtree(torn)
    unpacking = Path(tempfile.mkdtemp(prefix="unpacking-", dir=emulator.folder.parent))
    try:
        with stage(f"fetching QEMU {emulator.version} ({len(packages)} packages)"):
            archives = unpacking / "archives"
            archives.mkdir()
            for archive in apt.download(packages, archives):
                subprocess.run(["dpkg-deb", "--extract", str(archive), str(unpacking)], check=True)
            shutil.rmtree(archives)
        found = Emulator(unpacking, emulator.version)
        subprocess.run([*found.command(), "--version"], env=found.environment(), stdout=subprocess.PIPE, check=True)
        unpacking.chmod(0o755)
        unpacking.rename(emulator.folder)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(unpacking, ignore_errors=True)
        raise LabError(f"QEMU {emulator.version} cannot be used: {error}") from error
    except BaseException:
        shutil.rmtree(unpacking, ignore_errors=True)
        raise

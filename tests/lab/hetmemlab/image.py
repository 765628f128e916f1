"""The guest's root disk: all of it but the kernel, so that it serves every kernel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import disk, recipe, sources
from .apt import Apt, Package
from .say import LabError, say, stage
from .store import Shelf

RECIPE = (Path(recipe.__file__), Path(disk.__file__), *(recipe.GUEST / name for name in recipe.GUEST_FILES))


def cached(cache: Path, *, however_old: bool = False) -> Path | None:
    """The disk for what the mirror had at the last look, if that look is recent enough and the disk is there."""
    folder = _shelf(cache).cached(however_old=however_old)
    return folder / "root.img" if folder is not None else None


def ensure(cache: Path, apt: Apt) -> Path:
    """The disk for what the mirror has now, built if need be. The caller holds the cache's lock."""
    packages = apt.resolve(list(recipe.PACKAGES))
    return _shelf(cache).ensure(packages, lambda folder: _build(folder, packages, apt)) / "root.img"


def _shelf(cache: Path) -> Shelf:
    return Shelf(cache, "images", "root", (sources.RELEASE, *recipe.PACKAGES), RECIPE)


def _build(building: Path, packages: Sequence[Package], apt: Apt) -> None:
    root = building / "root"
    with stage(f"installing {len(packages)} packages of {sources.RELEASE}"):
        recipe.bootstrap(root, building, apt)
    _compare_versions(root, packages)
    with stage("writing the image"):
        recipe.furnish(root)
        disk.write(root, building / "root.img")
    shutil.rmtree(root)
    say(f"root disk: {(building / 'root.img').stat().st_blocks * 512 >> 20} MiB")


def _compare_versions(root: Path, packages: Sequence[Package]) -> None:
    """The key tells the truth only if the mirror did not change between the look and the installation."""
    form = "--showformat=${Package} ${Version}\n"
    answer = subprocess.check_output(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", form], text=True)
    installed = dict(line.split(" ") for line in answer.splitlines())
    planned = {package.name: package.version for package in packages}
    for name in recipe.PACKAGES:
        if installed.get(name) != planned[name]:
            raise LabError(
                f"{name} is {installed.get(name)} instead of {planned[name]}",
                hint="the mirror changed in between: run again with HETMEMD_LAB_REFRESH=1",
            )

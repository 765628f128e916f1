"""The guest's disk image: built once for exact versions and this recipe, then only used."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import disk, recipe, sources
from .apt import Apt, Package, is_fresh, write_whole
from .kernels import Kernel
from .say import LabError, say, stage

RECIPE = (Path(recipe.__file__), Path(disk.__file__), *(recipe.GUEST / name for name in recipe.GUEST_FILES))

UNUSED_DAYS = 7


@dataclass(frozen=True)
class Image:
    """A built image: the root disk, the kernel to boot it with, and the kernel's exact version."""

    disk: Path
    vmlinuz: Path
    kernel_version: str


def key(packages: Sequence[Package], recipe: Sequence[bytes]) -> str:
    """What an image is known by: equal exactly when the versions and the recipe are equal."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        digest.update(f"{package.file}\n".encode())
    for part in recipe:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def cached(cache: Path, kernel: Kernel, *, however_old: bool = False) -> Image | None:
    """The image for what the mirror had at the last look, if that look is recent enough and the image is there."""
    plan = _plan_path(cache, kernel)
    if not plan.is_file() or not (however_old or is_fresh(plan)):
        return None
    image = _image_at(_folder(cache, _read_plan(plan)), kernel)
    if image is not None:
        os.utime(image.disk.parent)
    return image


def ensure(cache: Path, kernel: Kernel, apt: Apt) -> Image:
    """The image for what the mirror has now, built if need be. The caller holds the cache's lock."""
    packages = apt.resolve([*recipe.PACKAGES, kernel.package])
    plan = _plan_path(cache, kernel)
    plan.parent.mkdir(parents=True, exist_ok=True)
    write_whole(plan, json.dumps([[p.name, p.version, p.file] for p in packages]))
    folder = _folder(cache, packages)
    image = _image_at(folder, kernel)
    if image is None:
        _build(folder, kernel, packages, apt)
        image = _image_at(folder, kernel)
        _drop_unused(folder)
    if image is None:
        raise LabError(f"{folder} is not a whole image", hint=f"remove {cache} and try again")
    return image


@contextmanager
def lock(cache: Path) -> Iterator[None]:
    """Only one run at a time changes the cache; the others wait and find it done."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage("waiting for another run to build"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _plan_path(cache: Path, kernel: Kernel) -> Path:
    wish = hashlib.sha256(" ".join([sources.RELEASE, kernel.package, *recipe.PACKAGES]).encode()).hexdigest()[:12]
    return cache / "plans" / f"{kernel.name}-{wish}.json"


def _read_plan(plan: Path) -> list[Package]:
    return [Package(*row) for row in json.loads(plan.read_text("utf-8"))]


def _folder(cache: Path, packages: Sequence[Package]) -> Path:
    return cache / "images" / key(packages, [path.read_bytes() for path in RECIPE])


def _image_at(folder: Path, kernel: Kernel) -> Image | None:
    # The folder gets its name when all is in it, so that being there means being whole.
    if not folder.is_dir():
        return None
    return Image(folder / "root.img", folder / "vmlinuz", (folder / "kernel").read_text("utf-8").strip())


def _build(folder: Path, kernel: Kernel, packages: list[Package], apt: Apt) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for torn in folder.parent.glob("building-*"):
        shutil.rmtree(torn)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        root = building / "root"
        with stage(f"installing {len(packages)} packages of {sources.RELEASE}"):
            recipe.bootstrap(root, building, apt)
        _compare_versions(root, packages)
        with stage("unpacking the kernel"):
            recipe.add_kernel(root, building, kernel, packages, apt)
        with stage("writing the image"):
            recipe.furnish(root)
            disk.write(root, building / "root.img")
        shutil.rmtree(root)
        (building / "packages").write_text("".join(f"{package.file}\n" for package in packages), encoding="utf-8")
        building.chmod(0o755)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    say(f"image {folder.name}: {(folder / 'root.img').stat().st_blocks * 512 >> 20} MiB")


def _compare_versions(root: Path, packages: list[Package]) -> None:
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


def _drop_unused(keep: Path) -> None:
    for folder in keep.parent.iterdir():
        if folder != keep and time.time() - folder.stat().st_mtime > UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)

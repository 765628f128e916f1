"""The kernels a guest can run, by the name that stays while Debian's versions move on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import disk
from .apt import Apt, Package
from .say import LabError, stage
from .store import Shelf


class KernelError(Exception):
    """A kernel name that is not in the table."""


@dataclass(frozen=True)
class Kernel:
    """A row: the package whose newest version is meant, where from, and the modules that the guest must load itself.

    `of_newest` asks whatever suites come after the guest's release; otherwise it is the release's own package.
    """

    name: str
    package: str
    modules: tuple[str, ...] = ()
    of_newest: bool = False


@dataclass(frozen=True)
class Boot:
    """A fetched kernel: what QEMU boots, a disk of its modules, and its exact version."""

    vmlinuz: Path
    modules: Path
    version: str


# `package` is Debian's meta package: which kernel it stands for is found when it is fetched. NVMe and ext4 are built
# in, so none needs an initrd. From 6.12 on virtio is as well.
TABLE = (
    Kernel("6.1", "linux-image-cloud-amd64", ("virtio_pci", "virtio_console", "virtio_rng")),
    Kernel("6.12", "linux-image-6.12-cloud-amd64"),
    Kernel("newest", "linux-image-cloud-amd64", of_newest=True),
)
DEFAULT = "6.12"

# A kernel came as one package, until Debian took it apart.
PARTS = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")


def named(name: str) -> Kernel:
    """The row of that name; KernelError with the names there are."""
    for kernel in TABLE:
        if kernel.name == name:
            return kernel
    raise KernelError(f"no kernel {name!r}; there are: {', '.join(kernel.name for kernel in TABLE)}")


def cached(cache: Path, kernel: Kernel, *, however_old: bool = False) -> Boot | None:
    """The kernel that the mirror had at the last look, if that look is recent enough and the kernel is there."""
    folder = _shelf(cache, kernel).cached(however_old=however_old)
    return _boot(folder) if folder is not None else None


def ensure(cache: Path, kernel: Kernel, apt: Apt) -> Boot:
    """The kernel that the mirror has now, fetched if need be. The caller holds the cache's lock."""
    packages = apt.closure(kernel.package, PARTS)
    return _boot(_shelf(cache, kernel).ensure(packages, lambda folder: _unpack(folder, kernel, packages, apt)))


def _shelf(cache: Path, kernel: Kernel) -> Shelf:
    wish = (kernel.package, *kernel.modules)
    return Shelf(cache, "kernels", kernel.name, wish, (Path(__file__), Path(disk.__file__)))


def _boot(folder: Path) -> Boot:
    return Boot(folder / "vmlinuz", folder / "modules.img", (folder / "version").read_text("utf-8").strip())


def _unpack(building: Path, kernel: Kernel, packages: Sequence[Package], apt: Apt) -> None:
    tree = building / "tree"
    with stage(f"fetching kernel {kernel.name}"):
        for archive in apt.download(packages, building):
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(tree)], check=True)
            archive.unlink()
    found = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    if len(found) != 1:
        raise LabError(f"not one kernel but {len(found)} in {[package.file for package in packages]}")
    vmlinuz = found[0].rename(building / "vmlinuz")
    modules = tree / "usr/lib/modules"
    modules.parent.mkdir(parents=True, exist_ok=True)
    # Older packages have them below /lib, and depmod looks in either place.
    if (tree / "lib").is_dir():
        (tree / "lib/modules").rename(modules)
        (tree / "lib").rmdir()
    (tree / "lib").symlink_to("usr/lib")
    (version,) = (path.name for path in modules.iterdir())
    subprocess.run(["depmod", "--basedir", str(tree), version], check=True)
    (modules / "load").write_text("".join(f"{name}\n" for name in kernel.modules), encoding="utf-8")
    disk.write_plain(modules, building / "modules.img")
    (building / "version").write_text(f"{version}\n", encoding="utf-8")
    vmlinuz.chmod(0o644)
    shutil.rmtree(tree)

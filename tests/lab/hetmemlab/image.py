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

from hetmemlab import disk, sources
from hetmemlab.apt import Apt, Package, is_fresh
from hetmemlab.kernels import Kernel
from hetmemlab.say import LabError, say, stage

PACKAGES = (
    "systemd systemd-sysv dbus udev kmod procps iproute2 util-linux numactl curl redis-server redis-tools "
    "python3 python3-numpy python3-pyroute2 python3-pyinotify python3-psutil python3-prometheus-client "
    "python3-systemd python3-pytest python3-hypothesis"
).split()

# What only a person at a terminal reads.
LEFT_OUT = ("man", "doc", "locale", "javascript", "nodejs", "info", "lintian")

# Units that cost start-up time or disturb measurements, and services that are there for tests to start themselves.
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service "
    "systemd-tmpfiles-clean.timer getty@tty1.service serial-getty@ttyS0.service systemd-logind.service "
    "systemd-timesyncd.service systemd-update-utmp.service systemd-update-utmp-runlevel.service "
    "systemd-journal-flush.service systemd-random-seed.service systemd-sysusers.service systemd-udev-trigger.service "
    "modprobe@.service sys-fs-fuse-connections.mount sys-kernel-debug.mount sys-kernel-tracing.mount "
    "dev-hugepages.mount dev-mqueue.mount"
).split()
DISABLED = ("redis-server.service",)

HERE = Path(__file__).resolve().parent
GUEST = HERE.parent / "guest"
RECIPE = (HERE / "image.py", HERE / "disk.py", GUEST / "lab-guest.c", GUEST / "lab-job", GUEST / "lab-job.service")

UNUSED_DAYS = 30


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


def cached(cache: Path, kernel: Kernel) -> Image | None:
    """The image for what the mirror had at the last look, if that look is recent and the image is there."""
    plan = _plan_path(cache, kernel)
    if not is_fresh(plan):
        return None
    image = _image_at(_folder(cache, _read_plan(plan)), kernel)
    if image is not None:
        os.utime(image.disk.parent)
    return image


def ensure(cache: Path, kernel: Kernel, apt: Apt) -> Image:
    """The image for what the mirror has now, built if need be. The caller holds the cache's lock."""
    plan = _plan_path(cache, kernel)
    if is_fresh(plan):
        packages = _read_plan(plan)
    else:
        packages = apt.resolve([*PACKAGES, kernel.package])
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps([[p.name, p.version, p.file] for p in packages]), encoding="utf-8")
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
    wish = hashlib.sha256(" ".join([sources.RELEASE, kernel.package, *PACKAGES]).encode()).hexdigest()[:12]
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
            _bootstrap(root, building, apt)
        _compare_versions(root, packages)
        with stage("unpacking the kernel"):
            _kernel(root, building, packages, apt)
        with stage("writing the image"):
            _furnish(root)
            disk.write(root, building / "root.img")
        shutil.rmtree(root)
        (building / "packages").write_text("".join(f"{package.file}\n" for package in packages), encoding="utf-8")
        building.chmod(0o755)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    say(f"image {folder.name}: {(folder / 'root.img').stat().st_blocks * 512 >> 20} MiB")


def _bootstrap(root: Path, building: Path, apt: Apt) -> None:
    source_list = building / "sources.list"
    lines = [line for line in apt.sources() if sources.BACKPORTS not in line]
    source_list.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = ['APT::Install-Recommends "false"', *apt.acquire_options()]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [f"--aptopt={option}" for option in options]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    log = building / "mmdebstrap.log"
    with log.open("w") as file:
        status = subprocess.run(
            [*command, sources.RELEASE, str(root), str(source_list)], stdout=file, stderr=file, check=False
        ).returncode
    if status != 0:
        raise LabError(f"mmdebstrap failed: {log.read_text('utf-8', 'replace')[-2000:]}")


def _compare_versions(root: Path, packages: list[Package]) -> None:
    """The key tells the truth only if the mirror did not change between the look and the installation."""
    form = "--showformat=${Package} ${Version}\n"
    answer = subprocess.check_output(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", form], text=True)
    installed = dict(line.split(" ") for line in answer.splitlines())
    planned = {package.name: package.version for package in packages}
    for name in PACKAGES:
        if installed.get(name) != planned[name]:
            raise LabError(
                f"{name} is {installed.get(name)} instead of {planned[name]}",
                hint="the mirror changed in between: run again with HETMEMD_LAB_REFRESH=1",
            )


def _kernel(root: Path, building: Path, packages: list[Package], apt: Apt) -> None:
    # The meta package is only a name; the image that it depends on has the version in its own name.
    images = [p for p in packages if p.name.startswith("linux-image-") and p.name[12:13].isdigit() and "+" in p.name]
    if len(images) != 1:
        raise LabError(f"not one kernel image but {[package.name for package in images]}")
    version = images[0].name.removeprefix("linux-image-")
    unpacked = building / "kernel-root"
    for archive in apt.download(images, building):
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(unpacked)], check=True)
        archive.unlink()
    (unpacked / f"boot/vmlinuz-{version}").rename(building / "vmlinuz")
    modules = root / "usr/lib/modules"
    modules.mkdir(exist_ok=True)
    (unpacked / f"lib/modules/{version}").rename(modules / version)
    subprocess.run(["depmod", "--basedir", str(root), version], check=True)
    (building / "kernel").write_text(f"{version}\n", encoding="utf-8")
    shutil.rmtree(unpacked)


def _furnish(root: Path) -> None:
    """What makes the tree a guest: its job, and nothing that it does not need at start."""
    (root / "etc/hostname").write_text("lab\n", encoding="utf-8")
    (root / "etc/machine-id").write_bytes(b"")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    programs = root / "usr/local/sbin"
    shutil.copy2(GUEST / "lab-job", programs)
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-static", "-o", str(programs / "lab-guest"), str(GUEST / "lab-guest.c")], check=True
    )
    units = root / "etc/systemd/system"
    shutil.copy(GUEST / "lab-job.service", units)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "lab-job.service").symlink_to("../lab-job.service")
    for unit in MASKED:
        path = units / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")
    for unit in DISABLED:
        (wanted / unit).unlink(missing_ok=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)


def _drop_unused(keep: Path) -> None:
    for folder in keep.parent.iterdir():
        if folder != keep and time.time() - folder.stat().st_mtime > UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)

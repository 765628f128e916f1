"""What is in the guest's image, and how a tree of packages becomes it. Any change here makes a new image."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from . import sources
from .apt import Apt
from .say import LabError

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "util-linux",
    "numactl",
    "curl",
    "redis-server",
    "redis-tools",
    "python3",
    "python3-numpy",
    "python3-pyroute2",
    "python3-pyinotify",
    "python3-psutil",
    "python3-prometheus-client",
    "python3-systemd",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-hypothesis",
)

# What only a person at a terminal reads.
LEFT_OUT = ("man", "doc", "locale", "javascript", "nodejs", "info", "lintian")

# Units that cost start-up time or disturb measurements, and services that are there for tests to start themselves.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "e2scrub_reap.service",
    "systemd-tmpfiles-clean.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-journal-flush.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "kmod-static-nodes.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-modules-load.service",
    "modprobe@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
)
DISABLED = ("redis-server.service",)

GUEST = Path(__file__).resolve().parent.parent / "guest"
GUEST_FILES = ("lab-guest.c", "lab-job", "lab-job.service")


def bootstrap(root: Path, building: Path, apt: Apt) -> None:
    """Install PACKAGES and what they depend on as a tree in `root`."""
    source_list = building / "sources.list"
    lines = [line for line in apt.sources() if sources.BACKPORTS not in line]
    source_list.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = ['APT::Install-Recommends "false"', *apt.acquire_options()]
    # In namespaces of its own, and ended with this program: nothing goes on alone and no mount is left in the tree.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]
    command += ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [f"--aptopt={option}" for option in options]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    log = building / "mmdebstrap.log"
    with log.open("w") as file:
        status = subprocess.run(
            [*command, sources.RELEASE, str(root), str(source_list)], stdout=file, stderr=file, check=False
        ).returncode
    if status != 0:
        raise LabError(f"mmdebstrap failed: {log.read_text('utf-8', 'replace')[-2000:]}")


def furnish(root: Path) -> None:
    """What makes the tree a guest: its job, and nothing that it does not need at start."""
    (root / "usr/lib/modules").mkdir(exist_ok=True)
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
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for unit in DISABLED:
        (wanted / unit).unlink(missing_ok=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)

"""Real programs from Debian, unpacked into a tree of their own: nothing is installed, no server is started.

`python -m tests.machine.programs` fetches them (about 230 MiB, once): tests/run does. The tree is kept beside the lab's
images, outside of any checkout. A program runs in it by chroot(2), in a mount namespace of its own, as the only view of
the machine's packages that is the same everywhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.hetmemlab import sources
from tests.lab.hetmemlab.apt import Apt, MirrorError
from tests.lab.hetmemlab.cli import cache_folder
from tests.lab.hetmemlab.say import LabError, say, stage
from tests.lab.hetmemlab.store import Shelf, lock

PACKAGES = (
    "dash",
    "gdb-minimal",
    "golang-1.19-go",
    "nginx-light",
    "nodejs",
    "openjdk-17-jre-headless",
    "postgresql-15",
    "redis-server",
    "redis-tools",
    "strace",
    "valgrind",
    "wrk",
)
LEFT_OUT = ("libllvm14", "libz3-4")
"""For PostgreSQL's compiled expressions, which are switched off: 28 MiB."""

NOBODY = 65534
"""Servers refuse to run as root, or need not."""
WORK = "/mnt"
"""Where a test's own folder is, for a program in the tree."""

_PASSWD = f"root:x:0:0::/:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::{WORK}:/bin/sh\n"
_GROUP = f"root:x:0:\nnogroup:x:{NOBODY}:\n"
_FOLDERS = ("dev", "mnt", "proc", "run", "tmp")

# In a namespace of mounts: nothing is left of them when the program has ended.
_ENTER = """
for name in proc dev; do mount --rbind /$name "$0/$name" || exit; done
mount --bind "$1" "$0/mnt" || exit
user=$2; shift 2
exec chroot --userspec="$user:$user" "$0" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/mnt LC_ALL=C.UTF-8 \
    sh -c 'cd /mnt && exec "$@"' sh "$@"
"""


def command(folder: Path, words: Sequence[str | Path], user: int = 0) -> list[str]:
    """How to run `words`, a program by its path in the tree, with `folder` as its working directory."""
    enter = ["unshare", "--mount", "sh", "-c", _ENTER, tree(), folder, user, *words]
    return [str(word) for word in enter]


def tree() -> Path:
    """The tree; `FileNotFoundError` where it has not been fetched."""
    folder = _shelf().cached(however_old=True)
    if folder is None:
        raise FileNotFoundError("programs to test with: fetched by `python -m tests.machine.programs`")
    return folder / "root"


def fetch() -> None:
    """Download and unpack them, where the mirror has others than at the last look. `LabError` where that fails."""
    cache, shelf = cache_folder(), _shelf()
    if shelf.cached() is not None:
        return
    with lock(cache):
        apt = Apt(cache / "apt")
        try:
            with stage("asking the mirror for programs to test with"):
                apt.update(sources.release_lines(sources.of_machine()))
                packages = [package for package in apt.resolve(list(PACKAGES)) if package.name not in LEFT_OUT]
        except MirrorError as error:
            if shelf.cached(however_old=True) is None:
                raise
            say(f"warning: {error}")
            say("warning: going on with the programs of the last look")
            return

        def build(folder: Path) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as downloads:
                with stage(f"downloading {len(packages)} packages"):
                    archives = apt.download(packages, Path(downloads))
                with stage(f"unpacking {sum(archive.stat().st_size for archive in archives) >> 20} MiB"):
                    _unpack(archives, folder / "root")

        shelf.ensure(packages, build)


def _shelf() -> Shelf:
    return Shelf(cache_folder(), "programs", "programs", (*PACKAGES, "without", *LEFT_OUT), (Path(__file__),))


def _unpack(archives: Sequence[Path], root: Path) -> None:
    root.mkdir()
    for archive in archives:
        subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
    for name in _FOLDERS:
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    shell = root / "bin/sh"
    if not shell.exists():
        shell.symlink_to("dash")
    subprocess.run(["ldconfig", "-r", root], check=True)


def main() -> int:
    try:
        fetch()
    except LabError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Real programs from Debian, unpacked into a tree of their own: nothing is installed, no server is started.

`python -m tests.machine.programs` fetches them (about 230 MiB, once): tests/run does. The tree is kept beside the
lab's images, outside of any checkout. A program in it sees nothing else (`real_program`): what is installed on the
machine makes no difference.
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
WORK = "/mnt"
"""Where the working folder of a program that runs in the tree is mounted."""

_PASSWD = f"root:x:0:0::/:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::{WORK}:/bin/sh\n"
_GROUP = f"root:x:0:\nnogroup:x:{NOBODY}:\n"
_FOLDERS = ("dev", "mnt", "proc", "run", "tmp")


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

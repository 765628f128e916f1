"""apt with a configuration of its own: the machine's packages, sources and lists stay as they are."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import sources
from .say import LabError, say

# How long a look at the mirror is good for; until then the image of the last look is used without asking.
LOOK_AGAIN_SECONDS = 7 * 86400


@dataclass(frozen=True, order=True)
class Package:
    """An exact package: its name, and the file name with version and architecture as the mirror has it."""

    name: str
    version: str
    file: str


class Apt:
    """Asks and downloads from the lab's sources, as if nothing were installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backports = False

    def sources(self) -> list[str]:
        """The sources in force, one line each."""
        return self._sources.read_text("utf-8").splitlines()

    def acquire_options(self) -> list[str]:
        """The machine's own way to the mirror (a proxy, for instance), as lines of apt.conf."""
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        wanted = ("Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Retries")
        return [line for line in dump.splitlines() if line.startswith(wanted) and not line.endswith('"";')]

    def update(self) -> None:
        """Bring the lists up to date; without backports when the mirror has none. LabError when it does not answer."""
        for part in ("lists/partial", "archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_bytes(b"")
        self._configuration.write_text(self._settings(), encoding="utf-8")
        for backports in (True, False):
            lines = sources.lab_lines(sources.of_machine(), backports=backports)
            self._sources.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            answer = self._run("apt-get", "update", "--error-on=any")
            if answer.returncode == 0:
                self.backports = backports
                return
            say(f"apt-get update {'with' if backports else 'without'} {sources.BACKPORTS} failed")
        raise LabError(f"the Debian mirror does not answer: {answer.stderr.strip()[-600:]}")

    def resolve(self, names: list[str], *, suite: str | None = None) -> list[Package]:
        """These packages and all that they depend on, in the versions that the mirror has now."""
        target = ["-t", suite] if suite else []
        answer = self._run("apt-get", "install", "--yes", "--print-uris", *target, *names)
        if answer.returncode != 0:
            raise LabError(f"apt finds no way to {' '.join(names)}: {answer.stderr.strip()[-600:]}")
        return parse_uris(answer.stdout)

    def download(self, packages: list[Package], folder: Path) -> list[Path]:
        """Fetch exactly these packages into a folder."""
        wanted = [f"{package.name}={package.version}" for package in packages]
        answer = self._run("apt-get", "download", *wanted, cwd=folder)
        if answer.returncode != 0:
            raise LabError(f"download failed: {answer.stderr.strip()[-600:]}")
        return sorted(folder.glob("*.deb"))

    @property
    def _configuration(self) -> Path:
        return self.folder / "apt.conf"

    @property
    def _sources(self) -> Path:
        return self.folder / "sources.list"

    def _settings(self) -> str:
        """apt.conf: nothing of the machine's but its way to the mirror. Its hooks in particular are not run."""
        nothing = ("Etc::main", "Etc::parts", "Etc::sourceparts", "Etc::preferences", "Etc::preferencesparts")
        lines = [f'Dir::{name} "/dev/null";' for name in nothing]
        lines += [
            f'Dir::Etc::sourcelist "{self._sources}";',
            f'Dir::State::lists "{self.folder}/lists";',
            f'Dir::State::status "{self.folder}/status";',
            f'Dir::Cache "{self.folder}";',
            'APT::Architecture "amd64";',
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
            # The download user may not enter a cache in root's home.
            'APT::Sandbox::User "root";',
        ]
        return "".join(f"{line}\n" for line in [*lines, *self.acquire_options()])

    def _run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C.UTF-8"}
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def parse_uris(text: str) -> list[Package]:
    """The packages in the answer of `apt-get --print-uris`: lines of `'URI' FILE SIZE CHECKSUM`."""
    found = []
    for line in text.splitlines():
        if line.startswith("'"):
            file = line.split()[1]
            name, version, _architecture = file.removesuffix(".deb").split("_")
            found.append(Package(name, version.replace("%3a", ":"), file))
    return sorted(found)


def is_fresh(path: Path) -> bool:
    """Whether an answer of the mirror, kept in that file, may be used without asking again."""
    if os.environ.get("HETMEMD_LAB_REFRESH"):
        return False
    try:
        return time.time() - path.stat().st_mtime < LOOK_AGAIN_SECONDS
    except FileNotFoundError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Write a file that another run may read at any moment: it sees the old text or the new."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)

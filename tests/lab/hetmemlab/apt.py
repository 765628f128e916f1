"""apt with a configuration of its own: the machine's packages, sources and lists stay as they are."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .say import LabError, say

# How long a look at the mirror is good for; until then the image of the last look is used without asking.
LOOK_AGAIN_SECONDS = 7 * 86400


@dataclass(frozen=True, order=True)
class Package:
    """An exact package: its name, and the file name with version and architecture as the mirror has it."""

    name: str
    version: str
    file: str


class MirrorError(LabError):
    """The mirror does not answer."""


class Apt:
    """Asks and downloads from sources of its own, as if nothing were installed."""

    def __init__(self, folder: Path, *, newest: bool = False) -> None:
        """`newest`: the highest version counts whatever suite has it, backports too, which apt ranks low of itself."""
        self.folder = folder
        self._newest = newest

    def sources(self) -> list[str]:
        """The sources in force, one line each."""
        return self._sources.read_text("utf-8").splitlines()

    def acquire_options(self) -> list[str]:
        """The machine's own way to the mirror (a proxy, for instance), as lines of apt.conf."""
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        wanted = ("Acquire::http", "Acquire::https", "Acquire::ftp", "Acquire::Retries", "Acquire::Check-Valid-Until")
        return [line for line in dump.splitlines() if line.startswith(wanted) and not line.endswith('"";')]

    def update(self, choices: Sequence[Sequence[str]]) -> None:
        """Bring the lists up to date from the first of the choices, each lines of sources.list, that answers whole.

        MirrorError when none does.
        """
        for part in ("lists/partial", "archives/partial"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_bytes(b"")
        self._configuration.write_text(self._settings(), encoding="utf-8")
        for number, lines in enumerate(choices):
            self._sources.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            equal = map(_equal, map(_suite, lines)) if self._newest else ()
            self._preferences.write_text("".join(equal), encoding="utf-8")
            answer = self._run("apt-get", "update", "--error-on=any")
            if answer.returncode == 0:
                return
            what = ", ".join(map(_suite, lines))
            say(f"the mirror does not have {what}" + ("; trying with less" if number + 1 < len(choices) else ""))
        raise MirrorError(f"the Debian mirror does not answer: {answer.stderr.strip()[-600:]}")

    def resolve(self, names: list[str], *, suite: str | None = None) -> list[Package]:
        """These packages and all that they depend on, in the versions that the mirror has now."""
        target = ["-t", suite] if suite else []
        answer = self._run("apt-get", "install", "--yes", "--print-uris", *target, *names)
        if answer.returncode != 0:
            raise LabError(f"apt finds no way to {' '.join(names)}: {answer.stderr.strip()[-600:]}")
        return parse_uris(answer.stdout)

    def closure(self, name: str, prefixes: tuple[str, ...]) -> list[Package]:
        """Of a package and all that it depends on, those whose names begin with one of the prefixes.

        Followed by hand: what a kernel depends on besides, such as tools for an initrd, may not even be in the sources.
        """
        found: dict[str, Package] = {}
        open_names = [name]
        while open_names:
            answer = self._run("apt-cache", "show", "--no-all-versions", open_names.pop())
            if answer.returncode != 0:
                raise LabError(f"apt does not know {name}: {answer.stderr.strip()[-600:]}")
            package, depends = parse_show(answer.stdout)
            found[package.name] = package
            open_names += [other for other in depends if other.startswith(prefixes) and other not in found]
        return sorted(found.values())

    def download(self, packages: Sequence[Package], folder: Path) -> list[Path]:
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
    def _preferences(self) -> Path:
        return self.folder / "preferences"

    @property
    def _sources(self) -> Path:
        return self.folder / "sources.list"

    def _settings(self) -> str:
        """apt.conf: nothing of the machine's but its way to the mirror. Its hooks in particular are not run."""
        nothing = ("Etc::main", "Etc::parts", "Etc::sourceparts", "Etc::preferencesparts")
        lines = [f'Dir::{name} "/dev/null";' for name in nothing]
        lines += [
            f'Dir::Etc::sourcelist "{self._sources}";',
            f'Dir::Etc::preferences "{self._preferences}";',
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


def _suite(line: str) -> str:
    return line.split()[-2]


def _equal(suite: str) -> str:
    """A stanza of apt's preferences: this suite ranks as any other (apt_preferences(5))."""
    return f"Package: *\nPin: release n={suite}\nPin-Priority: 500\n\n"


def parse_uris(text: str) -> list[Package]:
    """The packages in the answer of `apt-get --print-uris`: lines of `'URI' FILE SIZE CHECKSUM`."""
    found = []
    for line in text.splitlines():
        if line.startswith("'"):
            file = line.split()[1]
            name, version, _architecture = file.removesuffix(".deb").split("_")
            found.append(Package(name, version.replace("%3a", ":"), file))
    return sorted(found)


def parse_show(text: str) -> tuple[Package, list[str]]:
    """A package and the names that it depends on, from the answer of `apt-cache show` for one version."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
    depends = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}".replace("|", ",").split(",")
    package = Package(fields["Package"], fields["Version"], fields["Filename"].rpartition("/")[2])
    return package, [word.split()[0] for word in depends if word.strip()]


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

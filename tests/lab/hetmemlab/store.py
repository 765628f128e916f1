"""What was made once for exact versions and a recipe, and is only used from then on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .apt import Package, is_fresh, write_whole
from .say import stage

UNUSED_DAYS = 7


def key(packages: Sequence[Package], recipe: Sequence[bytes]) -> str:
    """What a thing is known by: equal exactly when the versions and the recipe are equal."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        digest.update(f"{package.file}\n".encode())
    for part in recipe:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


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


@dataclass(frozen=True)
class Shelf:
    """Folders of one kind: `folder` holds a subfolder for each key, and `plans` what the mirror had at the last look.

    `name` and `wish` say what was asked of the mirror; `recipe` are the files that say how a folder is made.
    """

    cache: Path
    kind: str
    name: str
    wish: tuple[str, ...]
    recipe: tuple[Path, ...]

    def cached(self, *, however_old: bool = False) -> Path | None:
        """The folder for what the mirror had at the last look, if that look is recent enough and the folder there."""
        plan = self._plan
        if not plan.is_file() or not (however_old or is_fresh(plan)):
            return None
        folder = self._folder([Package(*row) for row in json.loads(plan.read_text("utf-8"))])
        # It gets its name when all is in it, so that being there means being whole.
        if not folder.is_dir():
            return None
        os.utime(folder)
        return folder

    def ensure(self, packages: Sequence[Package], build: Callable[[Path], None]) -> Path:
        """The folder for these packages, filled by `build` if need be. The caller holds the cache's lock."""
        self._plan.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._plan, json.dumps([[p.name, p.version, p.file] for p in packages]))
        folder = self._folder(packages)
        if not folder.is_dir():
            _make(folder, build)
            (folder / "packages").write_text("".join(f"{package.file}\n" for package in packages), encoding="utf-8")
            _drop_unused(folder)
        return folder

    @property
    def _plan(self) -> Path:
        wish = hashlib.sha256(" ".join(self.wish).encode()).hexdigest()[:12]
        return self.cache / "plans" / f"{self.name}-{wish}.json"

    def _folder(self, packages: Sequence[Package]) -> Path:
        return self.cache / self.kind / key(packages, [path.read_bytes() for path in self.recipe])


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for torn in folder.parent.glob("building-*"):
        shutil.rmtree(torn)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        build(building)
        building.chmod(0o755)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _drop_unused(keep: Path) -> None:
    for folder in keep.parent.iterdir():
        if folder != keep and time.time() - folder.stat().st_mtime > UNUSED_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)

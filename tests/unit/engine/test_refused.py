"""What may not be touched, from the word of the brakes to the pages: threads are not called, and no page is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from hetmemd.engine import balancing
from hetmemd.engine.braking import Brakes
from hetmemd.engine.decide import Wanted
from hetmemd.engine.holds import Hold
from hetmemd.engine.ledger import BOOT_ID, Ledger
from hetmemd.engine.record import Record
from hetmemd.engine.steering import Steering
from hetmemd.kernel.mempolicy import Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.policy import pattern
from hetmemd.remote.result import Outcome
from hetmemd.settings import BrakeSettings

WANTED = Wanted(Mempolicy(Mode.BIND, frozenset({1})), "/etc/hetmemd.d/a.toml:1", "key")
PROCESS = ProcessId(7, 1007)


def process(root: Root, policy: str) -> None:
    """One thread, whose policy is shown as that, of user 1000."""
    folder = root.path("/proc/7")
    (folder / "task/7").mkdir(parents=True)
    for place in (folder, folder / "task/7"):
        (place / "stat").write_text(f"7 (db) S {' '.join(['0'] * 18)} 1007 4096 1\n")
        (place / "status").write_text("Name:\tdb\nUid:\t1000\t1000\t1000\t1000\nMems_allowed_list:\t0-1\n")
        (place / "numa_maps").write_text(f"400000 {policy} file=/bin/db mapped=1 N0=1\n")
        (place / "cgroup").write_text("0::/a\n")
    root.path("/bin").mkdir()
    root.path("/bin/db").touch()
    (folder / "exe").symlink_to(root.path("/bin/db"))


class Nobody:
    """Who is told of what was done, and does nothing."""

    def application(self, *told: object) -> None:
        pass


def looked_at(top: Path, policy: str, brake: Callable[[Brakes, Path], None]) -> Record:
    """The process after a look, with the brakes so; nobody would come back whom an act asks for anything."""
    root = Root(top)
    root.path(BOOT_ID).parent.mkdir(parents=True)
    root.path(BOOT_ID).write_text("one\n")
    process(root, policy)

    async def look() -> Record:
        ledger = Ledger(root)
        brakes = Brakes(root, ledger, BrakeSettings(), lambda: None, lambda pid: None)
        brake(brakes, root.path("/bin/db"))
        nobody = cast(Any, Nobody())
        steering = Steering(
            root,
            ledger,
            nobody,
            lambda path: WANTED,
            lambda: frozenset({0, 1}),
            lambda path: False,
            lambda: False,
            brakes,
            nobody,
        )
        record = Record(PROCESS, "db", "/a", None)
        try:
            await steering.look(record)
        finally:
            steering.close()
            brakes.close()
            ledger.close()
        return record

    return asyncio.run(look())


def denies_the_executable(brakes: Brakes, path: Path) -> None:
    brakes.configure(BrakeSettings(deny_executables=(pattern.parse(str(path)),)))


def denies_the_user(brakes: Brakes, path: Path) -> None:
    brakes.configure(BrakeSettings(deny_users=(1000,)))


def holds_the_executable(brakes: Brakes, path: Path) -> None:
    found = path.stat()
    brakes.holds.add(Hold("executable", str(path), "process 6 died", 0.0, found.st_dev, found.st_ino))


@pytest.mark.parametrize("policy", ["bind:1", "default"], ids=["has its policy", "has none"])
@pytest.mark.parametrize(
    ("brake", "reason"),
    [
        (denies_the_executable, "denied-executable"),
        (denies_the_user, "denied-user"),
        (holds_the_executable, "crashed"),
    ],
)
def test_who_is_denied_or_held_keeps_its_threads_and_pages_as_they_are(
    tmp_path: Path, brake: Callable[[Brakes, Path], None], reason: str, policy: str
) -> None:
    record = looked_at(tmp_path, policy, brake)
    assert (record.outcome, record.reason, record.refusal) == (Outcome.REFUSED, reason, reason)
    assert not balancing._may_move(record)


def test_another_that_has_its_policy_is_moved(tmp_path: Path) -> None:
    record = looked_at(tmp_path, "bind:1", lambda brakes, path: None)
    assert (record.outcome, record.reason) == (Outcome.APPLIED, "")
    assert balancing._may_move(record)


def test_one_whose_huge_pages_would_not_be_found_is_not_bound(tmp_path: Path) -> None:
    """They are promised, and the nodes of the bind have none: its next page fault would be its last."""
    folder = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "resv_hugepages").write_text("1")

    def has_huge_pages(brakes: Brakes, path: Path) -> None:
        mapping = "7f0000000000-7f0000200000 rw-p 00000000 00:01 5 /anon_hugepage (deleted)\n"
        vdso = "7fff00000000-7fff00002000 r-xp 00000000 00:00 0 [vdso]\n"
        for place in (tmp_path / "proc/7", tmp_path / "proc/7/task/7"):
            (place / "numa_maps").write_text("7f0000000000 default huge\n7fff00000000 default\n")
            (place / "maps").write_text(mapping + vdso)
            (place / "mountinfo").write_text("")

    record = looked_at(tmp_path, "default", has_huge_pages)
    assert (record.outcome, record.reason) == (Outcome.REFUSED, "no-huge-pages")
    assert not balancing._may_move(record)

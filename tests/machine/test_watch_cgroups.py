"""The cgroup tree of this machine's kernel, watched by inotify."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hetmemd.tasks import scan
from hetmemd.tasks.tree import CgroupTree
from hetmemd.watch.cgroups import CgroupSource
from hetmemd.watch.hint import CgroupGone, CgroupHint, CpusetHint, Hint, LostHint
from tests.machine.eyes.harness import IDLE, ROOT, OwnCgroup, Seen, build, move, number, running

pytestmark = pytest.mark.root


def watch(seen: Seen) -> CgroupSource:
    source = CgroupSource(ROOT, asyncio.get_running_loop(), seen.deliver)
    source.start()
    assert source.up, source.note
    assert source.note == ""
    return source


def test_a_moved_process_is_hinted_and_found(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        path = own.make("a")
        source = watch(seen)
        with running(*IDLE) as process:
            number(process)
            move(process.pid, path)
            await seen.hint(CgroupHint(path))
            tree = CgroupTree(ROOT)
            tree.scan()
            assert scan.processes(ROOT, tree.by_path[path]) == [process.pid]
        source.close()

    asyncio.run(main())


def test_a_process_made_in_an_empty_cgroup_is_hinted(own: OwnCgroup, tmp_path: Path) -> None:
    """CLONE_INTO_CGROUP writes no file: only the kernel's own notification of cgroup.events tells."""

    async def main() -> None:
        seen = Seen()
        path = own.make("a")
        source = watch(seen)
        with running(build("into", tmp_path), own.directory / "a") as process:
            pid = number(process)
            await seen.hint(CgroupHint(path))
            tree = CgroupTree(ROOT)
            tree.scan()
            assert scan.processes(ROOT, tree.by_path[path]) == [pid]
        source.close()

    asyncio.run(main())


def test_every_process_of_a_burst_of_new_cgroups_is_found(own: OwnCgroup, tmp_path: Path) -> None:
    """300 cgroups with a process each, made faster than they can be watched: looking where hinted finds all."""

    async def main() -> None:
        seen = Seen()
        source = watch(seen)
        tree = CgroupTree(ROOT)
        tree.scan()
        found: set[int] = set()
        looked = 0

        def all_found(hints: list[Hint]) -> bool:
            nonlocal looked
            for hint in hints[looked:]:
                if isinstance(hint, CgroupHint):
                    tree.look(hint.path)
                    if hint.path in tree.by_path:
                        found.update(scan.processes(ROOT, tree.by_path[hint.path]))
            looked = len(hints)
            return pids <= found

        with running(build("burst", tmp_path), own.directory, "300") as process:
            assert process.stdout is not None
            lines = [line.strip() for line in iter(process.stdout.readline, "done\n")]
            pids = {int(line) for line in lines}
            assert len(pids) == 300
            await seen.until(all_found)
        assert not source.losses
        source.close()

    asyncio.run(main())


def test_hostile_names_survive(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        source = watch(seen)
        names = [b"\xff\xfe", b"caf\xe9 \x1b[31m", b"a\x1cb", b" (deleted)", b"*?[]", b"%s%n", b"x" * 255]
        below = [own.make(os.fsdecode(name)) and own.make(os.fsdecode(name + b"/\x80below")) for name in names]
        await seen.hint(CgroupHint(own.make("plain")))
        assert {CgroupHint(path) for path in below} <= set(seen.hints)
        tree = CgroupTree(ROOT)
        tree.scan()
        with running(*IDLE) as process:
            number(process)
            for path in below:
                seen.hints.clear()
                move(process.pid, path)
                await seen.hint(CgroupHint(path))
                assert scan.processes(ROOT, tree.by_path[path]) == [process.pid]
        assert source.note == ""
        source.close()

    asyncio.run(main())


def test_a_name_that_is_used_again_is_another_cgroup(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        path = own.make("a")
        source = watch(seen)
        assert source.watched(path) == 2
        tree = CgroupTree(ROOT)
        tree.scan()
        first = tree.by_path[path]
        (own.directory / "a").rmdir()
        own.make("a")
        await seen.until(lambda hints: hints[-2:] == [CgroupGone(path), CgroupHint(path)])
        changes = tree.look(path)
        second = tree.by_path[path]
        assert first.id != second.id
        assert changes.vanished == (first,)
        assert changes.appeared == (second,)
        with running(*IDLE) as process:
            number(process)
            seen.hints.clear()
            move(process.pid, path)
            await seen.hint(CgroupHint(path))
        # The watches of the first one are dropped: the kernel would keep them for as long as the daemon runs.
        assert source.watched(path) == 2
        source.close()

    asyncio.run(main())


def test_watches_of_removed_cgroups_are_dropped(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        source = watch(seen)
        for index in range(50):
            own.make(str(index))
            own.make(f"{index}/below")
        await seen.hint(CgroupHint(f"{own.path}/49/below"))
        assert source.watched(own.path) == 202
        for index in range(50):
            (own.directory / str(index) / "below").rmdir()
            (own.directory / str(index)).rmdir()
        await seen.hint(CgroupGone(f"{own.path}/49"))
        assert source.watched(own.path) == 2
        source.close()

    asyncio.run(main())


def test_an_overflow_is_told_and_repaired(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        source = watch(seen)
        queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        doomed = own.directory / "doomed"
        # The loop does not run meanwhile, so the queue fills. Two different events each: equal ones are merged.
        for _ in range(queue // 2 + 2):
            doomed.mkdir()
            doomed.rmdir()
        late = own.make("late")
        await seen.hint(LostHint(source.name))
        assert source.losses == 1
        seen.hints.clear()
        # It was made after the queue was full, and is watched nevertheless.
        with running(*IDLE) as process:
            number(process)
            move(process.pid, late)
            await seen.hint(CgroupHint(late))
        source.close()

    asyncio.run(main())


def test_writes_to_cpusets_are_hinted(own: OwnCgroup) -> None:
    async def main() -> None:
        seen = Seen()
        path = own.make("a")
        source = watch(seen)
        # Without controllers here nothing can be enabled, but the write is what counts.
        (own.directory / "a" / "cgroup.subtree_control").write_text("\n")
        await seen.hint(CpusetHint(path))
        source.close()

    asyncio.run(main())


def test_closing_leaves_no_descriptor(own: OwnCgroup) -> None:
    async def main() -> None:
        before = set(Path("/proc/self/fd").iterdir())
        source = watch(Seen())
        assert set(Path("/proc/self/fd").iterdir()) != before
        source.close()
        assert set(Path("/proc/self/fd").iterdir()) == before
        assert not source.up

    asyncio.run(main())

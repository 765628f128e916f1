"""What real mappings are taken for, and which of them a policy for every class binds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hetmemd.kernel import numa_maps
from hetmemd.kernel.root import Root
from hetmemd.memory import regions
from hetmemd.memory.regions import Region
from tests.machine.daemon import INTERLEAVE, Daemon, Group, eventually, fresh_path, policy, where_all_can_be_seen

pytestmark = pytest.mark.root
ROOT = Root()
TARGET = Path(__file__).with_name("classes_target.py")
POOL = Path("/proc/sys/vm/nr_hugepages")
EVERY = 'memory = ["heap", "anon", "stack", "exec", "file", "shm", "hugetlb"]\n'

# Name, class, whether it is bound: by its class, and by who else maps it.
MAPPINGS = [
    ("[heap]", "heap", True),
    ("[stack]", "stack", True),
    ("[vdso]", "special", False),
    ("[vvar]", "special", False),
    ("anon", "anon", True),
    ("anon-guard", "guard", False),
    ("read-only", "anon", True),
    ("protected", "anon", True),
    ("jit", "exec", False),
    ("jit-guard", "guard", False),
    ("asleep", "stack", True),
    ("busy", "stack", True),
    ("shared", "shm", True),
    ("disk-private", "file", False),
    ("disk-shared", "file", False),
    ("disk-deleted-private", "file", False),
    ("disk-deleted-shared", "file", False),
    ("disk-code", "exec", False),
    ("tmpfs-shared", "shm", True),
    ("tmpfs-deleted-shared", "shm", True),
    ("memfd-shared", "shm", True),
    # Private: its own pages are copies, and the object's are nobody's who asked.
    ("tmpfs-private", "shm", False),
    ("tmpfs-deleted-private", "shm", False),
    ("memfd-private", "shm", False),
    # Code, wherever it is mapped from.
    ("tmpfs-code", "shm", False),
    ("jit-written", "shm", False),
    ("jit-executed", "shm", False),
    ("zero-private", "anon", True),
    ("zero-shared", "shm", True),
    ("aio", "special", False),
    ("mem", "special", False),
    ("huge", "hugetlb", True),
    ("huge-untouched", "hugetlb", True),
    ("hugetlbfs", "hugetlb", True),
]


class Mappings:
    def __init__(self, daemon: Daemon, pid: int, spans: dict[str, tuple[int, int]], has_huge: bool) -> None:
        self.daemon = daemon
        self.pid = pid
        self.spans = spans
        self.has_huge = has_huge

    def region(self, name: str) -> Region | None:
        found = regions.read(ROOT, self.pid)
        if name.startswith("["):
            return next((region for region in found if region.name == name), None)
        if name not in self.spans:
            return None
        start = self.spans[name][0]
        return next((region for region in found if region.start <= start < region.end), None)

    def policy(self, region: Region) -> str:
        lines = [line for line in numa_maps.read(ROOT, self.pid) if line.start <= region.start]
        return str(lines[-1].policy)


@pytest.fixture(scope="module")
def mappings() -> Generator[Mappings, None, None]:
    """Under a policy for every class, for as long as it takes to bind what is to be bound."""
    with ExitStack() as stack:
        disk, short = (
            stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="hetmemd-"))
            for folder in ("/var/tmp", "/tmp")
        )
        tmpfs, pool = Path(disk) / "tmpfs", Path(disk) / "huge"
        before = POOL.read_text()
        # For the program, and some that are free: what could not be had at a page fault would be its end.
        POOL.write_text(str(int(before) + 4))
        stack.callback(POOL.write_text, before)
        has_huge = int(POOL.read_text()) >= int(before) + 4
        for folder, kind in ((tmpfs, "tmpfs"), (pool, "hugetlbfs")):
            folder.mkdir()
            subprocess.run(["mount", "-t", kind, "none", folder], check=True)
            stack.callback(_unmount, folder)
        group = Group(fresh_path())
        stack.callback(group.remove)
        daemon = Daemon(Path(short), where_all_can_be_seen())
        daemon.start()
        stack.callback(daemon.end)
        command = [sys.executable, str(TARGET), disk, str(tmpfs), str(pool) if has_huge else ""]
        popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(popen.communicate)
        stack.callback(popen.kill)
        assert popen.stdout
        spans = {name: (span[0], span[1]) for name, span in json.loads(popen.stdout.readline()).items()}
        group.take(popen.pid)
        daemon.drop("50-a.toml", policy(group.path, more=EVERY))
        found = Mappings(daemon, popen.pid, spans, has_huge)
        eventually("bound", lambda: (daemon.explain(popen.pid)["task"] or {}).get("outcome") == "applied")
        # All else has been looked at by then, and once more:
        reads = daemon.metric("region_reads_total")
        eventually("looked at again", lambda: daemon.metric("region_reads_total") > reads)
        yield found


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(("name", "kind", "is_bound"), MAPPINGS, ids=[name for name, _, _ in MAPPINGS])
def test_each(mappings: Mappings, name: str, kind: str, is_bound: bool) -> None:
    if kind == "hugetlb" and not mappings.has_huge:
        pytest.skip("this machine has no huge pages to give")
    region = mappings.region(name)
    if name == "mem" and region is None:
        return  # it has none, or its kernel forbids it: `aio` and `[vvar]` are of the same class
    assert region is not None
    assert region.kind == kind
    assert mappings.policy(region) == (INTERLEAVE if is_bound else "default")


def test_nothing_else_is_bound(mappings: Mappings) -> None:
    """Such as libraries, locales, and what the kernel maps without being asked."""
    found = regions.read(ROOT, mappings.pid)
    bound = {region.kind for region in found if region.is_bound}
    assert bound - {"hugetlb"} == {"heap", "anon", "stack", "shm"}
    assert not [region for region in found if region.is_bound and region.kind in ("special", "exec", "file", "guard")]
    assert {region.kind for region in found} >= {"special", "exec", "file", "guard"}

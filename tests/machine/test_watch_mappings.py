"""What tasks map on this machine's kernel, told by perf events."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import sys
import time
from collections.abc import Callable, Generator

import pytest

from hetmemd.kernel.perf import Mappings
from hetmemd.watch.hint import Hint, RegionsHint
from hetmemd.watch.mappings import MappingsSource
from tests.machine.eyes.harness import ROOT, Seen, number, running

pytestmark = pytest.mark.root

libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
PAGE = mmap.PAGESIZE


def mapping() -> mmap.mmap:
    return mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.fixture
def mappings() -> Generator[Mappings, None, None]:
    mappings = Mappings(ROOT)
    yield mappings
    mappings.close()


def grow() -> None:
    assert libc.sbrk(ctypes.c_long(PAGE)) != -1


def protect() -> None:
    area = mapping()
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert not libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ)


@pytest.mark.parametrize("change", [mapping, grow, protect])
def test_what_is_told_and_when(mappings: Mappings, change: Callable[[], object]) -> None:
    mappings.take()
    before = time.monotonic_ns()
    change()
    after = time.monotonic_ns()
    mapped, count, lost = mappings.take()
    assert before <= mapped[os.getpid()] <= after
    assert count >= 1
    assert lost == 0
    assert os.getpid() not in mappings.take()[0], "it was told"


def test_the_ring_is_gone_over_again_and_again(mappings: Mappings) -> None:
    told = 0
    for _ in range(100):
        for _ in range(100):
            mapping().close()
        mapped, count, lost = mappings.take()
        assert os.getpid() in mapped
        assert lost == 0
        told += count
    assert told >= 10_000


def test_what_the_ring_has_no_room_for_is_counted(mappings: Mappings) -> None:
    for _ in range(20_000):
        mapping().close()
    _, told, _ = mappings.take()
    mapping().close()  # the count comes with the next record of the same CPU
    while not (lost := mappings.take()[2]):
        mapping().close()
    assert told + lost >= 20_000


def test_another_process_is_hinted() -> None:
    script = (
        "import mmap, sys; print(0, flush=True); sys.stdin.readline();kept = mmap.mmap(-1, 1 << 20); sys.stdin.read()"
    )

    async def main() -> None:
        seen = Seen()
        source = MappingsSource(ROOT, asyncio.get_running_loop(), seen.deliver)
        source.start()
        assert source.up, source.note
        with running(sys.executable, "-c", script) as process:
            number(process)
            source.want({process.pid})
            assert process.stdin
            before = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()

            def told(hints: list[Hint]) -> bool:
                return any(
                    isinstance(hint, RegionsHint) and hint.pid == process.pid and hint.at >= before for hint in hints
                )

            await seen.until(told)
        source.close()

    asyncio.run(main())

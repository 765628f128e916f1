"""What caches hold: each once, whoever shares it."""

from __future__ import annotations

from pathlib import Path

from hetmemd.kernel.root import Root
from hetmemd.machine import caches
from tests.unit.policy.given import write


def cpu(top: Path, number: int, *found: tuple[str, str, str, str]) -> None:
    for index, (level, kind, size, shared) in enumerate(found):
        folder = top / f"sys/devices/system/cpu/cpu{number}/cache/index{index}"
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            write(folder / name, text + "\n")


def test_shared_caches_count_once(tmp_path: Path) -> None:
    for number in range(4):
        pair = "0-1" if number < 2 else "2-3"
        cpu(
            tmp_path,
            number,
            ("1", "Data", "48K", str(number)),
            ("1", "Instruction", "64K", str(number)),
            ("2", "Unified", "2048K", str(number)),
            ("3", "Unified", "192M", pair),
        )
    each = (48 << 10) + (2 << 20)
    assert caches.total(Root(tmp_path), [0, 1]) == 2 * each + (192 << 20)
    assert caches.total(Root(tmp_path), range(4)) == 4 * each + 2 * (192 << 20)
    assert caches.total(Root(tmp_path), [0, 7]) == each + (192 << 20)


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert caches.total(Root(tmp_path), [0, 1]) == 0
    cpu(tmp_path, 0, ("1", "Data", "unknown", "0"))
    assert caches.total(Root(tmp_path), [0]) == 0

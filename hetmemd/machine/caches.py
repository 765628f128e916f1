"""What the caches of some CPUs hold together, from sysfs. Documentation/ABI/testing/sysfs-devices-system-cpu."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hetmemd.kernel.root import Root

CPUS = "/sys/devices/system/cpu"
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_MOST_INDEXES = 8


def total(root: Root, cpus: Iterable[int]) -> int:
    """Bytes of data that all caches together hold which these CPUs use; 0 where the kernel does not tell.

    Levels are added up: where a larger cache does not hold what a smaller one does, data can be in either.
    """
    found: dict[tuple[str, str], int] = {}
    for cpu in cpus:
        for index in range(_MOST_INDEXES):
            folder = f"{CPUS}/cpu{cpu}/cache/index{index}"
            kind = _text(root, f"{folder}/type")
            if not kind:
                break
            size = re.fullmatch(r"(\d+)([KMG]?)", _text(root, f"{folder}/size"))
            if kind != "Instruction" and size:
                # One for all CPUs that share it.
                shared = _text(root, f"{folder}/shared_cpu_list") or str(cpu)
                found[_text(root, f"{folder}/level"), shared] = int(size[1]) << _UNITS[size[2]]
    return sum(found.values())


def _text(root: Root, path: str) -> str:
    try:
        return root.read_text(path).strip()
    except OSError:
        return ""

"""What firmware tells of each node's memory (ACPI HMAT, CXL CDAT): Documentation/admin-guide/mm/numaperf.rst.

Access class 1 has CPUs as its only initiators, and is what the kernel's own weights use; class 0 has whatever reaches
the memory best, which may be a device. Before 5.10 there is only class 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hetmemd.kernel.root import Root

CLASSES = ("access1", "access0")


@dataclass(frozen=True, slots=True)
class Access:
    """How the nearest initiators reach a node's memory. None where firmware has no figure, which sysfs shows as 0."""

    initiators: frozenset[int]
    """Nodes."""
    read_bandwidth: int | None = None
    """MB/s."""
    write_bandwidth: int | None = None
    read_latency: int | None = None
    """Nanoseconds."""
    write_latency: int | None = None

    @property
    def bandwidth(self) -> int | None:
        """The lesser of read and write, which is what the kernel computes weights from (mempolicy_set_node_perf())."""
        if self.read_bandwidth is None or self.write_bandwidth is None:
            return None
        return min(self.read_bandwidth, self.write_bandwidth)


def read(root: Root, folder: str) -> Mapping[str, Access]:
    """By access class, for the node whose folder in sysfs it is; classes that there are not are left out. `OSError`."""
    found: dict[str, Access] = {}
    for access in CLASSES:
        place = f"{folder}/{access}/initiators"
        try:
            names = os.listdir(root.name(place))  # noqa: PTH208 - names, as sysfs has them
        except (FileNotFoundError, NotADirectoryError):
            continue
        initiators = frozenset(int(match[1]) for name in names if (match := re.fullmatch("node([0-9]{1,9})", name)))
        figures = {
            f"{way}_{what}": _figure(root, f"{place}/{way}_{what}")
            for way in ("read", "write")
            for what in ("bandwidth", "latency")
        }
        found[access] = Access(initiators, **figures)
    return found


def _figure(root: Root, path: str) -> int | None:
    try:
        text = root.read_text(path).strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(text) or None if re.fullmatch("[0-9]{1,15}", text) else None

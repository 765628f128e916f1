"""How full nodes are: /proc/zoneinfo (watermarks), /proc/buddyinfo (free blocks) and nodeN/vmstat (pages of 4 KiB).

Formats: `zoneinfo_show_print` and `frag_show_print` in mm/vmstat.c, `node_read_vmstat` in drivers/base/node.c.
zoneinfo grows with the number of CPUs: its watermarks hardly change, so they are read now and then, the others often.
"""

from __future__ import annotations

from typing import NamedTuple

from hetmemd.kernel.root import Root


class Watermarks(NamedTuple):
    """Sums over a node's zones, in pages."""

    high: int
    """Above it, nothing is reclaimed in the background."""
    managed: int
    """Pages that the kernel gives out at all."""


def parse_watermarks(text: str) -> dict[int, Watermarks]:
    """By node, those without memory left out."""
    sums: dict[int, list[int]] = {}
    current: list[int] | None = None
    zone_is_filled = False
    for line in text.split("\n"):
        if line.startswith("Node "):
            node = int(line.split(",", 1)[0][5:])
            current = sums.setdefault(node, [0, 0])
            high = 0
        elif current is not None:
            words = line.split(None, 2)
            if len(words) == 2 and words[0] == "high":
                # `high:` with a colon is a per-CPU list's.
                high = int(words[1])
            elif len(words) == 2 and words[0] == "managed":
                zone_is_filled = int(words[1]) > 0
                current[0] += high if zone_is_filled else 0
                current[1] += int(words[1])
    return {node: Watermarks(*values) for node, values in sums.items() if values[1]}


def watermarks(root: Root) -> dict[int, Watermarks]:
    return parse_watermarks(root.read_text("/proc/zoneinfo"))


def node_vmstat(root: Root, node: int) -> dict[str, int]:
    """`nr_free_pages`, `nr_inactive_file`, ... of one node. ENOENT where it is gone."""
    return _counts(root.read_text(f"/sys/devices/system/node/node{node}/vmstat"))


def vmstat(root: Root) -> dict[str, int]:
    """Counters of the whole machine: `pgmigrate_success`, ..."""
    return _counts(root.read_text("/proc/vmstat"))


def _counts(text: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines()) if value}


def parse_free_blocks(text: str) -> dict[int, list[int]]:
    """By node: free blocks of 2^n pages, for n from 0 on."""
    found: dict[int, list[int]] = {}
    for line in text.splitlines():
        head, _, tail = line.partition(", zone")
        if not tail or not head.startswith("Node "):
            continue
        counts = [int(word) for word in tail.split()[1:]]
        sums = found.setdefault(int(head[5:]), [0] * len(counts))
        sums[:] = [sum(pair) for pair in zip(sums, counts, strict=True)]
    return found


def free_blocks(root: Root, node: int) -> list[int]:
    """Free blocks of 2^n pages of a node, for n from 0 on; empty where it has no memory."""
    return parse_free_blocks(root.read_text("/proc/buddyinfo")).get(node, [])

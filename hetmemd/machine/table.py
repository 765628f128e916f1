"""The kernel's global table of weights for weighted interleave, as a value, and the writes that change it.

Files of Documentation/ABI/testing/sysfs-kernel-mm-mempolicy-weighted-interleave: nodeN holds 1 to 255 (6.9), and `auto`
says whether the kernel keeps the table by itself from bandwidths (6.16). Traps: 0 and the empty text set a weight back
up to 6.15 and are EINVAL later, so neither is ever written; a weight that is written switches `auto` off; `true` in
`auto` is ENODEV where firmware told no bandwidth, even where it stood there since the boot.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hetmemd.kernel.root import Root
from hetmemd.machine.topology import WEIGHTS

Write = tuple[str, str]
"""A file of the folder, and what is written to it."""


@dataclass(frozen=True, slots=True)
class Table:
    weights: Mapping[int, int]
    """1 to 255 by node; of a table that is wanted, nodes that are left out stay as they are."""
    auto: bool | None = None
    """None where the kernel has no such switch."""


def writes(now: Table, wanted: Table) -> tuple[Write, ...]:
    """What makes `wanted` of `now`, in order; empty where it is so already. Weights first: they switch `auto` off."""
    if wanted.auto and now.auto:
        return ()
    steps: list[Write] = [("auto", "false")] if now.auto else []
    for node, weight in sorted(wanted.weights.items()):
        if node in now.weights and now.weights[node] != weight:
            steps.append((f"node{node}", str(weight)))
    return (*steps, ("auto", "true")) if wanted.auto else tuple(steps)


def agrees(now: Table, wanted: Table) -> bool:
    return not writes(now, wanted)


def write(root: Root, step: Write) -> None:
    """`OSError` with the file's path: ENOENT for a node that went away."""
    name = root.name(f"{WEIGHTS}/{step[0]}")
    fd = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, step[1].encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        os.close(fd)

"""Reading a thread's policy back from the kernel without stopping it, and what the kernel should show. numa_maps(5).

numa_maps shows the nodes that a policy comes to after cpusets, not those asked for: comparing means computing that.
"""

from __future__ import annotations

import os
from functools import lru_cache

from hetmemd.kernel import mempolicy, nodelist, procfs
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root

POLICY = 80
"""Bytes of numa_maps: enough for the first region's policy, and each further region costs a walk of all its pages."""


def thread_policies(directory: int, tid: int, limit: int = POLICY) -> list[Mempolicy]:
    """Policies of the first regions of a thread, through an open /proc/PID; at least one unless it has no memory.

    A region shows the thread's policy unless it has one of its own.
    """
    fd = os.open(f"task/{tid}/numa_maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        head = procfs.first_regions(fd, limit)
    finally:
        os.close(fd)
    first, *others = head.split(b"\n")
    if not first:
        return []
    # The last line may be cut off anywhere.
    return [_parse(_policy_text(line)) for line in (first, *others[:-1])]


@lru_cache(maxsize=256)
def first_policy(head: bytes) -> Mempolicy | None:
    """The policy of the first region, from the beginning of numa_maps; None where its text is not all there."""
    words = head.split(None, 3)
    last = 2 if len(words) > 1 and words[1] in procfs.TWO_WORDS else 1
    if len(words) > last + 1 or (len(words) == last + 1 and head[-1:].isspace()):
        return _parse(words[1] if last == 1 else words[1] + b" " + words[2])
    return None


def _policy_text(line: bytes) -> bytes:
    """Of `7f..000 weighted interleave=static:0-1 anon=3 ...` what stands between the address and the counts."""
    rest = line.partition(b" ")[2]
    first, _, more = rest.partition(b" ")
    return first + b" " + more.partition(b" ")[0] if first in procfs.TWO_WORDS else first


@lru_cache(maxsize=256)
def _parse(text: bytes) -> Mempolicy:
    return mempolicy.parse(text.decode())


def as_shown(policy: Mempolicy, allowed: frozenset[int]) -> Mempolicy | None:
    """What numa_maps shows once `policy` is set in a thread that may use the nodes `allowed` (online, with memory).

    None where set_mempolicy(2) refuses it, for no node would be left. From mpol_set_nodemask() and the mpol_new_*()
    of mm/mempolicy.c.
    """
    if not policy.mode.takes_nodes:
        return policy
    nodes = _relative(policy.nodes, allowed) if Flag.RELATIVE_NODES in policy.flags else policy.nodes & allowed
    if not policy.nodes and policy.mode is Mode.PREFERRED:
        return Mempolicy(Mode.LOCAL)
    if not nodes:
        return None
    if policy.mode is Mode.PREFERRED:
        nodes = frozenset({min(nodes)})
    return Mempolicy(policy.mode, nodes, policy.flags)


def _relative(nodes: frozenset[int], allowed: frozenset[int]) -> frozenset[int]:
    """mpol_relative_nodemask(): the numbers fold onto the count of allowed nodes, and count among those."""
    places = sorted(allowed)
    return frozenset(places[node % len(places)] for node in nodes) if places else frozenset()


def is_shown(policy: Mempolicy, shown: Mempolicy, allowed: frozenset[int]) -> bool:
    """True where `shown` is what `policy` comes to. Older kernels do not show MPOL_F_NUMA_BALANCING."""
    expected = as_shown(policy, allowed)
    if expected is None:
        return False
    return expected == shown or (
        expected.mode is shown.mode
        and expected.nodes == shown.nodes
        and expected.flags & ~Flag.NUMA_BALANCING == shown.flags & ~Flag.NUMA_BALANCING
        and Flag.NUMA_BALANCING not in shown.flags
    )


def allowed_nodes(root: Root, status: dict[str, str]) -> frozenset[int]:
    """Nodes with memory that a thread's cpuset lets it use, from its /proc/.../status fields."""
    allowed = procfs.mems_allowed(status)
    try:
        return allowed & nodelist.parse(root.read_text("/sys/devices/system/node/has_memory"))
    except FileNotFoundError:  # a kernel without CONFIG_NUMA: one node, which has memory
        return allowed

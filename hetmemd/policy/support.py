"""What the language has and the daemon cannot do yet: validated, resolved, and said, never silently ignored."""

from __future__ import annotations

from hetmemd.policy.effective import Placement

_PREFIX = "not yet supported: "


def missing(placement: Placement) -> tuple[str, ...]:
    """A sentence for each thing asked for that has no effect yet."""
    notes: list[str] = []
    for word in ("shm", "hugetlb"):
        if word in placement.memory or f"!{word}" in placement.memory:
            notes.append(f'{_PREFIX}memory: regions of the class "{word}" are left as they are')
    return tuple(notes)

"""What the language has and the daemon cannot do yet: validated, resolved, and said, never silently ignored."""

from __future__ import annotations

from hetmemd.policy.effective import Handling, Placement

_PREFIX = "not yet supported: "


def missing(placement: Placement | None, handling: Handling) -> tuple[str, ...]:
    """A sentence for each thing asked for that has no effect yet."""
    notes: list[str] = []
    if placement is not None:
        if blocks(placement):
            words = ", ".join(f'"{word}"' for word in placement.memory)
            notes.append(
                f"{_PREFIX}memory = [{words}]: nothing is applied, as applying it to all memory would be wrong"
            )
        if placement.home_node is not None:
            notes.append(f"{_PREFIX}home_node = {placement.home_node}: the policy is applied without it")
    if handling.shared == "move":
        notes.append(f'{_PREFIX}shared = "move": pages that other processes map too are skipped')
    if handling.min_region:
        notes.append(f"{_PREFIX}min_region: regions of every size are moved")
    if handling.min_age:
        notes.append(f"{_PREFIX}min_age: processes of every age are moved")
    return tuple(notes)


def blocks(placement: Placement) -> bool:
    """Whether applying the placement without what is missing would do something that nobody asked for."""
    return placement.memory != ("all",)

"""Which classes of memory a policy is about: the two forms of the key `memory`. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hetmemd.memory.regions import Region

if TYPE_CHECKING:  # importing these takes numpy
    from hetmemd.memory.plan import Target
    from hetmemd.memory.targets import Share

CLASSES = frozenset({"heap", "anon", "stack", "exec", "file", "shm", "hugetlb"})


@dataclass(frozen=True, slots=True)
class Scope:
    classes: frozenset[str]
    """The policy is about these."""
    is_inclusive: bool
    """Only those classes are bound, region by region, and the task's own policy is left alone. Otherwise the task has
    the policy, and what is not in `classes` is kept local."""

    @property
    def is_all(self) -> bool:
        return not self.is_inclusive and self.classes == CLASSES

    def is_large(self, region: Region, min_region: int) -> bool:
        """Whether `min_region` leaves it to the policy: neighbours of one class count together, and what the policy
        leaves out is left out however small it is."""
        return region.kind not in self.classes or max(region.run, region.size) >= min_region


@functools.lru_cache(maxsize=64)
def scope(words: Sequence[str]) -> Scope:
    """`("heap", "anon")` inclusive, `("all", "!stack")` exclusive, as `memory` was validated."""
    if "all" in words:
        return Scope(CLASSES - {word.removeprefix("!") for word in words}, False)
    return Scope(frozenset(words), True)


def narrowed(
    whole: Share, of: Scope, home: Target | None, is_asked: Callable[[Region], bool], min_region: int = 0
) -> Share:
    """Of what is held against a target (`whole`), that which the policy is about; what it keeps local against `home`.

    A region with a policy of its own that `is_asked` for counts as if it had the task's, and is no matter of
    `min_region` any more: it was large enough to be bound.
    """

    def share(region: Region) -> Target | None:
        is_ours = region.is_bound and is_asked(region)
        if not is_ours and not of.is_large(region, min_region):
            return None
        target = whole(replace(region, is_bound=False) if is_ours else region)
        if target is None or region.kind in of.classes:
            return target
        return None if of.is_inclusive else home

    return share

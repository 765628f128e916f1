"""Which classes of memory a policy is about: the two forms of the key `memory`. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

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


@functools.lru_cache(maxsize=64)
def scope(words: Sequence[str]) -> Scope:
    """`("heap", "anon")` inclusive, `("all", "!stack")` exclusive, as `memory` was validated."""
    if "all" in words:
        return Scope(CLASSES - {word.removeprefix("!") for word in words}, False)
    return Scope(frozenset(words), True)

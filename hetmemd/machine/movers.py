"""Who else moves pages on this machine, by the kernel's switches (L6).

Not who did move some: that shows in what comes undone. A program may move pages too, by move_pages(2) or mbind(2), and
so does a cpuset whose `cpuset.mems` is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hetmemd.kernel.root import Root

BALANCING = "/proc/sys/kernel/numa_balancing"
DEMOTION = "/sys/kernel/mm/numa/demotion_enabled"  # 5.15
DAMON = "/sys/kernel/mm/damon/admin/kdamonds"  # 5.18
MODULES = "/sys/module"

_NORMAL, _TIERING = 1, 2  # NUMA_BALANCING_*, include/linux/sched/sysctl.h
_ACTIONS = frozenset({"migrate_hot", "migrate_cold", "pageout", "cold", "lru_prio", "lru_deprio"})
"""Of DAMON's schemes: those that move pages to another node, page them out, so that they may come back to another one,
or choose what is demoted (Documentation/admin-guide/mm/damon/usage.rst)."""


@dataclass(frozen=True, slots=True)
class Mover:
    name: str
    is_on: bool | None
    """None where its switch cannot be read."""
    how: str = ""
    """What it does, in words, where it is on; what was read, or why nothing was, where that is not known."""

    @property
    def state(self) -> str:
        return "unknown" if self.is_on is None else "on" if self.is_on else "off"


def read(root: Root) -> tuple[Mover, ...]:
    """Each that is known of, in a fixed order. What the kernel does not have is off. Never an error."""
    return tuple(_mover(root, name, how) for name, how in _MOVERS.items())


def _mover(root: Root, name: str, ask: Callable[[Root], str]) -> Mover:
    try:
        how = ask(root)
    except OSError as error:
        return Mover(name, None, f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return Mover(name, None, str(error))
    return Mover(name, bool(how), how)


def _balancing(root: Root) -> str:
    text = _text(root, BALANCING) or "0"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{BALANCING} says {text[:40]!r}")
    mode = int(text[:9])
    does = [
        what
        for bit, what in (
            (_NORMAL, "moves pages to the CPUs that use them"),
            (_TIERING, "moves pages that are used to faster nodes"),
        )
        if mode & bit
    ]
    if not does:
        return ""
    return f"{' and '.join(does)}; what has a policy without the flag balancing is left alone"


def _demotion(root: Root) -> str:
    does = "moves pages that are not used from a node that is full to a slower one, whatever the policy"
    return does if _switch(root, DEMOTION) else ""


def _damon(root: Root) -> str:
    """The actions of its running threads."""
    actions: set[str] = set()
    for kdamond in _numbered(root, DAMON):
        if _text(root, f"{kdamond}/state") != "on":
            continue
        for context in _numbered(root, f"{kdamond}/contexts"):
            for scheme in _numbered(root, f"{context}/schemes"):
                actions.add(_text(root, f"{scheme}/action") or "")
    return ", ".join(sorted(actions & _ACTIONS))


def _reclaim(root: Root) -> str:
    return "pages out what is not used" if _switch(root, f"{MODULES}/damon_reclaim/parameters/enabled") else ""


def _sorting(root: Root) -> str:
    does = "chooses what is reclaimed or demoted first"
    return does if _switch(root, f"{MODULES}/damon_lru_sort/parameters/enabled") else ""


_MOVERS: dict[str, Callable[[Root], str]] = {
    "numa-balancing": _balancing,
    "demotion": _demotion,
    "damon": _damon,
    "damon-reclaim": _reclaim,
    "damon-lru-sort": _sorting,
}
NAMES = tuple(_MOVERS)


def _switch(root: Root, path: str) -> bool:
    text = _text(root, path) or "N"
    if text not in ("true", "false", "Y", "N", "y", "n", "1", "0"):
        raise ValueError(f"{path} says {text[:40]!r}")
    return text in ("true", "Y", "y", "1")


def _text(root: Root, path: str) -> str | None:
    try:
        return root.read_text(path).strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _numbered(root: Root, folder: str) -> Iterator[str]:
    """The folders in it that are called by a number."""
    try:
        names = os.listdir(root.name(folder))  # noqa: PTH208 - names, as sysfs has them
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (f"{folder}/{name}" for name in names if name.isdigit())

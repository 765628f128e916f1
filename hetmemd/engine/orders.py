"""What a person orders over the control socket: to give back, and to release. Answers are JSON objects."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from hetmemd.engine.braking import Brakes
from hetmemd.engine.giving import Given, Giving, Plan, Selection
from hetmemd.kernel import procfs
from hetmemd.kernel.root import Root

SECONDS = 30.0
"""For one undo: what is deferred is tried again that long."""


class Orders:
    def __init__(self, root: Root, brakes: Brakes, giving: Giving) -> None:
        self._root = root
        self._brakes = brakes
        self._giving = giving

    async def undo(self, cgroup: str | None, pid: int | None, dry_run: bool, force: bool) -> dict[str, Any]:
        """Give back, and from then on give nothing to that cgroup or process. Both None: everywhere. With `force` also
        in processes that are never touched otherwise: denied, or held after a crash.

        `OSError`: there is no such process (ESRCH, ENOENT), or it could not be written down: nothing was done then.
        """
        process = None if pid is None else procfs.identify(self._root, pid)
        selection = Selection(cgroup or "/", process)
        with self._brakes.insisting(selection.includes) if force else contextlib.nullcontext():
            if dry_run:
                return told(await self._giving.preview(selection))
            self._brakes.undo(cgroup, process)
            held = str(pid) if pid is not None else selection.cgroup
            return {**told(await self._giving.give_back(selection, SECONDS)), "held": held}

    def release(self, what: str | None) -> list[dict[str, Any]]:
        """Of what is held, those of this name, or all. `OSError`: nothing was released."""
        return [{"kind": hold.kind, "what": hold.what, "why": hold.why} for hold in self._brakes.release(what)]


def told(result: Given | list[Plan]) -> dict[str, Any]:
    """What `hetmemctl undo --json` prints."""
    if isinstance(result, Given):
        left = [asdict(each) for each in result.left]
        counts = {"threads": result.threads, "regions": result.regions}
        return {"schema": 1, "dry_run": False, **counts, "left": left, "held": None}
    planned = [asdict(plan) for plan in result]
    return {
        "schema": 1,
        "dry_run": True,
        **{kind: sum(plan.count for plan in result if plan.kind == kind) for kind in ("threads", "regions")},
        "planned": planned,
    }

"""The verbs that change something: undo, release and observe. Through the service where it runs, else by themselves.

Each gives the JSON object that `--json` prints. What needs the engine is imported when it is needed.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from hetmemd.ctl import client
from hetmemd.kernel.root import Root

if TYPE_CHECKING:
    from hetmemd.engine.giving import Selection

SCHEMA = 1
SECONDS = 30.0
"""For giving back without the service."""
CONFIRM_SECONDS = 5.0
"""In which a running service has taken notice of the kill switch."""


class RefusedError(Exception):
    """It cannot be done; the text says why."""


def undo(root: Root, path: str, cgroup: str | None, pid: int | None, dry_run: bool, force: bool) -> dict[str, Any]:
    """`path` is that of the control socket."""
    try:
        return client.undo(cgroup, pid, dry_run, force, path)
    except client.AbsentError:
        _as_root()
    return _undo_alone(root, cgroup, pid, dry_run, force)


def _undo_alone(root: Root, cgroup: str | None, pid: int | None, dry_run: bool, force: bool) -> dict[str, Any]:
    import asyncio  # noqa: PLC0415

    from hetmemd import instance  # noqa: PLC0415
    from hetmemd.engine import giving, kernel_table, ledger  # noqa: PLC0415
    from hetmemd.engine.orders import told  # noqa: PLC0415
    from hetmemd.report import journal  # noqa: PLC0415

    known = root.path(ledger.PATH).exists()
    if not known and not root.path(kernel_table.PATH).exists():
        return told(giving.Given(0, 0, ()) if not dry_run else [])
    try:
        lock = instance.lock(root)
    except instance.Taken as taken:
        raise RefusedError(f"{taken}, and does not answer: end that first") from None
    try:
        journal.set_up()
        if cgroup is None and pid is None and not dry_run:
            kernel_table.KernelTable(root, lambda: False).give_back()
        if not known:
            return told(giving.Given(0, 0, ()) if not dry_run else [])
        witness = journal.Applications()
        selection = _selection(root, cgroup, pid)
        return told(asyncio.run(giving.alone(root, selection, SECONDS, witness, dry_run, force)))
    finally:
        os.close(lock)


def _selection(root: Root, cgroup: str | None, pid: int | None) -> Selection:
    from hetmemd.engine.giving import Selection  # noqa: PLC0415
    from hetmemd.kernel import procfs  # noqa: PLC0415

    if pid is None:
        return Selection("/" + (cgroup or "").strip("/"))
    try:
        return Selection(process=procfs.identify(root, pid))
    except OSError:
        raise client.UnknownError(f"there is no process {pid}") from None


def release(root: Root, path: str, what: str | None) -> dict[str, Any]:
    try:
        released = client.release(what, path)
    except client.AbsentError:
        _as_root()
        from hetmemd.engine.holds import Holds  # noqa: PLC0415
        from hetmemd.engine.ledger import BOOT_ID  # noqa: PLC0415

        holds = Holds(root, root.read_text(BOOT_ID).strip()).release(what)
        released = [{"kind": hold.kind, "what": hold.what, "why": hold.why} for hold in holds]
    return {"schema": SCHEMA, "released": released}


def observe(root: Root, path: str, wanted: str | None) -> dict[str, Any]:
    """`wanted` is `on`, `off` or None (only tell). The service sees the file by itself."""
    from hetmemd.settings import OBSERVE_FILES  # noqa: PLC0415

    switch = root.path(OBSERVE_FILES[1])
    if wanted is not None:
        _as_root()
    if wanted == "on":
        switch.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        switch.touch()
    elif wanted == "off":
        switch.unlink(missing_ok=True)
    until = time.monotonic() + CONFIRM_SECONDS
    while True:
        try:
            told = client.status(path)
        except client.AbsentError:
            by = next((name for name in OBSERVE_FILES if root.path(name).exists()), "")
            return {"schema": SCHEMA, "observing": bool(by), "by": by, "running": False}
        observing, by = bool(told["observing"]), str(told["observing_by"])
        is_taken = wanted is None or (observing if wanted == "on" else by != OBSERVE_FILES[1])
        if is_taken or time.monotonic() > until:
            return {"schema": SCHEMA, "observing": observing, "by": by, "running": True}
        time.sleep(0.05)


def _as_root() -> None:
    if os.geteuid() != 0:
        raise RefusedError("this needs root")

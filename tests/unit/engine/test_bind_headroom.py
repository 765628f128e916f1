"""`bind` is issued only where its nodes have room to spare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmemd.engine.steering import BIND_RESERVE, Steering
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.root import Root

MANAGED, HIGH = 640000, 4000
RESERVED = HIGH + MANAGED // 64
"""Pages that moving leaves alone as well."""

HasRoom = Callable[[Mode], bool]


@pytest.fixture
def with_free(tmp_path: Path) -> Callable[..., HasRoom]:
    """`with_free(PAGES of node 0, ...)` gives: whether a policy of this mode on these nodes may be issued."""

    def made(*free: int) -> HasRoom:
        zone = "Node {}, zone   Normal\n  pages free     1\n        high     {}\n        managed  {}\n"
        zones = "".join(zone.format(node, HIGH, MANAGED) for node in range(len(free)))
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/zoneinfo").write_text(zones)
        for node, pages in enumerate(free):
            folder = tmp_path / f"sys/devices/system/node/node{node}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "vmstat").write_text(f"nr_free_pages {pages}\nnr_inactive_file 0\nnr_dirty 0\nnr_writeback 0\n")

        def has_room(mode: Mode) -> bool:
            policy = Mempolicy(mode, frozenset(range(len(free))), Flag.STATIC_NODES)
            return asyncio.run(_asked(Root(tmp_path), policy))

        return has_room

    return made


async def _asked(root: Root, policy: Mempolicy) -> bool:
    unused: Callable[..., None] = lambda *_: None  # noqa: E731
    steering = Steering(root, *[unused] * 8)  # type: ignore[arg-type]
    try:
        return steering._has_room(policy)
    finally:
        steering.close()


def test_L7_bind_needs_headroom_above_the_reserve(with_free: Callable[..., HasRoom]) -> None:
    enough = RESERVED + BIND_RESERVE
    assert with_free(enough)(Mode.BIND)
    assert not with_free(enough - 1)(Mode.BIND)
    assert with_free(0, enough)(Mode.BIND), "the room of all its nodes counts"


def test_L7_modes_that_fall_back_need_none(with_free: Callable[..., HasRoom]) -> None:
    for mode in (Mode.PREFERRED_MANY, Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE):
        assert with_free(0)(mode)

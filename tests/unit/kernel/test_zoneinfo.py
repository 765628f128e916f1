"""/proc/zoneinfo of a machine with two nodes, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel import zoneinfo
from hetmemd.kernel.root import Root
from hetmemd.memory import headroom

TEXT = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 100
  pages free     3840
        boost    0
        min      67
        low      83
        high     99
        promo    115
        spanned  4095
        present  3998
        managed  3840
        cma      0
  pagesets
    cpu: 0
              count:    0
              high:     14
              batch:    1
Node 0, zone   Normal
  pages free     254711
        min      5013
        low      6266
        high     7519
        spanned  327680
        present  327680
        managed  320000
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
  pages free     0
        min      32
        low      32
        high     32
        spanned  0
        present  0
        managed  0
Node 1, zone   Normal
  pages free     90000
        high     4000
        managed  640000
Node 2, zone   Normal
  pages free     0
        high     0
        managed  0
"""


def test_watermarks_are_summed_over_zones_that_have_memory() -> None:
    assert zoneinfo.parse_watermarks(TEXT) == {
        0: zoneinfo.Watermarks(high=99 + 7519, managed=3840 + 320000),
        1: zoneinfo.Watermarks(high=4000, managed=640000),
    }


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/zoneinfo").write_text(TEXT)
    (tmp_path / "proc/buddyinfo").write_text("Node 1, zone   Normal" + 10 * "    0" + "  900\n")
    return Root(tmp_path)


def fill(root: Root, node: int, text: str) -> None:
    path = root.path(f"/sys/devices/system/node/node{node}/vmstat")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_reserve_stands_above_the_high_watermark() -> None:
    assert headroom.reserve(zoneinfo.Watermarks(high=4000, managed=640000)) == 4000 + 10000
    assert headroom.reserve(zoneinfo.Watermarks(high=10, managed=8192)) == 10 + 4096


def test_room(root: Root) -> None:
    room = headroom.Headroom(root).room
    fill(root, 1, "nr_free_pages 90000\nnr_inactive_file 0\nnr_dirty 0\nnr_writeback 0\n")
    assert room(1) == 76000
    # Clean cache is given up for small pages, half of it at most.
    fill(root, 1, "nr_free_pages 14000\nnr_inactive_file 5000\nnr_dirty 900\nnr_writeback 100\n")
    assert room(1) == 2000
    assert room(1, 512) == 0
    fill(root, 1, "nr_free_pages 9000\nnr_inactive_file 0\n")
    assert room(1) == 0


def test_a_folio_needs_a_block_that_it_fits_into(root: Root) -> None:
    room = headroom.Headroom(root).room
    fill(root, 1, "nr_free_pages 90000\nnr_inactive_file 0\n")
    blocks = "Node 0, zone   Normal      9      9      9      9      9      9      9      9      9      9      9\n"
    blocks += "Node 1, zone      DMA      1      0      0      0      0      0      0      0      0      0      0\n"
    blocks += "Node 1, zone  Movable    700     50      0      0      7      0      0      0      0      1      2\n"
    root.path("/proc/buddyinfo").write_text(blocks)
    assert zoneinfo.free_blocks(root, 1) == [701, 50, 0, 0, 7, 0, 0, 0, 0, 1, 2]
    assert room(1, 512) == (1 + 2 * 2) * 512
    assert room(1, 16) == 7 * 16 + 5 * 512
    assert room(1) == 76000
    fill(root, 1, "nr_free_pages 15000\nnr_inactive_file 0\n")
    assert room(1, 512) == 1000


def test_a_node_without_memory_or_gone_has_no_room(root: Root) -> None:
    room = headroom.Headroom(root).room
    fill(root, 2, "nr_free_pages 5000\n")
    assert room(2) == 0
    assert room(7) == 0
    assert room(0) == 0  # its folder is not there


def test_watermarks_are_read_again_after_a_while(root: Root) -> None:
    """A node grows by hotplug, or vm.min_free_kbytes is raised."""
    now = 0.0
    room = headroom.Headroom(root, lambda: now).room
    fill(root, 1, "nr_free_pages 90000\nnr_inactive_file 0\n")
    assert room(1) == 76000
    zones = root.path("/proc/zoneinfo")
    zones.write_text(zones.read_text().replace("high     4000", "high     34000"))
    now = headroom.KEPT - 0.1
    assert room(1) == 76000
    now = headroom.KEPT
    assert room(1) == 46000

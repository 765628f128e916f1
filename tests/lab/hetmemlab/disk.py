"""The guest's disks, made without a loop mount: for the root an MBR with one ext4 partition, else ext4 alone."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SECTOR = 512
FIRST_SECTOR = 2048
DISK_ID = 0xC0FFEE01
# How Linux names the partition in root=; it stays when NVMe disks change their numbers.
PARTUUID = f"{DISK_ID:08x}-01"
LINUX_PARTITION = 0x83
# Addresses beyond what cylinder, head and sector can say are written as their largest values.
CHS_TOO_LARGE = b"\xfe\xff\xff"
SPARE_BYTES = 1 << 30


def master_boot_record(partition_bytes: int) -> bytes:
    """The first sector of a disk with one partition of that size, which must be whole sectors."""
    if partition_bytes <= 0 or partition_bytes % SECTOR:
        raise ValueError(f"{partition_bytes} bytes are not whole sectors")
    entry = struct.pack(
        "<B3sB3sII", 0, CHS_TOO_LARGE, LINUX_PARTITION, CHS_TOO_LARGE, FIRST_SECTOR, partition_bytes // SECTOR
    )
    record = bytearray(SECTOR)
    record[440:444] = struct.pack("<I", DISK_ID)
    record[446:462] = entry
    record[510:512] = b"\x55\xaa"
    return bytes(record)


def partition_bytes(tree_bytes: int) -> int:
    """How large a partition holds a tree of that many bytes: metadata, and room to work in, whole MiB."""
    return ((tree_bytes * 115 // 100 + SPARE_BYTES) >> 20) << 20


def write(tree: Path, image: Path) -> None:
    """Make `image`, a sparse disk whose only partition holds a copy of `tree`."""
    size = partition_bytes(_used(tree))
    offset = FIRST_SECTOR * SECTOR
    with image.open("wb") as file:
        file.truncate(offset + size)
        file.write(master_boot_record(size))
    _make_ext4(tree, image, size, f"offset={offset},")


def write_plain(tree: Path, image: Path) -> None:
    """Make `image`, an ext4 without partitions that holds a copy of `tree`, to be mounted read-only."""
    _make_ext4(tree, image, partition_bytes(_used(tree)), "")


def _used(tree: Path) -> int:
    return int(subprocess.check_output(["du", "-s", "-B1", str(tree)]).split()[0])


def _make_ext4(tree: Path, image: Path, size: int, options: str) -> None:
    command = ["mkfs.ext4", "-q", "-F", "-d", str(tree), "-O", "^has_journal", "-E", f"{options}root_owner=0:0"]
    subprocess.run([*command, str(image), f"{size >> 20}M"], stdout=subprocess.DEVNULL, check=True)

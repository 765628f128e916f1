"""The kernels a guest can run, by the name that stays while Debian's versions move on."""

from __future__ import annotations

from dataclasses import dataclass


class KernelError(Exception):
    """A kernel name that is not in the table."""


@dataclass(frozen=True)
class Kernel:
    """A row: the package whose newest version is meant, and the modules that the guest must load itself."""

    name: str
    package: str
    modules: tuple[str, ...] = ()


# `package` is Debian's meta package: which image it stands for is found when it is fetched, and is part of
# the image's key. 6.12 has NVMe, ext4 and virtio built in, so it needs neither an initrd nor modules.
TABLE = (Kernel("6.12", "linux-image-6.12-cloud-amd64"),)

DEFAULT = "6.12"


def named(name: str) -> Kernel:
    """The row of that name; KernelError with the names there are."""
    for kernel in TABLE:
        if kernel.name == name:
            return kernel
    raise KernelError(f"no kernel {name!r}; there are: {', '.join(kernel.name for kernel in TABLE)}")

"""kcmp(2): do two tasks share a resource of the kernel?"""

from __future__ import annotations

from hetmemd.kernel import libc

_KCMP_VM = 1  # include/uapi/linux/kcmp.h


def same_address_space(one: int, other: int) -> bool:
    """True where both tasks, by tid, run in one address space.

    `OSError`: ESRCH where either is gone, EPERM without the right to trace both, ENOSYS without CONFIG_KCMP. A task
    that has no memory any more (a zombie) shares it with other zombies, so at least one must be alive.
    """
    return libc.syscall(libc.KCMP, one, other, _KCMP_VM, 0, 0, about=f"/proc/{one}, /proc/{other}") == 0

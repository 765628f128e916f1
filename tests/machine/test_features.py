"""What the running kernel says of itself, when it is asked."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from hetmemd.kernel import features, libc
from hetmemd.kernel.features import ALL
from hetmemd.kernel.mempolicy import Mode


def test_modes_that_every_kernel_has_are_found() -> None:
    found = features.probe()
    old = {Mode.DEFAULT, Mode.PREFERRED, Mode.BIND, Mode.INTERLEAVE, Mode.LOCAL}
    assert old <= found.modes <= set(Mode)
    assert found.balancing <= found.modes


def test_asking_leaves_nothing_behind() -> None:
    before = Path("/proc/self/numa_maps").read_text().count(" bind:")
    features.probe.__wrapped__()
    assert Path("/proc/self/numa_maps").read_text().count(" bind:") == before


@pytest.mark.parametrize(
    ("error", "missing"), [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EPERM, False), (errno.ENOMEM, False)]
)
def test_only_a_refusal_of_the_word_itself_counts(monkeypatch: pytest.MonkeyPatch, error: int, missing: bool) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(error, "no")

    monkeypatch.setattr(libc, "syscall", refuse)
    found = features.probe.__wrapped__()
    assert (found.modes == frozenset()) == missing
    assert (found.modes, found.balancing, found.home_node) == (
        (frozenset(), frozenset(), False) if missing else (ALL.modes, ALL.balancing, True)
    )

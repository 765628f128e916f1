"""Real programs at work, in Debian's own tree (`programs`), and hetmemd at them all the while."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.machine import programs

# In a namespace of mounts: nothing is left of them when the program has ended.
_ENTER = """
for name in proc dev; do mount --rbind /$name "$0/$name" || exit; done
mount --bind "$1" "$0/mnt" || exit
user=$2; shift 2
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt LC_ALL=C.UTF-8 \
    chroot --userspec="$user:$user" "$0" /bin/sh -c 'cd /mnt && exec "$@"' sh "$@"
"""


def command(folder: Path, words: Sequence[str | Path], user: int = 0) -> list[str]:
    """How to run `words`, a program by its path in the tree, with `folder` as its working directory.

    The pid is the program's own: what comes before it executes it in the end.
    """
    try:
        root = programs.tree()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return [str(word) for word in ["unshare", "--mount", "sh", "-c", _ENTER, root, folder, user, *words]]

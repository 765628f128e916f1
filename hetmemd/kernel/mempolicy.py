"""Memory policies as the kernel knows them: modes, flags, nodemasks, and their text in numa_maps.

Values are those of include/uapi/linux/mempolicy.h; the text is that of `mpol_to_str` in mm/mempolicy.c.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hetmemd.kernel import nodelist


class Mode(enum.IntEnum):
    """MPOL_* modes, with the first release that has each."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4  # 3.8
    PREFERRED_MANY = 5  # 5.15
    WEIGHTED_INTERLEAVE = 6  # 6.9

    @property
    def word(self) -> str:
        """The name in the policy language: `weighted-interleave`."""
        return self.name.lower().replace("_", "-")

    @property
    def takes_nodes(self) -> bool:
        return self not in (Mode.DEFAULT, Mode.LOCAL)


class Flag(enum.IntFlag):
    """MPOL_F_* mode flags, or-ed into the mode argument."""

    NUMA_BALANCING = 1 << 13  # 5.12, with BIND; later also with PREFERRED_MANY
    RELATIVE_NODES = 1 << 14  # 2.6.26
    STATIC_NODES = 1 << 15  # 2.6.26


NO_FLAGS = Flag(0)

# mpol_to_str()'s names. 'weighted interleave' and 'prefer (many)' hold a space, so a line of numa_maps
# cannot be split on white space alone.
_TEXT = {
    Mode.DEFAULT: "default",
    Mode.PREFERRED: "prefer",
    Mode.BIND: "bind",
    Mode.INTERLEAVE: "interleave",
    Mode.LOCAL: "local",
    Mode.PREFERRED_MANY: "prefer (many)",
    Mode.WEIGHTED_INTERLEAVE: "weighted interleave",
}
_BY_TEXT = {text: mode for mode, text in _TEXT.items()}
_FLAG_TEXT = {"static": Flag.STATIC_NODES, "relative": Flag.RELATIVE_NODES, "balancing": Flag.NUMA_BALANCING}


@dataclass(frozen=True, slots=True)
class Mempolicy:
    """One policy: a mode, its flags and its nodes (empty for DEFAULT and LOCAL)."""

    mode: Mode
    nodes: frozenset[int] = frozenset()
    flags: Flag = NO_FLAGS

    @property
    def mode_argument(self) -> int:
        """The `mode` argument of set_mempolicy(2) and mbind(2)."""
        return int(self.mode) | int(self.flags)

    def __str__(self) -> str:
        """As numa_maps would write it, such as `weighted interleave=static:0-1`."""
        text = _TEXT[self.mode]
        flags = "|".join(word for word, flag in _FLAG_TEXT.items() if flag in self.flags)
        if flags:
            text += "=" + flags
        return f"{text}:{nodelist.format_list(self.nodes)}" if self.nodes else text


DEFAULT = Mempolicy(Mode.DEFAULT)
"""No policy of its own: what set_mempolicy(MPOL_DEFAULT) leaves, and what a task starts with."""


def parse(text: str) -> Mempolicy:
    """A policy from numa_maps' text, without the address before it. `ValueError` if the kernel wrote something unknown.

    numa_maps shows the *effective* nodes, after cpusets, not those that were asked for (get_mempolicy(2) gives those).
    """
    head, _, nodes = text.partition(":")
    word, _, flag_words = head.partition("=")
    mode = _BY_TEXT.get(word)
    if mode is None:
        raise ValueError(f"unknown memory policy in numa_maps: {text!r}")
    flags = Flag(0)
    for flag_word in filter(None, flag_words.split("|")):
        if flag_word not in _FLAG_TEXT:
            raise ValueError(f"unknown memory policy flag in numa_maps: {text!r}")
        flags |= _FLAG_TEXT[flag_word]
    return Mempolicy(mode, nodelist.parse(nodes), flags)


def parse_line(line: str) -> Mempolicy:
    """The policy of one line of numa_maps, `7f..000 weighted interleave=static:0-1 anon=3 ...`."""
    _, _, rest = line.partition(" ")
    for mode in (Mode.WEIGHTED_INTERLEAVE, Mode.PREFERRED_MANY):
        text = _TEXT[mode]
        if rest.startswith(text):
            tail = rest[len(text) :].split(" ", 1)[0]
            return parse(text + tail)
    return parse(rest.split(None, 1)[0])


def nodemask(nodes: frozenset[int]) -> tuple[bytes, int]:
    """(mask, maxnode) for set_mempolicy(2): 64-bit little-endian words and a spare zero word.

    `maxnode` is one more than the bits that are meant: the kernel does `--maxnode` (get_nodes() in mm/mempolicy.c).
    """
    words = (max(nodes, default=0) // 64) + 1
    value = sum(1 << node for node in nodes)
    return value.to_bytes(words * 8, "little") + bytes(8), words * 64 + 1

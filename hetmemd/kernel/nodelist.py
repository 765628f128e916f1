"""Lists of numbers as the kernel and numactl write them: `0-1,3`. Nodes and CPUs alike (cpuset(7), "List format")."""

from __future__ import annotations

from collections.abc import Iterable

MAX_NUMNODES = 1024
"""The most nodes any kernel configuration has (CONFIG_NODES_SHIFT <= 10, arch/x86/Kconfig)."""
_DIGITS = 20
"""More than any number has; int() refuses thousands of them in words that are about Python."""


def parse(text: str, limit: int = 1 << 20) -> frozenset[int]:
    """Numbers of a list such as `0-1,3`; blank is the empty set. `ValueError` names the part that is wrong."""
    numbers: set[int] = set()
    if not text.strip():
        return frozenset()
    for raw in text.strip().split(","):
        part = raw.strip()
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(f"not a number or a range: {part!r}")
        if max(len(first), len(last)) > _DIGITS:
            raise ValueError(f"a number of {max(len(first), len(last))} digits")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"the range runs backwards: {part!r}")
        if high >= limit:
            raise ValueError(f"larger than {limit - 1}: {part!r}")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def format_list(numbers: Iterable[int]) -> str:
    """The shortest list, in ascending order: `{0, 1, 3}` gives `0-1,3`; the empty set gives an empty string."""
    parts: list[str] = []
    first = last = -2
    for number in sorted(set(numbers)):
        if number == last + 1:
            last = number
            parts[-1] = f"{first}-{last}"
        else:
            first = last = number
            parts.append(str(number))
    return ",".join(parts)


def parse_mask(text: str) -> frozenset[int]:
    """Bits of a mask in /proc's form, comma-separated 32-bit words, highest first (`Mems_allowed:` in proc(5))."""
    value = int(text.strip().replace(",", ""), 16)
    return frozenset(bit for bit in range(value.bit_length()) if value >> bit & 1)

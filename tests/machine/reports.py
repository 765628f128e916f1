"""What tests have counted, for the end of the test run: that nothing failed says little where little was done."""

from __future__ import annotations

sections: dict[str, list[str]] = {}


def note(section: str, line: str) -> None:
    sections.setdefault(section, []).append(line)

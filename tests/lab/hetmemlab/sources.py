"""Which Debian mirror this machine uses, read from its own apt sources, and the lab's sources made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .say import LabError

# The guest is this release whatever the machine runs: its kernels and versions are what was measured.
RELEASE = "bookworm"
BACKPORTS = f"{RELEASE}-backports"
# Where newer kernels are, best first. What a mirror does not have is left out.
NEWEST = ("sid", "trixie-backports")
DEBIAN_RELEASES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FOLDER = "etc/apt/sources.list.d"
SOURCE_FILES = ("etc/apt/sources.list.d/debian.sources", "etc/apt/sources.list")


@dataclass(frozen=True)
class Source:
    """One place that packages come from, as apt's own files name it."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str


def parse(text: str) -> list[Source]:
    """The binary sources in a file of either of apt's formats (sources.list(5))."""
    if any(line.lower().startswith("types:") for line in text.splitlines()):
        return list(_stanzas(text))
    return list(_lines(text))


def _stanzas(text: str) -> Iterator[Source]:
    fields: dict[str, str] = {}
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if line.strip():
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
            continue
        if "deb" in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                yield Source(uri, tuple(fields.get("suites", "").split()), fields.get("signed-by", KEYRING))
        fields = {}


def _lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        if kind != "deb":
            continue
        signed_by = KEYRING
        rest = rest.strip()
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
            for option in options.split():
                name, _, value = option.partition("=")
                signed_by = value if name == "signed-by" else signed_by
        words = rest.split()
        if len(words) >= 2:
            yield Source(words[0], (words[1],), signed_by)


def release_lines(machine: list[Source]) -> list[list[str]]:
    """Lines of sources.list for RELEASE with its updates and security fixes, from the mirrors that the machine uses.

    Choices, best first: with backports, and without.
    """
    main = _main(machine)
    security = [source for source in machine if any(suite.endswith("-security") for suite in source.suites)]
    if not security:
        raise LabError("apt's sources name no Debian mirror with security updates", hint="looked in " + _looked())
    lines = [_line(main, suite) for suite in (RELEASE, f"{RELEASE}-updates")]
    lines.append(_line(security[0], f"{RELEASE}-security"))
    return [[*lines, _line(main, BACKPORTS)], lines]


def newest_lines(machine: list[Source]) -> list[list[str]]:
    """Lines for the suites with the newest kernels: all of them, or one alone."""
    lines = [_line(_main(machine), suite) for suite in NEWEST]
    return [lines, *([line] for line in lines)]


def _main(machine: list[Source]) -> Source:
    for source in machine:
        if any(suite in DEBIAN_RELEASES for suite in source.suites):
            return source
    raise LabError("apt's sources name no Debian mirror", hint="looked in " + _looked())


def _line(source: Source, suite: str) -> str:
    return f"deb [signed-by={source.signed_by}] {source.uri} {suite} main"


def of_machine(root: Path = Path("/")) -> list[Source]:
    """The sources that this machine has; Debian's own files first, then whatever an installer has named otherwise."""
    usual = [root / name for name in SOURCE_FILES]
    others = [path for path in sorted((root / FOLDER).glob("*")) if path.suffix in (".sources", ".list")]
    found = [path for path in [*usual, *(path for path in others if path not in usual)] if path.is_file()]
    return [source for path in found for source in parse(path.read_text("utf-8"))]


def _looked() -> str:
    return f"/etc/apt/sources.list and /{FOLDER}"

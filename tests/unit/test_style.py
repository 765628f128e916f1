"""The linters and the type checker, as tests, so that there is one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff-check", "ruff-format", "mypy"],
)
def test_clean(command: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_modules_stay_small() -> None:
    """A reader holds a few hundred lines in mind; what grows beyond is more than one thing."""
    sizes = {
        path.relative_to(CHECKOUT): len(path.read_text().splitlines())
        for folder in ("hetmemd", "tests")
        for path in (CHECKOUT / folder).rglob("*.py")
    }
    assert {str(path): size for path, size in sizes.items() if size > 600} == {}

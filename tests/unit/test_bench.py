"""Each figure of tests/bench stands in its table with the limit that it is held against."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from tests.bench.figures import LIMITS, Figures

TOP = Path(__file__).parents[2]
BENCH = TOP / "tests/bench"


def test_the_table_says_what_is_held_against_what() -> None:
    found: dict[str, dict[str, str]] = {}
    bench = ""
    for row in re.findall(r"^\| (.*) \|$", (BENCH / "README.md").read_text(), re.MULTILINE):
        command, figure, limit = (cell.strip() for cell in row.split("|"))
        if named := re.search(r"tests\.bench\.(\w+)", command):
            bench = named[1]
        if bench and limit:
            found.setdefault(bench, {})[figure] = limit
    assert found == {bench: {name: str(limit) for name, limit in limits.items()} for bench, limits in LIMITS.items()}


def test_each_bench_is_named_and_has_its_figures() -> None:
    benches = {file.stem for file in BENCH.glob("*.py")} - {"figures"}
    assert benches == LIMITS.keys()
    work = (TOP / "README.md").read_text().partition("## Work on it")[2]
    for bench in benches:
        assert re.search(rf"\b{bench}\b", work), bench
        text = (BENCH / f"{bench}.py").read_text()
        assert all(f'"{name}"' in text for name in LIMITS[bench]), bench


@pytest.mark.parametrize(("words", "fails"), [(["--check"], True), ([], False)])
def test_what_is_beyond_its_limit_is_said_and_fails_where_it_is_checked(
    words: list[str], fails: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    figures = Figures(argparse.ArgumentParser())
    figures.options()
    figures.held("growth / 2 MiB", 0.5)
    figures.held("C / queries", 0.9)
    figures.end()
    assert "BEYOND" not in capsys.readouterr().out
    figures.held("growth / 2 MiB", 1.5, " of 64 MiB")
    assert capsys.readouterr().out == "growth / 2 MiB of 64 MiB: ratio 1.500, limit at most 1   BEYOND\n"
    if not fails:
        figures.end()
        return
    with pytest.raises(SystemExit) as ended:
        figures.end()
    assert ended.value.code == 1

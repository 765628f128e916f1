"""The man pages say what the code knows: every key, mode, rule, verb, option and setting; and their examples hold."""

from __future__ import annotations

import argparse
import ast
import configparser
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hetmemd import instance, service, settings
from hetmemd.ctl import completion
from hetmemd.ctl.main import parser
from hetmemd.engine.holds import PATH as HOLDS
from hetmemd.engine.kernel_table import PATH as KERNEL_TABLE
from hetmemd.engine.ledger import PATH as LEDGER
from hetmemd.policy import language, last_good
from hetmemd.policy.nodes import WORDS as SELECTORS
from hetmemd.policy.parse import parse
from hetmemd.remote.result import Outcome
from hetmemd.report import SOCKET

CHECKOUT = Path(__file__).parents[3]
PAGES = CHECKOUT / "packaging" / "man"
NAMES = ("hetmemctl.1", "hetmemd.policy.5", "hetmemd.8")
RULE = re.compile(r"\b[FMITL][0-9]\b")
ESCAPES = {r"\-": "-", r"\e": "\\", r"\&": "", r"\(dq": '"', r"\(ha": "^"}


def source(name: str) -> str:
    """A page with what mdoc escapes as the reader sees it."""
    text = (PAGES / name).read_text("ascii")
    return re.sub(r"\\\(..|\\.", lambda found: ESCAPES[found[0]], re.sub(r'^\.\\".*\n', "", text, flags=re.MULTILINE))


def section(name: str, title: str) -> str:
    found = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", source(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name} has a section {title}"
    return found[1]


def items(text: str, macro: str = "") -> set[str]:
    """The words that begin items of lists: all those before `No`, `Pq`, `Ar` or `Op` of `.It Ic a , b No ...`."""
    found: set[str] = set()
    for line in re.findall(rf"^\.It {macro + ' ' if macro else ''}(.+)$", text, re.MULTILINE):
        words = re.split(r" (?:No|Pq|Ar|Op|Cm)\b", line)[0]
        found.update(words.split(" , "))
    return found


def options(text: str) -> set[str]:
    """`.It Fl h , Fl Fl help Ar X` has -h and --help."""
    lines = " ".join(re.findall(r"^\.It (Fl .+)$", text, re.MULTILINE))
    return {"-" * len(dashes.split()) + word for dashes, word in re.findall(r"((?:Fl )+)(?!Fl )(\S+)", lines)}


def blocks(text: str) -> list[str]:
    return re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)


def cited() -> set[str]:
    """Numbers of rules in any text of the code, and in the journal's catalog."""
    found = set(RULE.findall((CHECKOUT / "systemd/hetmemd.catalog").read_text()))
    for path in sorted((CHECKOUT / "hetmemd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(RULE.findall(node.value))
    return found


def test_every_key_stands_in_its_section() -> None:
    page = "hetmemd.policy.5"
    assert items(section(page, "MATCHING"), "Ic") == set(language.MATCH_KEYS)
    assert items(section(page, "PLACEMENT"), "Ic") == set(language.PLACEMENT_KEYS)
    assert items(section(page, "HANDLING"), "Ic") == set(language.HANDLING_KEYS)


def test_every_word_of_the_language_is_explained() -> None:
    placement = section("hetmemd.policy.5", "PLACEMENT")
    assert items(placement, "Cm") == {*language.MODES, *language.FLAGS}
    for word in language.CLASSES:
        assert re.search(rf"^\.Cm .*\b{word}\b|^and\n\.Cm {word}$", placement, re.MULTILINE), word
    assert {*SELECTORS, "tier:N"} <= items(section("hetmemd.policy.5", "NODES"), "Cm")
    assert items(section("hetmemd.policy.5", "WEIGHTS"), "Cm") == set(language.COMPUTED_WEIGHTS)
    page = source("hetmemd.policy.5")
    for key, words in language.WORDS.items():
        for word in words:
            assert re.search(rf"^\.(?:It )?Cm {word}\b", page, re.MULTILINE), f"{key} = {word}"


def test_directories_stand_in_their_order() -> None:
    found = re.findall(r"^\.It Pa (\S+)$", section("hetmemd.policy.5", "FILES"), re.MULTILINE)
    assert tuple(found) == language.DIRECTORIES


def test_every_rule_that_is_cited_can_be_looked_up() -> None:
    rules = section("hetmemd.policy.5", "RULES")
    listed = re.findall(r"^\.It ([FMITL][0-9])$", rules, re.MULTILINE)
    numbers = {"F": 3, "M": 3, "I": 8, "T": 5, "L": 7}
    assert listed == [f"{letter}{number}" for letter, last in numbers.items() for number in range(1, last + 1)]
    assert len(cited()) > 20, "the search finds what it is for"
    assert cited() <= set(listed)


def test_every_example_of_the_language_holds() -> None:
    shown: set[str] = set()
    for block in blocks(source("hetmemd.policy.5")):
        text = block
        if "[[policy]]" not in block:
            key = block.split(" =")[0]
            shown.add(key)
            mode = "weighted-interleave" if key == "weights" else "bind"
            context = {"cgroup": '"/a"', "mode": f'"{mode}"', "nodes": '"0-1"'}
            lines = [f"{name} = {value}\n" for name, value in context.items() if name != key]
            text = "[[policy]]\n" + "".join(lines) + block
        parsed = parse(text.encode(), "/example.toml")
        assert parsed.tables, f"{text}{parsed.faults}"
    assert shown == set(language.KEYS), "and every key has one of its own"


def test_every_verb_and_option_of_hetmemctl() -> None:
    top = parser()
    verbs = completion.verbs(top)
    described = section("hetmemctl.1", "DESCRIPTION")
    assert items(described, "Cm") == set(verbs)
    assert set(re.findall(r"^\.Nm\n\.Cm (\w+)", section("hetmemctl.1", "SYNOPSIS"), re.MULTILINE)) == set(verbs)
    every = {
        option
        for each in (top, *verbs.values())
        for action in each._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
    }
    assert options(section("hetmemctl.1", "OPTIONS")) == every
    text = section("hetmemctl.1", "OPTIONS")
    assert {str(outcome) for outcome in Outcome} <= items(text, "Cm")


def test_exit_statuses() -> None:
    assert items(section("hetmemctl.1", "EXIT STATUS")) == {"0", "1", "2", "3"}
    assert items(section("hetmemd.8", "EXIT STATUS")) == {
        "0",
        "1",
        "2",
        str(service.EX_TEMPFAIL),
        str(service.EX_CONFIG),
    }


def test_every_option_and_setting_of_the_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service.main(["--help"])
    usage = capsys.readouterr().out
    assert options(section("hetmemd.8", "OPTIONS")) == set(re.findall(r"(?<![\w-])--?[a-z]+", usage))
    names = {entry.name for entry in dataclasses.fields(settings.Settings)}
    assert items(section("hetmemd.8", "SETTINGS"), "Ic") == names
    brakes = {entry.name for entry in dataclasses.fields(settings.BrakeSettings)}
    assert items(section("hetmemd.8", "BRAKES"), "Va") == brakes


def test_files_of_the_daemon() -> None:
    files = section("hetmemd.8", "FILES")
    paths = (
        settings.PATH,
        *settings.OBSERVE_FILES,
        SOCKET,
        LEDGER,
        HOLDS,
        KERNEL_TABLE,
        instance.LOCK,
        last_good.FOLDER,
        *language.DIRECTORIES,
    )
    assert items(files, "Pa") == set(paths)


def test_the_unit_names_the_pages() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.read(CHECKOUT / "systemd/hetmemd.service")
    named = re.findall(r"man:(\S+)\((\d)\)", unit["Unit"]["Documentation"])
    assert {f"{name}.{number}" for name, number in named} == set(NAMES)
    assert {path.name for path in PAGES.iterdir()} == set(NAMES)


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_pages_are_formatted_without_a_warning(name: str) -> None:
    shown = subprocess.run(
        ["groff", "-mdoc", "-ww", "-Tutf8", "-P-c", "-P-b", "-P-u", str(PAGES / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stderr == ""
    assert "NAME" in shown.stdout


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_pages_are_good_mdoc(name: str) -> None:
    shown = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", str(PAGES / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (shown.returncode, shown.stdout) == (0, "")


def test_the_examples_of_the_readme_are_policies() -> None:
    text = (CHECKOUT / "README.md").read_text()
    blocks = [
        re.sub("^    ", "", block, flags=re.MULTILINE)
        for block in re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    ]
    tables = [block for block in blocks if "[[policy]]" in block]
    keys = [line for block in blocks for line in block.splitlines() if re.match(r"[a-z_]+ *= ", line)]
    # Those of the tables, and those of one line each.
    lines = [line for line in keys if not any(line in table for table in tables)]
    assert len(tables) == 1 and len(lines) >= 8
    for line in lines:
        mode = "weighted-interleave" if line.startswith("weights") else "bind"
        nodes = "" if line.startswith("nodes") else 'nodes = "all"\n'
        tables.append(f'[[policy]]\ncgroup = "/a"\nmode = "{mode}"\n{nodes}{line}\n')
    for table in tables:
        assert parse(table.encode(), "/etc/hetmemd.d/a.toml").faults == (), table

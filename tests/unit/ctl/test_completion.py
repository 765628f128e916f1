"""Completion scripts, as the shells take them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from hetmemd.ctl import completion
from hetmemd.ctl.main import parser


def complete(line: str) -> list[str]:
    """What bash offers at the end of `line`."""
    words = line.split(" ")
    script = (
        completion.script(parser(), "bash")
        + "COMP_WORDS=("
        + " ".join(f"'{word}'" for word in words)
        + f'); COMP_CWORD={len(words) - 1}; _hetmemctl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    offered = subprocess.run(["bash", "-c", script], cwd="/usr", capture_output=True, text=True, timeout=60, check=True)
    assert offered.stderr == ""
    return sorted(filter(None, offered.stdout.splitlines()))


def test_verbs() -> None:
    verbs = ["status", "explain", "check", "weights", "bind", "move", "undo", "release", "observe", "completion"]
    assert complete("hetmemctl ") == sorted([*verbs, "--help", "--version"])
    assert complete("hetmemctl st") == ["status"]


def test_options_and_words_of_a_verb() -> None:
    assert complete("hetmemctl status --") == ["--help", "--json"]
    assert complete("hetmemctl completion z") == ["zsh"]
    assert "lib" in complete("hetmemctl check ")
    assert complete("hetmemctl check --root li") == sorted(complete("hetmemctl check --root li"))
    assert "lib" in complete("hetmemctl check --root li")


def test_every_verb_is_known() -> None:
    for shell in ("bash", "zsh"):
        script = completion.script(parser(), shell)
        for verb in completion.verbs(parser()):
            assert f"        {verb}) " in script


def test_zsh_takes_it() -> None:
    if shutil.which("zsh") is None:
        return  # its syntax is not checked where it is not installed; nothing else depends on it
    subprocess.run(["zsh", "-n"], input=completion.script(parser(), "zsh"), text=True, timeout=60, check=True)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_hidden_options_stay_hidden(shell: str) -> None:
    assert "--socket" not in completion.script(parser(), shell)

"""Who else moves pages, by switches in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetmemd.kernel.root import Root
from hetmemd.machine import movers
from hetmemd.machine.movers import Mover

DAMON = movers.DAMON.lstrip("/")


def put(top: Path, path: str, text: str) -> None:
    file = top / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def state(top: Path, name: str) -> str:
    return of(top, name).state


def of(top: Path, name: str) -> Mover:
    (mover,) = (mover for mover in movers.read(Root(top)) if mover.name == name)
    return mover


def test_L6_what_the_kernel_does_not_have_is_off(tmp_path: Path) -> None:
    found = movers.read(Root(tmp_path))
    assert [mover.name for mover in found] == list(movers.NAMES)
    assert all(mover.is_on is False and not mover.how for mover in found)


def test_L6_the_running_kernel_is_read_without_an_error() -> None:
    assert [mover.name for mover in movers.read(Root())] == list(movers.NAMES)


@pytest.mark.parametrize(
    ("text", "words", "others"),
    [("1\n", ("CPUs",), ("faster",)), ("2\n", ("faster",), ("CPUs",)), ("3\n", ("CPUs", "faster"), ())],
)
def test_L6_numa_balancing_by_its_modes(
    tmp_path: Path, text: str, words: tuple[str, ...], others: tuple[str, ...]
) -> None:
    put(tmp_path, movers.BALANCING, text)
    balancing = of(tmp_path, "numa-balancing")
    assert balancing.is_on
    assert all(word in balancing.how for word in words) and not any(word in balancing.how for word in others)


SWITCHES = {
    "numa-balancing": (movers.BALANCING, "0", "1"),
    "demotion": (movers.DEMOTION, "false", "true"),
    "damon-reclaim": ("/sys/module/damon_reclaim/parameters/enabled", "N", "Y"),
    "damon-lru-sort": ("/sys/module/damon_lru_sort/parameters/enabled", "N", "Y"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_L6_each_switch_is_that_movers_alone(tmp_path: Path, name: str) -> None:
    path, off, on = SWITCHES[name]
    put(tmp_path, path, off + "\n")
    assert {mover.state for mover in movers.read(Root(tmp_path))} == {"off"}
    put(tmp_path, path, on + "\n")
    assert {mover.name for mover in movers.read(Root(tmp_path)) if mover.is_on} == {name}
    assert of(tmp_path, name).how


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("text", ["perhaps\n", "-1\n", "\N{SUPERSCRIPT TWO}\n"])
def test_L6_a_switch_that_says_what_no_kernel_says_is_unknown(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path, SWITCHES[name][0], text)
    assert state(tmp_path, name) == "unknown"
    assert SWITCHES[name][0] in of(tmp_path, name).how


@pytest.mark.parametrize("name", SWITCHES)
def test_L6_a_switch_that_cannot_be_read_is_unknown(tmp_path: Path, name: str) -> None:
    # A folder in its place fails to be read for root too.
    (tmp_path / SWITCHES[name][0].lstrip("/")).mkdir(parents=True)
    assert state(tmp_path, name) == "unknown"
    assert SWITCHES[name][0] in of(tmp_path, name).how


def scheme(top: Path, kdamond: int, number: int, action: str, state: str = "on") -> None:
    folder = f"{DAMON}/{kdamond}"
    put(top, f"{folder}/state", f"{state}\n")
    put(top, f"{folder}/contexts/nr_contexts", "1\n")
    put(top, f"{folder}/contexts/0/schemes/{number}/action", f"{action}\n")


def test_L6_damon_moves_by_its_running_schemes(tmp_path: Path) -> None:
    put(tmp_path, f"{DAMON}/nr_kdamonds", "2\n")
    scheme(tmp_path, 0, 0, "stat")
    scheme(tmp_path, 0, 1, "hugepage")
    scheme(tmp_path, 1, 0, "migrate_cold", state="off")
    assert state(tmp_path, "damon") == "off"
    put(tmp_path, f"{DAMON}/1/state", "on\n")
    scheme(tmp_path, 1, 7, "pageout")
    damon = of(tmp_path, "damon")
    assert (damon.is_on, damon.how) == (True, "migrate_cold, pageout")


@pytest.mark.parametrize("action", ["migrate_hot", "migrate_cold", "pageout", "lru_prio", "lru_deprio"])
def test_L6_every_action_that_moves_pages_counts(tmp_path: Path, action: str) -> None:
    scheme(tmp_path, 0, 0, action)
    assert of(tmp_path, "damon").how == action


def test_L6_damon_whose_state_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / DAMON / "0" / "state").mkdir(parents=True)
    assert state(tmp_path, "damon") == "unknown"

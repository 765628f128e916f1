"""The lines of tables and keys, against tomllib's own reading of the same text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hetmemd.policy.locate import Place, line_of, locate

EVERYTHING = '''# a comment with [[brackets]] and a = "b"
"quoted key" . 'literal' = """first
[[policy]]
ends in two quotes"""""
plain.dotted.key = 1

  [[policy]]  # a comment
cgroup = '/a'
weights = { "dr\\u0061m" = 3, cpuless.inner = [1,
  2, # ] not the end
  [3,
   "]"] ] }
when = 1979-05-27T07:32:00Z # later
empty = {}
none = []
text = \'\'\'
cgroup = "no key"
it''s here\'\'\'
[policy.sub]
k = "a\\"b # no comment"
[[policy.sub.inner]]
[[policy]]
cgroup = '/b'
[policy.sub]
[[policy.sub.inner]]
[[policy.sub.inner]]
last = true'''


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_form_that_toml_has(ending: str) -> None:
    lines = locate(EVERYTHING.replace("\n", ending))
    assert lines["quoted key", "literal"] == 2
    assert lines["plain", "dotted", "key"] == 5
    assert lines["policy",] == lines["policy", 0] == 7
    assert lines["policy", 0, "cgroup"] == 8
    assert lines["policy", 0, "weights", "dram"] == 9
    assert lines["policy", 0, "weights", "cpuless", "inner", 1] == 10
    assert lines["policy", 0, "weights", "cpuless", "inner", 2, 1] == 12
    assert lines["policy", 0, "when"] == 13
    assert lines["policy", 0, "text"] == 16
    assert lines["policy", 0, "sub"] == 19
    assert lines["policy", 0, "sub", "k"] == 20
    assert lines["policy", 0, "sub", "inner", 0] == 21
    assert lines["policy", 1] == 22
    assert lines["policy", 1, "sub", "inner", 1, "last"] == 27


def test_the_nearest_thing_around_tells_the_line() -> None:
    lines = locate("\n[[policy]]\na = 1\n")
    assert line_of(lines, ("policy", 0, "missing")) == 2
    assert line_of(lines, ("nowhere",)) == 1


def places(value: Any, at: Place = ()) -> set[Place]:
    """Every place of a value that tomllib gave."""
    found = {at} - {()}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found |= places(each, (*at, key))
    return found


def test_it_finds_all_that_tomllib_finds() -> None:
    assert set(locate(EVERYTHING)) == places(tomllib.loads(EVERYTHING))


KEYS = st.one_of(
    st.text("abcXYZ019_-", min_size=1, max_size=4),
    st.text(min_size=0, max_size=4).map(lambda text: '"' + escaped(text) + '"'),
    st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="'"), max_size=4).map("'{}'".format),
)


def escaped(text: str) -> str:
    return "".join(each if each.isalnum() and each.isascii() else f"\\U{ord(each):08x}" for each in text)


STRINGS = st.one_of(
    st.text("a\\\"'#[]{}=,\n\t", max_size=8).map(lambda text: '"' + escaped(text) + '"'),
    st.text('a\\"#[]{}=, ', max_size=8).map("'{}'".format),
    st.text("ab#[]{}=,'\n ", max_size=8).map('"""{}"""'.format),
    st.text('ab#[]{}=,"\\\n ', max_size=8).map("'''{}'''".format),
    st.sampled_from(['"""a"""""', '""""b"""', "'''c'''''", '""""""', '"""a\\"""b"""', '"""\\\n  x"""']),
)
SCALARS = st.one_of(STRINGS, st.sampled_from(["1", "-2.5e3", "true", "1979-05-27 07:32:00", "07:32:00", "inf", "0x1F"]))
BREAKS = st.sampled_from(["", " ", "\n", " # ]\n", "\n\n  "])


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=3))
    text = "["
    for item in items:
        text += draw(BREAKS) + item + draw(BREAKS) + ","
    if items:
        text = text[: draw(st.sampled_from((len(text), -1)))]
    return text + draw(BREAKS) + "]"


@st.composite
def inline_tables(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(st.sampled_from(["a", "b.c", '"d e"', "'f'"]), max_size=3, unique=True))
    return "{" + ", ".join(f"{key} = {draw(inner)}" for key in keys) + "}"


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    text = ""
    for _ in range(draw(st.integers(0, 4))):
        header = draw(
            st.sampled_from(["", "[[policy]]", "[[ policy ]] # x", "[policy.sub]", "[other]", '["policy".x.y]'])
        )
        text += header + "\n"
        for _ in range(draw(st.integers(0, 3))):
            key = " . ".join(draw(st.lists(KEYS, min_size=1, max_size=2)))
            text += draw(st.sampled_from(["", "  ", "# [x]\n"])) + f"{key} = {draw(VALUES)}" + draw(BREAKS) + "\n"
    return text


def loaded(text: str) -> dict[str, Any]:
    """What tomllib says; a text that it does not take is no example."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
        raise


@given(documents())
def test_it_agrees_with_tomllib_on_any_document(text: str) -> None:
    content = loaded(text)
    lines = locate(text)
    assert set(lines) == places(content)
    total = text.count("\n") + 1
    assert all(1 <= line <= total for line in lines.values())


@given(documents(), st.integers(1, 9))
def test_lines_above_only_shift(text: str, above: int) -> None:
    loaded(text)
    shifted = locate("# [[policy]]\n" * above + text)
    assert shifted == {place: line + above for place, line in locate(text).items()}

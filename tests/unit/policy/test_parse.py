"""One file: what is taken, and every fault with its line and hint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel.mempolicy import Flag, Mode
from hetmemd.policy.document import LARGEST
from hetmemd.policy.faults import Fault, printable
from hetmemd.policy.language import KEYS
from hetmemd.policy.parse import parse
from tests.unit.policy.given import policy, tables, toml

PATH = "/etc/hetmemd.d/50-test.toml"
DOCUMENTED = """
[[policy]]
cgroup  = "/system.slice/postgresql*.service"   # path below the cgroup2 root
mode    = "weighted-interleave"
nodes   = "dram+cpuless"
weights = "bandwidth"
memory  = ["anon", "heap"]
existing = "rebalance"
rate    = "256MiB/s"
"""


HUGE = int("9" * 400)


def faults(text: str | bytes) -> list[str]:
    found = parse(text if isinstance(text, bytes) else text.encode(), "f")
    assert not (found.faults and found.tables)
    return [str(fault) for fault in found.faults]


def one_fault(**more: object) -> str:
    """The only fault of a table with these keys, without `f:`."""
    head = {"cgroup": "/a", "mode": "bind", "nodes": "0"}
    values = {key: value for key, value in (head | more).items() if value is not None}
    text = "[[policy]]\n" + "\n".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else toml(value)}" for key, value in values.items()
    )
    found = faults(text)
    assert len(found) == 1, found
    return found[0].removeprefix("f:")


def test_the_example_of_the_rules_is_taken() -> None:
    (table,) = tables(DOCUMENTED)
    assert (table.file, table.line, table.index) == (PATH, 2, 0)
    assert table.request is not None
    assert (table.request.mode, table.request.weights) == (Mode.WEIGHTED_INTERLEAVE, "bandwidth")
    assert table.request.memory == ("anon", "heap")
    assert table.handling.said() == {"existing": "rebalance", "rate": 256 << 20}


def test_every_key_is_taken() -> None:
    text = policy(
        "/a",
        "bind",
        "0-1",
        flags=["relative", "balancing"],
        home_node=0,
        memory=["all", "!stack"],
        existing="once",
        rate="1MiB/s",
        rate_total=5000,
        burst="64KiB",
        tolerance=0.5,
        min_region="2MiB",
        min_age="1.5min",
        shared="move",
        foreign="override",
        enabled=False,
        inherit="self",
        confine=True,
    )
    (table,) = tables(text + 'weights = "kernel"\n'.replace('weights = "kernel"\n', ""))
    assert (table.enabled, table.inherit, table.confine) == (False, "self", True)
    assert table.request is not None and table.request.flags == Flag.RELATIVE_NODES | Flag.NUMA_BALANCING
    assert table.handling.said() == {
        "existing": "once",
        "rate": 1 << 20,
        "rate_total": 5000,
        "burst": 64 << 10,
        "tolerance": 0.5,
        "min_region": 2 << 20,
        "min_age": 90.0,
        "shared": "move",
        "foreign": "override",
    }


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "policy = []\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert parse(text.encode(), "f").tables == () and faults(text) == []


def test_all_faults_of_a_file_are_told_at_once_in_their_order() -> None:
    text = """[[policy]]
cgruop = "/a"
mode = "weighted-interlave"
nodes = "drma"

[[policy]]
cgroup = "/b"
exsting = "once"
rate = "256"
[polcy]
"""
    assert faults(text) == [
        'f:1: a policy without cgroup (say which: cgroup = "/system.slice/name.service")',
        "f:2: unknown key 'cgruop' (did you mean 'cgroup'?)",
        "f:3: mode is 'weighted-interlave', which is no mode (did you mean 'weighted-interleave'?)",
        "f:4: nodes: 'drma' selects no nodes (did you mean 'dram'?)",
        "f:8: unknown key 'exsting' (did you mean 'existing'?)",
        "f:9: rate is '256': write it like \"256MiB/s\"",
        "f:10: unknown key 'polcy' (did you mean 'policy'?)",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = [", "f:1: not TOML"),
        (b"\n\n= 1\n", "f:3: not TOML: invalid statement"),
        (b'[[policy]]\ncgroup = "/a\n', "f:2: not TOML"),
        (b'x = """\n\n', "f:2: not TOML"),
        ('# \u2028\u0085\nx = """\n'.encode(), "f:2: not TOML"),
        (b"[[policy]]\na = 1\na = 2\n", "f:3: not TOML: cannot overwrite a value"),
        (b"a = 1\nb = \xff\n", "f:2: byte 10 is not UTF-8"),
        (b"\xff\xfea\0", "f:1: byte 0 is not UTF-8"),
        (b"\xef\xbb\xbf[[policy]]", "byte order mark"),
        (b"#" * (LARGEST + 1), "larger than 1 MiB"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"\nx = " + b"9" * 5000, "f:2: not TOML: a number of thousands of digits"),
        (b"\nx = " + b"9_" * 5000 + b"9", "f:2: not TOML: a number of thousands of digits"),
        (b"\n[" + b"a." * 400_000 + b"a]", "f:2: a key of more than 32 dotted parts"),
        (b"x = {" + b'"a" . ' * 150_000 + b"a = 1}", "f:1: a key of more than 32 dotted parts"),
        (b'[policy]\ncgroup = "/a"\n', "f:1: policy is a table, not an array of tables (write [[policy]])"),
        (b"policy = [1]\n", "not an array of tables"),
        (b'cgroup = "/a"\n', "it belongs below a [[policy]] header"),
        (b"sched = 1\n", "a file holds [[policy]] tables and nothing else"),
    ],
)
def test_content_that_is_no_policy_file(content: bytes, says: str) -> None:
    (fault,) = faults(content)
    assert says in fault


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"enabled", "confine"}))
def test_a_boolean_is_the_wrong_type_for_most_keys(key: str) -> None:
    values: dict[str, object] = {"cgroup": "/a", "mode": "bind", "nodes": "0", key: True}
    text = "[[policy]]\n" + "\n".join(
        f"{name} = {'true' if value is True else toml(value)}" for name, value in values.items()
    )
    found = [fault for fault in faults(text) if f"{key} is a boolean" in fault]
    assert len(found) == 1
    assert found[0].startswith(f"f:{list(values).index(key) + 2}: ")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"enabled": 1}, "5: enabled is an integer, not a boolean"),
        ({"nodes": 0}, '4: nodes is an integer, not a string (write nodes = "0")'),
        ({"nodes": [0, 1]}, '4: nodes is an array, not a string (write nodes = "0,1")'),
        ({"weights": [3, 1]}, "5: weights is an array, not a string or a table (write weights = { 0 = 3, 1 = 1 })"),
        ({"rate": 1.5}, '5: rate is a float, not a string or an integer (write rate = "256MiB/s")'),
        ({"existing": 1}, "5: existing is an integer, not a string (one of rebalance, once, leave)"),
        ({"nodes": None}, "3: mode 'bind' without nodes"),
        ({"nodes": ""}, "4: nodes: no node is named"),
        ({"nodes": "0!0"}, "leaves no node"),
        ({"nodes": "1-0"}, "runs backwards"),
        ({"nodes": "1024"}, "larger than 1023"),
        ({"nodes": "9" * 4000}, "is no list of nodes"),
        ({"nodes": "9" * 5000}, "is no list of nodes"),
        ({"nodes": "dram,cpuless"}, "'dram+cpuless'"),
        ({"nodes": "0,dram"}, "mixes numbers and selectors"),
        ({"nodes": "dram+"}, "a node is missing"),
        ({"nodes": "+dram"}, "a node is missing"),
        ({"nodes": "dram++1"}, "a node is missing"),
        ({"nodes": ",!1"}, "a node is missing"),
        ({"nodes": "0,"}, "no list of nodes"),
        ({"nodes": "tier:x"}, "tier"),
        ({"mode": "preferred", "nodes": "0-1"}, "exactly one node"),
        ({"mode": "local"}, "4: mode 'local' takes no nodes"),
        ({"mode": "default"}, "takes no nodes"),
        ({"mode": "default", "nodes": None, "flags": ["static"]}, "takes no flags"),
        ({"mode": "local", "nodes": None, "flags": "relative"}, "takes no flags"),
        ({"flags": ["relative", "static"]}, "exclude each other"),
        ({"flags": ["rellative"]}, "did you mean 'relative'?"),
        ({"flags": [1]}, "a flag is an integer"),
        ({"mode": "interleave", "flags": ["balancing"]}, "bind and preferred-many only"),
        ({"mode": "interleave", "home_node": 0}, "bind and preferred-many only"),
        ({"home_node": 5000}, "no node"),
        ({"weights": "kernel"}, "takes no weights"),
        ({"mode": "weighted-interleave", "weights": "bandwith"}, "did you mean 'bandwidth'?"),
        ({"mode": "weighted-interleave", "weights": {}}, "weights is empty"),
        ({"mode": "weighted-interleave", "weights": {"0": 0}}, "leave it out of nodes"),
        ({"mode": "weighted-interleave", "weights": {"0": 256}}, "1 to 255"),
        ({"mode": "weighted-interleave", "weights": {"0": "3"}}, "is a string, not an integer"),
        ({"mode": "weighted-interleave", "weights": {"0": 1, "drum": 3}}, "did you mean 'dram'?"),
        ({"mode": "weighted-interleave", "nodes": "0-1", "weights": {"0": 3}}, "node 1 has no weight (add 1 = 1)"),
        ({"mode": "weighted-interleave", "weights": {"0": 3, "0-1": 2}}, "two weights"),
        ({"nodes": "9" * 5000}, "a number of 5000 digits"),
        ({"memory": []}, "names no class"),
        ({"memory": ["hepa"]}, "did you mean 'heap'?"),
        ({"memory": ["all", "heap"]}, "beside all"),
        ({"memory": ["!stack"]}, 'write ["all", "!stack"]'),
        ({"memory": ["heap", "!stack"]}, "out of nothing"),
        ({"memory": ["all", "!all"]}, "no class of memory"),
        ({"memory": [1]}, "not a string"),
        (
            {"memory": ["all", "!heap", "!anon", "!stack", "!exec", "!file", "!shm", "!hugetlb"]},
            "leaves out every class",
        ),
        ({"existing": "onec"}, "did you mean 'once'?"),
        ({"inherit": "none"}, "one of subtree, self"),
        ({"rate": "0MiB/s"}, 'existing = "leave"'),
        ({"rate": "1XiB/s"}, "no unit 'XiB'"),
        ({"rate": -1}, "out of range"),
        ({"burst": "1B"}, "less than a page"),
        ({"tolerance": 1.5}, "from 0 to 1"),
        ({"tolerance": "0.1"}, "is a string"),
        ({"min_region": "2 M"}, "no unit 'M'"),
        ({"min_age": "-1s"}, 'write it like "30s"'),
        ({"min_age": HUGE}, "min_age is 999"),
        ({"min_age": f"{HUGE}ms"}, "out of range"),
        ({"min_age": float("inf")}, "out of range"),
        ({"min_age": float("nan")}, "out of range"),
        ({"tolerance": HUGE}, "from 0 to 1"),
        ({"tolerance": float("inf")}, "from 0 to 1"),
        ({"min_region": f"{HUGE}.0GiB"}, "out of range"),
        ({"rate": f"{HUGE}.5GiB/s"}, "out of range"),
        ({"rate": "9" * 5000 + "B/s"}, "out of range"),
        ({"rate": "1" + "x" * 5000}, 'write it like "256MiB/s"'),
        ({"mode": None, "nodes": None, "confine": True}, "confine without nodes"),
        ({"mode": "default", "nodes": None, "confine": True}, "confine without nodes"),
        ({"mode": None}, "nodes without mode"),
        ({"mode": None, "nodes": None, "memory": "all"}, "memory without mode"),
        ({"cgroup": "a"}, "write '/a'"),
        ({"cgroup": "/x/[a"}, "never closed"),
    ],
)
def test_faults_of_a_table(more: dict[str, object], says: str) -> None:
    told = one_fault(**more)
    assert says in told and len(told) < 500


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"enabled", "confine", "cgroup"}))
@pytest.mark.parametrize("form", ["{}", "[{}]", "{{ 0 = {} }}"])
def test_a_number_that_python_does_not_write_in_decimal_is_a_fault(key: str, form: str) -> None:
    text = '[[policy]]\ncgroup = "/a"\n' + f"{key} = " + form.format("0x" + "f" * 4000)
    told = faults(text)
    assert told and all(len(each) < 500 for each in told)


def test_what_faults_quote_is_cut() -> None:
    long = "x" * 100_000
    text = f'''"{long}" = 1
[[policy]]
cgroup = "{long}"
mode = "{long}"
nodes = "{long}"
weights = {{ "{long}" = 1 }}
memory = ["!{long}"]
rate = "1{long}/s"
flags = ["{long}"]
existing = "{long}"
"{long}" = 1
'''
    told = faults(text)
    assert len(told) == 10
    assert max(map(len, told)) < 500


def test_of_many_faults_the_first_are_told() -> None:
    told = faults("".join(f"key{number} = 1\n" for number in range(5000)))
    assert len(told) == 101
    assert told[-1] == "f:101: after 100 faults the rest was not looked at"


def test_a_tier_as_a_weights_key_needs_quotes() -> None:
    text = '[[policy]]\ncgroup = "/a"\nmode = "weighted-interleave"\nnodes = "all"\nweights = { tier.4 = 3 }\n'
    assert faults(text) == ['f:5: a tier as a key needs quotes ({ "tier:4" = 3 })']


def test_a_table_that_is_switched_off_is_checked_as_well() -> None:
    assert "no mode" in one_fault(enabled=False, mode="bnid")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("{ 0 = 1, 1 = 256 }", ["f:5: the weight of '1' is 256 (1 to 255)"]),
        ("{ 0-1 = 0 }", ["f:5: the weight of '0-1' is 0 (to leave a node out, leave it out of nodes)"]),
        ("{ 0 = 1, 1 = '2' }", ["f:5: the weight of '1' is a string, not an integer"]),
        ("{ 0 = 1, drma = 2 }", ["f:5: weights: 'drma' selects no nodes (did you mean 'dram'?)"]),
        ("{ 0 = 1, tier.4 = 2 }", ['f:5: a tier as a key needs quotes ({ "tier:4" = 3 })']),
        (
            "{ 0 = 256 }",
            ["f:5: node 1 has no weight (add 1 = 1)", "f:5: the weight of '0' is 256 (1 to 255)"],
        ),
    ],
)
def test_a_node_whose_weight_has_a_fault_is_not_called_without_one(weights: str, expected: list[str]) -> None:
    head = '[[policy]]\ncgroup = "/a"\nmode = "weighted-interleave"\nnodes = "0-1"\n'
    assert sorted(faults(f"{head}weights = {weights}\n")) == expected


def test_inline_tables_have_their_lines() -> None:
    text = 'policy = [\n  { cgroup = "/a", mode = "local" },\n  { cgroup = "/b", mod = "local" },\n]\n'
    assert faults(text) == ["f:3: unknown key 'mod' (did you mean 'mode'?)"]


def test_what_is_printed_is_printable() -> None:
    assert printable("a\udcffb\x1b[0m\n") == "a\\xffb\\x1b[0m\\n"
    assert str(Fault("x\udc80.toml", 1, "m", "h")) == "x\\x80.toml:1: m (h)"


def test_no_depth_of_nesting_raises() -> None:
    for depth in range(150, 1000, 53):
        for opening, closing in (("[", "]"), ("{a=", "}")):
            assert faults("x = " + opening * depth + "1" + closing * depth) != []


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_content_raises(data: bytes) -> None:
    found = parse(data, "f")
    assert not (found.tables and found.faults)


UNITS = ["", ".0", ".0GiB", "GiB", "kB/s", ".5MiB/s", "ms", "h", ".1min"]
VALUES = st.recursive(
    st.one_of(
        st.booleans().map(lambda value: str(value).lower()),
        st.integers(-(1 << 70), 1 << 70).map(str),
        st.tuples(st.sampled_from(["", "-"]), st.integers(1, 5000)).map(lambda pair: pair[0] + "9" * pair[1]),
        st.integers(1, 5000).map(lambda digits: "0x" + "f" * digits),
        st.tuples(st.integers(1, 5000), st.sampled_from(UNITS)).map(lambda pair: f'"{"9" * pair[0]}{pair[1]}"'),
        st.floats().map(lambda value: str(value).replace("nan", "nan")),
        st.sampled_from(['"all"', '"0"', '"bind"', '"/a"', '"1MiB/s"', '"self"', "1979-05-27", '""', '"!"', '"["']),
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
        | st.dictionaries(st.sampled_from(["a", "0", "all"]), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{key} = {value}" for key, value in items.items()) + "}"
        )
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8))
def test_no_value_of_any_type_raises(values: dict[str, str]) -> None:
    text = "[[policy]]\n" + "\n".join(f"{key} = {value}" for key, value in values.items())
    found = parse(text.encode(), "f")
    assert len(found.tables) + bool(found.faults) == 1
    assert all(1 <= fault.line <= len(values) + 1 and len(str(fault)) < 1000 for fault in found.faults)


SIGNS = [
    "[[policy]]",
    "[policy]",
    "[[policy.nodes]]",
    "=",
    "{",
    "}",
    "[",
    "]",
    ",",
    ".",
    '"',
    "'",
    '"""',
    "\\",
    "#",
    "0x",
    "1e400",
    "nan",
    "\\ud800",
    "\\u0000",
]
PIECES = st.sampled_from([*SIGNS, "\n", "\r", "\0", "\x1f", "\u2028", "9" * 4301, *KEYS])


@given(st.lists(PIECES | st.text(max_size=3) | VALUES, max_size=30).map("".join))
def test_no_document_raises(text: str) -> None:
    found = parse(text.encode("utf-8", "replace"), "f")
    assert not (found.tables and found.faults)
    assert all(fault.line >= 1 for fault in found.faults)

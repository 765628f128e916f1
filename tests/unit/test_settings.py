"""/etc/hetmemd.toml: every fault at its line, and the shipped file as the documentation of every key."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd import settings
from hetmemd.kernel.root import Root
from hetmemd.policy.effective import Handling
from hetmemd.settings import BrakeSettings, Kernel, Settings, SettingsError, UnsettledError

SHIPPED = Path(__file__).parents[2] / "etc/hetmemd.toml"


HUGE = "9" * 400


def write(root: Path, text: str | bytes) -> Root:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/hetmemd.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return Root(root)


def faults(text: str | bytes) -> list[str]:
    return [str(fault) for fault in settings.parse(text if isinstance(text, bytes) else text.encode())[1]]


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert settings.load(Root(tmp_path)) == Settings()


def test_the_shipped_file_changes_nothing() -> None:
    assert settings.parse(SHIPPED.read_bytes()) == (Settings(), ())


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    """What it shows behind `#` is uncommented and taken: it must be every key, valid, and the default."""
    text = re.sub(r"^#(?=[a-z_]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    shown, wrong = settings.parse(text.encode())
    assert wrong == ()
    general, _, rest = text.partition("[kernel]")
    kernel, _, rest = rest.partition("[brakes]")
    brakes, _, handling = rest.partition("[defaults]")
    for part, known in ((general, Settings), (kernel, Kernel), (brakes, BrakeSettings), (handling, Handling)):
        named = set(re.findall(r"^([a-z_]+) = ", part, flags=re.MULTILINE))
        assert named == {field.name for field in dataclasses.fields(known)} - {"defaults", "kernel", "brakes"}
    assert dataclasses.replace(shown, defaults=Handling(), tls_certificate=None, tls_key=None, burst=None) == Settings()
    assert dataclasses.replace(shown.defaults, rate_total=None, burst=None) == Handling()
    assert shown.burst == Settings().rate, "the text says: one second of the rate"


def test_values_are_taken(tmp_path: Path) -> None:
    text = """
        listen = "[::1]:9000"
        rate = "2GiB/s"
        observe = true
        scan_interval = "1min"
        [defaults]
        existing = "once"
        rate = "10MB/s"
        tolerance = 0.1
    """
    found = settings.load(write(tmp_path, text))
    assert (found.listen, found.rate, found.observe, found.scan_interval) == ("[::1]:9000", 2 << 30, True, 60.0)
    assert found.defaults == Handling(existing="once", rate=10_000_000, tolerance=0.1)


def test_all_faults_at_once_each_at_its_line() -> None:
    text = """lisen = "127.0.0.1:9797"
rate = "fast"

observe = "yes"
[defaults]
existing = "onc"
tls_key = "/k"
"""
    assert faults(text) == [
        "/etc/hetmemd.toml:1: unknown key 'lisen' (did you mean 'listen'?)",
        '/etc/hetmemd.toml:2: rate: write it like "256MiB/s"',
        "/etc/hetmemd.toml:4: observe: true or false, not 'yes'",
        '/etc/hetmemd.toml:6: existing: one of "rebalance", "once", "leave", not \'onc\' (did you mean \'once\'?)',
        "/etc/hetmemd.toml:7: unknown key 'tls_key' in [defaults] (it belongs above [defaults])",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rate = 0", "rate"),
        ("rate = true", "rate"),
        ("rate = -1", "rate"),
        ("burst = 100", "less than a page"),
        ("scan_interval = 0", "from 1 seconds"),
        ("scan_interval = inf", "scan_interval"),
        ("measure_interval = nan", "measure_interval"),
        ("listen = 9797", "listen"),
        ('listen = "localhost"', "HOST:PORT"),
        ('listen = "::1:9797"', "brackets"),
        ('listen = "localhost:70000"', "HOST:PORT"),
        ("cgroup_label_limit = -1", "cgroup_label_limit"),
        ("moving_share = 0", "from 0.001 to 1"),
        ("moving_share = 2", "from 0 to 1"),
        ("measuring_share = 0", "from 0.001 to 1"),
        ('on_stop = "kep"', "did you mean 'keep'?"),
        ('log_level = "loud"', "log_level"),
        ('tls_key = "/key"', "without tls_certificate"),
        ('tls_certificate = "a/b"\ntls_key = "c"', "full path"),
        ("defaults = 1", "write [defaults]"),
        ("[[defaults]]", "write [defaults]"),
        ("[defaults]\ntolerance = 2", "from 0 to 1"),
        ("[defaults]\nlisen = 1", "did you mean 'listen'? That belongs above [defaults]"),
        ("[defaults]\nmode = 'bind'", "unknown key 'mode'"),
        ("x = " + "9" * 5000, "a number of thousands of digits"),
        ("rate = " + "0x" + "f" * 4000, "out of range"),
        (f"scan_interval = {HUGE}", "out of range"),
        (f"[defaults]\nmin_age = {HUGE}", "out of range"),
        (f"[defaults]\ntolerance = {HUGE}", "from 0 to 1"),
        (f'[defaults]\nmin_region = "{HUGE}.0GiB"', "out of range"),
        (f"[brakes]\ndeny_users = [{HUGE}]", "uid"),
        ("x = " + "[" * 10_000, "nested too deeply"),
        (f'listen = ":{HUGE}"', "HOST:PORT"),
        ("kernel = 1", "write [kernel]"),
        ("[kernel]\nweight = 1", "did you mean 'weights'?"),
        ("[kernel]\nweights = 'bandwith'", "did you mean 'bandwidth'?"),
        ("[kernel]\nweights = 3", "such as { 0 = 3, 1 = 1 }"),
        ("[kernel]\nweights = {}", "such as { 0 = 3, 1 = 1 }"),
        ("[kernel]\nweights = { 0 = 0 }", "from 1 to 255"),
        ("[kernel]\nweights = { 0 = 256 }", "from 1 to 255"),
        ("[kernel]\nweights = { 0 = true }", "from 1 to 255"),
        ("[kernel]\nweights = { drum = 3 }", "did you mean 'dram'?"),
    ],
)
def test_wrong_values(line: str, said: str) -> None:
    found = faults(line)
    assert len(found) == 1
    assert said in found[0]


def test_no_toml() -> None:
    assert faults("listen = \n") == ["/etc/hetmemd.toml:1: not TOML: invalid value"]
    assert faults("listen = 'a'\n\nlisten = 'b'\n")[0].startswith("/etc/hetmemd.toml:3: not TOML")


def test_no_utf8() -> None:
    assert faults(b"\n# caf\xe9\n") == ["/etc/hetmemd.toml:2: byte 6 is not UTF-8 (TOML is always UTF-8)"]


def test_the_kernels_weights() -> None:
    def taken(text: str) -> object:
        found, wrong = settings.parse(f"[kernel]\nweights = {text}\n".encode())
        assert not wrong
        weights = found.kernel.weights
        return weights if isinstance(weights, str) else {named.text: weight for named, weight in weights}

    assert settings.parse(b"")[0].kernel.weights == "leave"
    assert (taken('"leave"'), taken('"bandwidth"')) == ("leave", "bandwidth")
    assert taken('{ 0 = 3, cpuless = 1, "tier:22" = 255 }') == {"0": 3, "cpuless": 1, "tier:22": 255}


def test_brakes() -> None:
    text = b"""[brakes]
first_tasks = 0
stops_per_second = 10
crash_window = "1min"
deny_executables = ["/usr/lib/jvm/**", "/opt/db*/bin/db"]
deny_users = ["oracle", 1001]
"""
    found, wrong = settings.parse(text)
    assert not wrong
    brakes = found.brakes
    assert (brakes.first_tasks, brakes.stops_per_second, brakes.crash_window) == (0, 10, 60.0)
    assert brakes.deny_users == ("oracle", 1001)
    assert any(each.matches("/usr/lib/jvm/x/bin/java") for each in brakes.deny_executables)
    assert not any(each.matches("/bin/sh") for each in brakes.deny_executables)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stops_per_second = 0", "kill switch"),
        ('deny_executables = ["java"]', "full path"),
        ('deny_executables = ["/usr//java"]', "level"),
        ('deny_executables = "/usr/bin/java"', "a list"),
        ("deny_users = [true]", "uid"),
        ("deny_users = [-1]", "uid"),
        ('deny_users = [""]', "uid"),
        ('deny_user = ["x"]', "deny_users"),
    ],
)
def test_faults_of_brakes(line: str, says: str) -> None:
    (fault,) = faults(f"[brakes]\n{line}\n")
    assert fault.startswith("/etc/hetmemd.toml:2: ")
    assert says in fault


def refused(root: Root) -> str:
    with pytest.raises(SettingsError) as error:
        settings.load(root)
    return str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/hetmemd.toml").mkdir(parents=True)
    assert refused(Root(tmp_path)) == "/etc/hetmemd.toml:1: is a directory, not a file"
    (tmp_path / "etc/hetmemd.toml").rmdir()
    os.mkfifo(tmp_path / "etc/hetmemd.toml")
    assert "is a fifo, not a file" in refused(Root(tmp_path))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, b"")
    os.truncate(tmp_path / "etc/hetmemd.toml", 10 << 20)
    assert "larger than 1 MiB" in refused(root)


def test_an_absolute_link_means_what_it_means_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "run/cfg").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "run/cfg/h.toml").write_text("observe = true\n")
    (tmp_path / "etc/hetmemd.toml").symlink_to("/run/cfg/h.toml")
    assert settings.load(Root(tmp_path)).observe
    (tmp_path / "run/cfg/h.toml").unlink()
    assert "leads nowhere" in refused(Root(tmp_path))


def test_what_is_being_written_is_not_read(tmp_path: Path) -> None:
    """The kill switch may be in the half that is not there yet."""
    write(tmp_path, 'listen = ""\nobserve = true\n')
    with (tmp_path / "etc/hetmemd.toml").open("w") as file:
        file.write('listen = ""\n')
        file.flush()
        with pytest.raises(UnsettledError, match="is open for writing"):
            settings.load(Root(tmp_path))
        file.write("observe = true\n")
    assert settings.load(Root(tmp_path)).observe


def test_a_link_to_dev_null_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hetmemd.toml").symlink_to("/dev/null")
    assert settings.load(Root(tmp_path)) == Settings()


@given(st.binary(max_size=200))
def test_no_content_is_a_crash(data: bytes) -> None:
    found, wrong = settings.parse(data)
    assert isinstance(found, Settings)
    assert all(fault.line >= 1 and fault.message for fault in wrong)


@pytest.mark.parametrize("number", ["0x" + "f" * 4000, HUGE, f"[{HUGE}]", f"{{ 0 = 0x{'f' * 4000} }}"])
def test_a_huge_number_is_a_fault_under_every_key(number: str) -> None:
    for known, section in ((Settings, ""), (Kernel, "[kernel]"), (BrakeSettings, "[brakes]"), (Handling, "[defaults]")):
        for field in dataclasses.fields(known):
            told = faults(f"{section}\n{field.name} = {number}\n")
            assert told and all(len(each) < 500 for each in told), field.name


def test_of_many_faults_the_first_are_told() -> None:
    told = faults("".join(f"key{number} = 1\n" for number in range(5000)))
    assert len(told) == 101
    assert told[-1] == "/etc/hetmemd.toml:101: after so many faults the rest was not looked at"


@given(
    st.dictionaries(
        st.sampled_from(sorted({field.name for field in dataclasses.fields(Settings)})),
        st.sampled_from(["1", "-1", '"x"', "true", "[]", "{}", "1.5", "nan", '"1MiB/s"', "1979-05-27", '""']),
    )
)
def test_every_type_under_every_key_is_a_value_or_a_fault(values: dict[str, str]) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in values.items())
    lines = [fault.line for fault in settings.parse(text.encode())[1]]
    assert lines == sorted(lines)
    assert all(1 <= line <= len(values) for line in lines)

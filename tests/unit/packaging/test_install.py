"""packaging/install and packaging/uninstall, staged below a folder; and the unit that they install."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

from hetmemd.policy.language import DIRECTORIES

CHECKOUT = Path(__file__).parents[3]
LIMIT = 300


def run(script: str, *words: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CHECKOUT / "packaging" / script), "--root", str(root), *words],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )


def tree(root: Path) -> dict[str, bytes]:
    """Files by path, without what Python compiled."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("staged")
    said = run("install", root=root)
    assert f"staged below {root}" in said.stdout
    return root


def unit(root: Path, path: str = "usr/local/lib/systemd/system/hetmemd.service") -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(root / path)
    return parser


def test_everything_is_there(staged: Path) -> None:
    files = tree(staged)
    for path in (
        "etc/hetmemd.toml",
        "usr/local/bin/hetmemctl",
        "usr/local/sbin/hetmemd",
        "usr/local/lib/hetmemd/asyncvarlink/__init__.py",
        "usr/local/lib/hetmemd/hetmemd/service.py",
        "usr/local/lib/systemd/catalog/hetmemd.catalog",
        "usr/local/lib/systemd/system/hetmemd.service",
        "usr/local/share/bash-completion/completions/hetmemctl",
        "usr/local/share/man/man1/hetmemctl.1",
        "usr/local/share/man/man5/hetmemd.policy.5",
        "usr/local/share/man/man8/hetmemd.8",
        "usr/local/share/zsh/site-functions/_hetmemctl",
    ):
        assert path in files, path
    package = {path for path in tree(CHECKOUT / "hetmemd") if path.endswith(".py")}
    assert package == {path for path in tree(staged / "usr/local/lib/hetmemd/hetmemd") if path.endswith(".py")}
    for folder in ("etc/hetmemd.d", "usr/local/lib/hetmemd.d"):
        assert (staged / folder).is_dir()
        assert "/" + folder in DIRECTORIES, "a folder that the daemon reads (F1)"


def test_only_root_writes_what_root_runs(staged: Path) -> None:
    for path in (staged / "usr").rglob("*"):
        assert path.stat().st_mode & 0o022 == 0, path
        assert path.stat().st_uid == os.getuid()


def test_the_commands_run_from_their_folder(staged: Path, tmp_path: Path) -> None:
    """With the distribution's Python alone, and whatever stands in the current folder or the environment."""
    command = (staged / "usr/local/bin/hetmemctl").read_text()
    assert command.startswith("#!/usr/bin/python3 -I\n")
    local = tmp_path / "hetmemctl"
    local.write_text(command.replace('"/usr/local/', f'"{staged}/usr/local/'))
    (tmp_path / "argparse.py").write_text("raise SystemExit('not this one')\n")
    shown = subprocess.run(
        ["/usr/bin/python3", "-I", str(local), "check", "--root", str(staged)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, "no fault found\n")


def test_again_changes_nothing_and_keeps_the_settings(staged: Path) -> None:
    settings = staged / "etc/hetmemd.toml"
    settings.write_text("observe = true\n")
    (staged / "etc/hetmemd.d/mine.toml").write_text("# mine\n")
    stale = staged / "usr/local/lib/hetmemd/hetmemd/gone.py"
    before = tree(staged)
    stale.write_text("")
    said = run("install", root=staged)
    assert "/etc/hetmemd.toml is there and stays" in said.stdout
    assert tree(staged) == before, "and what an older version had is gone"


def test_uninstall_leaves_what_is_the_admins_unless_told(tmp_path: Path) -> None:
    run("install", root=tmp_path)
    (tmp_path / "etc/hetmemd.d/mine.toml").write_text("# mine\n")
    said = run("uninstall", root=tmp_path)
    assert "kept /etc/hetmemd.d" in said.stdout
    assert set(tree(tmp_path)) == {"etc/hetmemd.toml", "etc/hetmemd.d/mine.toml"}
    run("uninstall", "--purge", root=tmp_path)
    assert tree(tmp_path) == {}
    assert run("uninstall", "--purge", root=tmp_path).stdout == "", "nothing is there any more"


@pytest.mark.parametrize(
    ("prefix", "units"),
    [("/usr", "usr/lib/systemd/system"), ("/opt/hetmemd", "etc/systemd/system")],
)
def test_another_prefix(tmp_path: Path, prefix: str, units: str) -> None:
    run("install", "--prefix", prefix, root=tmp_path)
    assert unit(tmp_path, f"{units}/hetmemd.service")["Service"]["ExecStart"] == f"{prefix}/sbin/hetmemd"
    assert f'"{prefix}/lib/hetmemd"' in (tmp_path / prefix[1:] / "sbin/hetmemd").read_text()
    run("uninstall", "--prefix", prefix, "--purge", root=tmp_path)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("script", ["install", "uninstall"])
def test_wrong_options_are_refused(script: str, tmp_path: Path) -> None:
    for words in (["--rot", "x"], ["--prefix", "usr"]):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            run(script, *words, root=tmp_path)
        assert refused.value.stderr.startswith(f"packaging/{script}: ")
    assert tree(tmp_path) == {}


def test_the_unit(staged: Path) -> None:
    service = unit(staged)["Service"]
    assert service["ExecStart"] == "/usr/local/sbin/hetmemd"
    assert service["Type"] == "notify"
    assert service["RuntimeDirectoryPreserve"] == "yes", "the ledger outlives a restart"
    assert set(service["CapabilityBoundingSet"].split()) == {
        f"CAP_{name}" for name in ("SYS_PTRACE", "SYS_NICE", "SYS_ADMIN", "NET_ADMIN", "PERFMON", "DAC_OVERRIDE")
    }


def test_the_unit_has_nothing_that_filters_system_calls(staged: Path) -> None:
    """A process under a seccomp filter may not suspend another's: `ptrace_setoptions` in kernel/ptrace.c."""
    filters = {
        "SystemCallFilter",
        "SystemCallArchitectures",
        "SystemCallLog",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
    }
    breaks = {"PrivateNetwork", "PrivateUsers", "PrivatePIDs", "ProcSubset", "ProtectProc", "ProtectControlGroups"}
    assert not (filters | breaks) & set(unit(staged)["Service"])


def test_asyncvarlink_is_pinned_by_its_hash() -> None:
    lines = (CHECKOUT / "packaging/asyncvarlink.txt").read_text().splitlines()
    (requirement,) = [line for line in lines if line and not line.startswith("#")]
    assert re.fullmatch(r"asyncvarlink==\d+\.\d+\.\d+ --hash=sha256:[0-9a-f]{64}", requirement)

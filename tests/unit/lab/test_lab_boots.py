"""`tests/lab/run` as a whole, with a stand-in for QEMU: a guest that breaks is booted again, and a job is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hetmemlab import image, kernels
from tests.lab.hetmemlab.cli import BOOTS, STATUS_LAB_FAILED, STATUS_TIMED_OUT

CHECKOUT = Path(__file__).parents[3]
RUN = "import sys; from tests.lab.hetmemlab.cli import main; sys.exit(main(sys.argv[1:]))"

# Finds its ports among its arguments as QEMU does, counts its boots, and then does what the test says of this one.
STAND_IN = """#!/bin/sh
for word in "$@"; do
    case $word in
        file,id=out,path=*) exec 8> "${word##*path=}" ;;
        file,id=control,path=*) exec 9> "${word##*path=}" ;;
    esac
done
echo boot >> "$HETMEMD_BOOTS"
finish() { printf 'start 4.2\\nend %d 0\\n' "$1" >&9; exit $(($1 << 1 | 1)); }
case $(wc -l < "$HETMEMD_BOOTS") in
"""

PANIC = "printf 'start 4.2\\n' >&9; echo 'lost' >&8; echo 'Kernel panic - not syncing: x'; exit 0"
RESET = "exit 0"
SEGFAULT = "kill -SEGV $$"


class Lab:
    """A cache in which all is there, QEMU being a script that does the first of `boots` first, and so on."""

    def __init__(self, folder: Path, boots: list[str]) -> None:
        self.boots = folder / "boots"
        cache = folder / "cache/hetmemd-lab"
        program = folder / "qemu/usr/bin/qemu-system-x86_64"
        program.parent.mkdir(parents=True)
        cases = "".join(f"{number}) {what} ;;\n" for number, what in enumerate(boots, 1))
        program.write_text(f"{STAND_IN}{cases}esac\nexit 99\n")
        program.chmod(0o755)
        (cache / "qemu").mkdir(parents=True)
        (cache / "qemu/current.json").write_text(json.dumps({"folder": str(folder / "qemu"), "version": "1:10.0"}))
        image._shelf(cache).ensure([], lambda made: (made / "root.img").touch())
        kernels._shelf(cache, kernels.named(kernels.DEFAULT)).ensure([], _kernel)
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HETMEMD_BOOTS": str(self.boots)}

    def run(self, *options: str) -> tuple[int, str, str, int]:
        """Its status, what it said on either stream, and how often it booted."""
        done = subprocess.run(
            [sys.executable, "-c", RUN, *options, "--", "true"],
            cwd=CHECKOUT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr, len(self.boots.read_text().splitlines())


def _kernel(made: Path) -> None:
    for name in ("vmlinuz", "modules.img", "version"):
        (made / name).write_text("6.12")


@pytest.mark.parametrize("broken", [PANIC, RESET, SEGFAULT])
def test_a_guest_that_breaks_is_booted_again(tmp_path: Path, broken: str) -> None:
    lab = Lab(tmp_path, [broken, broken, "echo done >&8; finish 7"])
    status, out, said, boots = lab.run()
    assert (status, boots) == (7, 3), said
    assert out.endswith("done\n")
    assert [line for line in said.splitlines() if "guest died" in line] == [
        "lab: guest died, boot 2 of 3",
        "lab: guest died, boot 3 of 3",
    ]
    assert said.count("Kernel panic") == (2 if broken is PANIC else 0)


def test_one_that_always_breaks_is_the_labs_failure(tmp_path: Path) -> None:
    lab = Lab(tmp_path, [PANIC] * (BOOTS + 1))
    status, _, said, boots = lab.run()
    assert (status, boots) == (STATUS_LAB_FAILED, BOOTS)
    assert f"the guest died in each of {BOOTS} boots" in said


@pytest.mark.parametrize(
    ("first", "options", "expected"),
    [
        ("finish 1", (), 1),
        ("printf 'start 4.2\\n' >&9; exec sleep 1000", ("--timeout", "3"), STATUS_TIMED_OUT),
        ("echo 'no such machine' >&2; exit 1", (), STATUS_LAB_FAILED),
    ],
    ids=["failed", "over its time", "refused"],
)
def test_what_is_no_broken_guest_is_not_booted_again(
    tmp_path: Path, first: str, options: tuple[str, ...], expected: int
) -> None:
    status, _, said, boots = Lab(tmp_path, [first, "finish 0"]).run(*options)
    assert (status, boots) == (expected, 1), said

"""`tests/lab/run`: what it takes, and the order in which a guest comes to be and is asked again."""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import emulator, guest, image, kernels, parcel, sources, store, topology
from .apt import Apt, MirrorError
from .say import LabError, say

CHECKOUT = Path(__file__).resolve().parents[3]
PREPARE = Path(__file__).resolve().parent.parent / "prepare"
INSTALL = CHECKOUT / "packaging" / "install"

BOOTS = 3
DEFAULT_SECONDS = 600.0
# As timeout(1) and docker(1) have them; the job's own statuses are below.
STATUS_TIMED_OUT = 124
STATUS_LAB_FAILED = 125
# The checkout comes first; the installed tree carries asyncvarlink, which Debian 12 does not have.
GUEST_ENVIRONMENT = {"PYTHONPATH": "/lab/work:/usr/local/lib/hetmemd"}
# What a test's behaviour may depend on, handed through to the guest.
PASSED_ON = ("CI", "HETMEMD_STRICT", "HETMEMD_LAB_STRICT")


Parts = tuple[emulator.Emulator, Path, kernels.Boot]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="tests/lab/run",
        description="Boot a fresh guest with several memory nodes and run a command there as root.",
        epilog="The exit status is the command's; 124: over its time limit, 125: the lab itself failed.",
    )
    result.add_argument("--topology", default="dram+cxl", metavar="NAME", help=f"one of {', '.join(topology.names())}")
    result.add_argument(
        "--kernel",
        default=kernels.DEFAULT,
        metavar="NAME",
        help=f"one of {', '.join(kernel.name for kernel in kernels.TABLE)}",
    )
    result.add_argument(
        "--append",
        action="append",
        default=[],
        metavar="PARAMETER",
        help="a parameter of the kernel, behind the usual ones; may be repeated",
    )
    result.add_argument(
        "--with", dest="extra", action="append", default=[], metavar="PATH", help="copy it into the working folder"
    )
    result.add_argument("--service", action="store_true", help="start hetmemd.service before the command")
    result.add_argument(
        "--timeout", type=float, default=DEFAULT_SECONDS, metavar="SECONDS", help="for each guest (default: 600)"
    )
    result.add_argument("--results", type=Path, metavar="DIR", help="where $HETMEMD_LAB_RESULTS of the guest goes")
    result.add_argument("--time", action="store_true", help="say how long the steps took")
    result.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return result


def main(argv: Sequence[str]) -> int:
    """Run as a program; the exit status."""
    parse = parser()
    options = parse.parse_args(argv)
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parse.error("no COMMAND")
    _end_with_parent()
    signal.signal(signal.SIGTERM, _ended)
    signal.signal(signal.SIGHUP, _ended)
    try:
        return run(options, command)
    except subprocess.CalledProcessError as error:
        say(f"error: {error}")
        return STATUS_LAB_FAILED
    except (LabError, topology.TopologyError, kernels.KernelError) as error:
        say(f"error: {error}")
        if isinstance(error, LabError) and error.hint:
            say(f"hint: {error.hint}")
        return STATUS_LAB_FAILED
    except BrokenPipeError:
        # Who read the output is gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT


def run(options: argparse.Namespace, command: list[str]) -> int:
    """Prepare what is missing, boot, and boot again when the emulator broke the guest."""
    shape = topology.load(options.topology)
    kernel = kernels.named(options.kernel)
    begun = time.monotonic()
    emulated, root, boot = ready(kernel)
    machine = guest.Machine(emulated, root, boot, shape, append=" ".join(options.append))
    with tempfile.TemporaryDirectory(prefix="hetmemd-lab-") as folder:
        staging = _install(Path(folder), required=options.service)
        job = parcel.pack(
            command=command,
            environment=GUEST_ENVIRONMENT
            | {"HETMEMD_LAB_GUEST": " ".join([kernel.name, shape.name, *options.append])}
            | {name: os.environ[name] for name in PASSED_ON if name in os.environ},
            checkout=CHECKOUT,
            extra=options.extra,
            staging=staging,
            service=options.service,
        )
    prepared = time.monotonic() - begun
    with job:
        for number in range(1, BOOTS + 1):
            if number > 1:
                say(f"guest died, boot {number} of {BOOTS}")
            begun = time.monotonic()
            outcome = guest.boot(machine, job, limit_seconds=options.timeout, sink=_to_stdout)
            if options.time:
                say(
                    f"prepared in {prepared:.1f} s, job begun after {outcome.boot_seconds:.1f} s, "
                    f"guest ended after {time.monotonic() - begun:.1f} s"
                )
            if outcome.end is not guest.End.DIED:
                break
            _report(outcome)
    return _conclude(outcome, options.results)


def ready(kernel: kernels.Kernel) -> Parts:
    """All that a guest with that kernel is booted from, fetched and built if need be."""
    cache = cache_folder()
    found = _cached(cache, kernel)
    if found is not None:
        return found
    subprocess.run([str(PREPARE)], stdout=sys.stderr, check=True)
    with store.lock(cache):
        # Another run may have built it meanwhile.
        found = _cached(cache, kernel)
        if found is not None:
            return found
        try:
            return _ensure(cache, kernel)
        except MirrorError as error:
            found = _cached(cache, kernel, however_old=True)
            if found is None:
                raise
            say(f"warning: {error}")
            say("warning: going on with what the mirror had at the last look")
            return found


def _ensure(cache: Path, kernel: kernels.Kernel) -> Parts:
    machine = sources.of_machine()
    apt = Apt(cache / "apt")
    apt.update(sources.release_lines(machine))
    of_kernel = apt
    if kernel.of_newest:
        of_kernel = Apt(cache / "apt-newest", newest=True)
        of_kernel.update(sources.newest_lines(machine))
    return emulator.ensure(cache, apt), image.ensure(cache, apt), kernels.ensure(cache, kernel, of_kernel)


def _cached(cache: Path, kernel: kernels.Kernel, *, however_old: bool = False) -> Parts | None:
    machine = emulator.cached(cache, however_old=however_old)
    root = image.cached(cache, however_old=however_old)
    boot = kernels.cached(cache, kernel, however_old=however_old)
    return (machine, root, boot) if machine is not None and root is not None and boot is not None else None


def cache_folder() -> Path:
    """Where images and emulators are kept, outside of any checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hetmemd-lab"


def _install(folder: Path, *, required: bool) -> Path | None:
    """Let the checkout's own installer fill a staging tree; None when there is nothing to install with."""
    if not INSTALL.is_file():
        if required:
            raise LabError("--service needs packaging/install, which this checkout does not have")
        return None
    staging = folder / "staging"
    staging.mkdir()
    answer = subprocess.run(
        [str(INSTALL), "--root", str(staging)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if answer.returncode == 0:
        return staging
    complaint = f"packaging/install --root failed ({answer.returncode}): {(answer.stdout + answer.stderr)[-2000:]}"
    if required:
        raise LabError(complaint)
    say(f"warning: {complaint}")
    say("warning: the guest is without the service")
    return None


def _to_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _report(outcome: guest.Outcome) -> None:
    say(outcome.why)
    lines = guest.fault_lines(outcome.console)
    what = "the kernel's report" if lines else "the console's last lines"
    say(f"{what}:")
    for line in lines or guest.console_tail(outcome.console):
        print(f"  | {line}", file=sys.stderr)


def _conclude(outcome: guest.Outcome, results: Path | None) -> int:
    if outcome.end is guest.End.FINISHED:
        if guest.fault_lines(outcome.console):
            _report(outcome)
        if results is not None:
            results.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=io.BytesIO(outcome.results)) as tar:
                # Debian 12's Python, 3.11.2, has no filters yet; what comes is the guest's own archive.
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(results, filter="data")
                else:
                    tar.extractall(results)
        return outcome.status
    if outcome.end is guest.End.TIMED_OUT:
        _report(outcome)
        return STATUS_TIMED_OUT
    if outcome.end is guest.End.REFUSED:
        raise LabError(f"QEMU does not start: {outcome.why}")
    raise LabError(f"the guest died in each of {BOOTS} boots")


def _end_with_parent() -> None:
    """Get SIGTERM when the process that started this one dies, so that a guest never outlives who asked for it."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(guest.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(128 + signal.SIGTERM)


def _ended(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)

"""One boot of a guest: start QEMU, pass the job's output on, and tell how it ended."""

from __future__ import annotations

import ctypes
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

from . import disk
from .emulator import Emulator
from .kernels import Boot
from .topology import Topology, qemu_arguments

# From power-on until the job starts takes 4 to 12 s, on a machine with much else to do 40: after this, it is dead.
BOOT_SECONDS = 180.0
CONSOLE_TAIL_LINES = 40
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

APPEND = (
    f"root=PARTUUID={disk.PARTUUID} rootwait rootfstype=ext4 rw panic=-1 oops=panic nokaslr numa_balancing=disable "
    # Warnings of the kernel belong on the console, so that an oops is seen with its trace.
    "mitigations=off console=ttyS0 quiet loglevel=5 systemd.show_status=0"
)

# Where the kernel's report of its own fault begins.
FAULT = re.compile(
    r"BUG: |WARNING: |Oops|Kernel panic|general protection fault|Internal error|rcu:.*stall|blocked for more"
)


class End(Enum):
    """How a boot ended."""

    FINISHED = "the job ended and its results are whole"
    DIED = "the guest broke"
    TIMED_OUT = "the job ran longer than it may"
    REFUSED = "QEMU did not start"


@dataclass(frozen=True)
class Outcome:
    """A boot's end: the job's exit status when FINISHED, its results, and what the console said."""

    end: End
    status: int = 0
    results: bytes = b""
    console: str = ""
    why: str = ""
    boot_seconds: float = 0.0


@dataclass
class Control:
    """What the guest's job says on the control port: `start UPTIME`, then `end STATUS BYTES` and so many bytes."""

    data: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        """Take what arrived, in whatever pieces."""
        self.data += data

    @property
    def started(self) -> bool:
        """Whether the job has begun."""
        return self.data.startswith(b"start ") and b"\n" in self.data

    def end(self) -> tuple[int, bytes] | None:
        """Exit status and results, once both are whole."""
        head, _, rest = bytes(self.data).partition(b"\n")
        line, newline, results = rest.partition(b"\n")
        words = line.split()
        if not head.startswith(b"start ") or not newline or len(words) != 3 or words[0] != b"end":
            return None
        status, size = int(words[1]), int(words[2])
        return (status, results) if len(results) == size else None


def decode(returncode: int, control: Control) -> tuple[End, int, str]:
    """Tell a finished job from a broken guest, by QEMU's exit status and what came over the control port.

    isa-debug-exit ends QEMU with (value << 1) | 1. An even status is a reset (a panic, with -no-reboot) or a signal.
    QEMU's own complaint is status 1 as well, and is told from a job's 0 by the end that the job did not send.
    """
    ended = control.end()
    if returncode < 0:
        return End.DIED, 0, f"QEMU was ended by {signal.Signals(-returncode).name}"
    if returncode % 2 == 0:
        return End.DIED, 0, f"QEMU ended with {returncode}, a reset"
    if ended is not None and ended[0] & 0x7F == returncode >> 1:
        return End.FINISHED, ended[0], ""
    if not control.data and returncode == 1:
        return End.REFUSED, 0, "QEMU ended with 1 before the guest said anything"
    return End.DIED, 0, f"QEMU ended with {returncode} and the job's results are not whole"


@dataclass(frozen=True)
class Machine:
    """What a guest is made of: the emulator, the root disk, the kernel and its parameters beside APPEND, the nodes."""

    emulator: Emulator
    root: Path
    kernel: Boot
    topology: Topology
    append: str = ""


def arguments(machine: Machine, *, job: int, out: int, control: int) -> list[str]:
    """QEMU's whole command line; job, out and control are descriptors that it inherits.

    Of a kernel parameter given twice the last counts, so a machine's own override the usual ones.
    """

    def port(name: str, fd: int) -> list[str]:
        device = f"virtserialport,chardev={name},name=lab.{name}"
        return ["-chardev", f"file,id={name},path=/proc/self/fd/{fd}", "-device", device]

    def nvme(serial: str, path: str, options: str) -> list[str]:
        drive = f"if=none,id={serial},file={path},format=raw,{options}"
        return ["-drive", drive, "-device", f"nvme,drive={serial},serial={serial}"]

    return [
        *machine.emulator.command(),
        *("-M", "q35,hmat=on,usb=off", "-accel", f"tcg,thread={machine.emulator.threads}", "-cpu", "max"),
        *qemu_arguments(machine.topology),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(machine.kernel.vmlinuz), "-append", f"{APPEND} {machine.append}".rstrip()),
        *nvme("root", str(machine.root), "snapshot=on,cache=unsafe"),
        *nvme("modules", str(machine.kernel.modules), "readonly=on"),
        *nvme("job", f"/proc/self/fd/{job}", "readonly=on"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-device", "virtio-serial-pci"),
        *port("out", out),
        *port("control", control),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-device", "virtio-rng-pci"),
    ]


def boot(
    machine: Machine,
    job: IO[bytes],
    *,
    limit_seconds: float,
    sink: Callable[[bytes], None],
    boot_limit_seconds: float = BOOT_SECONDS,
) -> Outcome:
    """Boot once and stay until the guest is gone. Whatever is raised here, QEMU does not outlive the call."""
    out_read, out_write = os.pipe()
    control_read, control_write = os.pipe()
    command = arguments(machine, job=job.fileno(), out=out_write, control=control_write)
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command,
            env=machine.emulator.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=(job.fileno(), out_write, control_write),
            # Ctrl-C reaches this process alone, which then ends the guest in its own order.
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - this program has one thread by now
        )
        try:
            os.close(out_write)
            os.close(control_write)
            limits = (min(limit_seconds, boot_limit_seconds), limit_seconds)
            return _watch(process, out_read, control_read, complaints, limits, sink)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            os.close(out_read)
            os.close(control_read)


def _die_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arrange


def _watch(
    process: subprocess.Popen[bytes],
    out: int,
    control_fd: int,
    complaints: IO[bytes],
    limits: tuple[float, float],
    sink: Callable[[bytes], None],
) -> Outcome:
    assert process.stdout is not None
    begun = time.monotonic()
    control = Control()
    console = bytearray()
    boot_seconds = 0.0
    with selectors.DefaultSelector() as selector:
        for fd in (out, control_fd, process.stdout.fileno()):
            selector.register(fd, selectors.EVENT_READ)
        # QEMU's end closes all three pipes, after everything in them has been read.
        while len(selector.get_map()) > 0:
            now = time.monotonic() - begun
            limit = limits[control.started]
            if now >= limit:
                end = End.TIMED_OUT if control.started else End.DIED
                why = f"still running after {limit:.0f} s" if control.started else f"no sign of life in {limit:.0f} s"
                return Outcome(end, console=_text(console), why=why, boot_seconds=boot_seconds)
            for item, _ in selector.select(limit - now):
                data = os.read(item.fd, 65536)
                if not data:
                    selector.unregister(item.fd)
                elif item.fd == out:
                    sink(data)
                elif item.fd == control_fd:
                    control.feed(data)
                    if control.started and boot_seconds == 0.0:
                        boot_seconds = time.monotonic() - begun
                else:
                    console += data
    end, status, why = decode(process.wait(), control)
    if end is End.REFUSED:
        complaints.seek(0)
        why = complaints.read().decode("utf-8", "replace").strip() or why
    ended = control.end()
    results = ended[1] if ended is not None else b""
    return Outcome(end, status, results, _text(console), why, boot_seconds)


def _text(console: bytearray) -> str:
    return console.decode("utf-8", "replace").replace("\r", "")


def fault_lines(console: str) -> list[str]:
    """The kernel's report of its own fault, from its first line on; empty when it reported none."""
    lines = console.splitlines()
    for number, line in enumerate(lines):
        if FAULT.search(line):
            return lines[number:]
    return []


def console_tail(console: str) -> list[str]:
    """The last lines of the console."""
    return console.splitlines()[-CONSOLE_TAIL_LINES:]

"""One process as the tracer sees it: an open /proc/PID, which never comes to mean another process, and its memory."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from typing import NamedTuple

from hetmemd.kernel import maps, procfs, vdso
from hetmemd.kernel.procfs import ProcessId, State
from hetmemd.kernel.root import Root
from hetmemd.remote import slot
from hetmemd.remote.result import Outcome
from hetmemd.remote.slot import Leftover
from hetmemd.remote.x86_64 import ABIS, Abi

_LOOKS = 5
_LOOK_PAUSE = 0.002
_LOCK_LOOKS = 300
_LOCK_PAUSE = 0.001
"""Seconds: together many of another's turns."""
_LOCK = "syscall"
"""A file that only its owner and root can open: others must not be able to keep a policy away."""


class Declined(Exception):
    """The thread, or the whole process, is left alone, and why."""

    def __init__(self, outcome: Outcome, reason: str, errno: int = 0) -> None:
        super().__init__(f"{outcome}: {reason}")
        self.outcome = outcome
        self.reason = reason
        self.errno = errno


def gone(reason: str = "exited") -> Declined:
    return Declined(Outcome.GONE, reason)


class Room(NamedTuple):
    """Where a stub can stand in a program."""

    padding: range
    abi: Abi
    """What the program was built for; a thread of it may still run code of another kind."""
    leftovers: list[Leftover]
    """Stubs that dead tracers left in it."""


class Target:
    """All files are opened through one directory handle: the kernel ties it to this very process, not to its pid."""

    def __init__(self, root: Root, process: ProcessId) -> None:
        """`Declined` GONE where the pid is another process's by now, DEFERRED where another tracer acts on it.

        Two of them, of two daemons or of a command beside one, would write their stubs into the same padding. The lock
        is on a file of the process in /proc, and ends with the tracer.
        """
        self.root = root
        self.process = process
        self.living = process.pid
        """A thread that is alive: of a dead leader the kernel shows no memory."""
        self._memory = self._locked = -1
        self._room: Room | None = None
        try:
            self.directory = os.open(root.name(f"/proc/{process.pid}"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone() from None
        try:
            if procfs.parse_stat(os.fsdecode(self.read("stat"))).start != process.start:
                raise gone()
            self._locked = self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> int:
        try:
            locked = os.open(_LOCK, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        except (FileNotFoundError, ProcessLookupError):
            raise gone() from None
        except PermissionError as error:
            raise Declined(Outcome.REFUSED, "permission", error.errno or 0) from None
        for look in range(_LOCK_LOOKS):
            try:
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return locked
            except BlockingIOError:
                if look < _LOCK_LOOKS - 1:
                    time.sleep(_LOCK_PAUSE)
        os.close(locked)
        raise Declined(Outcome.DEFERRED, "traced")

    def close(self) -> None:
        self.forget_memory()
        if self._locked >= 0:
            os.close(self._locked)
        os.close(self.directory)

    def read(self, name: str) -> bytes:
        """A small file below /proc/PID, with one read. `Declined` GONE where there is no such process or thread."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
            try:
                return os.read(fd, 1 << 14)
            finally:
                os.close(fd)
        except (FileNotFoundError, ProcessLookupError):
            raise gone() from None

    def state(self, tid: int) -> State:
        return procfs.parse_state(self.read(f"task/{tid}/stat"))

    def status(self, tid: int) -> dict[str, str]:
        lines = os.fsdecode(self.read(f"task/{tid}/status")).splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def has_thread(self, tid: int) -> bool:
        return os.access(f"task/{tid}", os.F_OK, dir_fd=self.directory)

    def has_pipe(self, tid: int, descriptor: int) -> bool:
        """Whether thread `tid` has a pipe there."""
        try:
            return stat.S_ISFIFO(os.stat(f"task/{tid}/fd/{descriptor}", dir_fd=self.directory).st_mode)
        except OSError:
            return False

    def forget_memory(self) -> None:
        """After an exec the open memory file shows the earlier program's memory."""
        if self._memory >= 0:
            os.close(self._memory)
        self._memory = -1
        self._room = None

    @property
    def memory(self) -> int:
        """Descriptor of /proc/PID/mem: of the program that ran when it was opened."""
        if self._memory < 0:
            try:
                self._memory = os.open(f"task/{self.living}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.directory)
            except (FileNotFoundError, ProcessLookupError):
                raise gone() from None
            except PermissionError as error:
                raise Declined(Outcome.REFUSED, "permission", error.errno or 0) from None
        return self._memory

    @property
    def room(self) -> Room:
        """`Declined` UNSTEERABLE where there is none."""
        if self._room is None:
            for attempt in range(_LOOKS):
                try:
                    self._room = self._look()
                    break
                except (vdso.NoVdso, slot.Strange, OSError):
                    # Amid an exec nothing fits: one file shows the earlier program, another the next one or nothing.
                    self.forget_memory()
                    if attempt == _LOOKS - 1:
                        if self.state(self.living).state in "ZX":
                            raise gone() from None
                        raise Declined(Outcome.UNSTEERABLE, "vdso") from None
                    time.sleep(_LOOK_PAUSE)
            assert self._room
        return self._room

    def _look(self) -> Room:
        base, is_64bit = vdso.address(self.read(f"task/{self.living}/auxv"))
        found = vdso.describe(base, os.pread(self.memory, vdso.PAGE, base))
        content = os.pread(self.memory, found.size, base)
        if found.is_64bit != is_64bit or len(content) != found.size or not vdso.is_kernels(content):
            raise vdso.NoVdso("another image")
        if not self._is_executable(found.padding):
            raise vdso.NoVdso("not executable")
        abi = next(abi for abi in ABIS if abi.bits == (64 if is_64bit else 32))
        return Room(found.padding, abi, slot.leftovers(content[found.image_end :], found.padding.start))

    def _is_executable(self, padding: range) -> bool:
        """Whether a stub there can be run, and can read its own data: a program may protect its vdso."""
        descriptor = os.open(f"task/{self.living}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            shown = {maps.permissions_at(descriptor, page) for page in (padding.start, padding.stop - 1)}
        finally:
            os.close(descriptor)
        return all("r" in letters and "x" in letters for letters in shown)

    def has_executed(self) -> bool:
        """True where the process runs another program than the one whose memory was opened: that is no more."""
        try:
            return self._memory >= 0 and not os.pread(self._memory, 1, self.room.padding.start)
        except OSError:
            return True

    def zero(self, left: Leftover) -> None:
        """Clear a leftover that nobody can need any more."""
        self.write(left.address, bytes(left.length))
        self.room.leftovers.remove(left)

    def write(self, address: int, content: bytes) -> bool:
        """False where the memory that was opened is no more: the process runs another program."""
        try:
            written = os.pwrite(self.memory, content, address)
        except OSError as error:
            # proc_mem.force_override=never (6.12).
            raise Declined(Outcome.REFUSED, "proc-mem", error.errno or 0) from None
        return written == len(content)

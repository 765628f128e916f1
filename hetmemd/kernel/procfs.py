"""What /proc says of one process or thread. Formats: proc(5) and fs/proc/array.c.

Every function takes the injected root and raises `OSError` (`kernel.libc.is_gone` tells a vanished task).
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from hetmemd.kernel import libc, mempolicy, nodelist
from hetmemd.kernel.root import Root

# include/linux/sched.h
PF_IO_WORKER = 0x10
PF_EXITING = 0x4
PF_KTHREAD = 0x200000
PF_USER_WORKER = 0x4000
UNCALLABLE = PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD
"""Tasks that never return to user space, so that nothing can be called in them."""


class ProcessId(NamedTuple):
    """A process for as long as it lives: the pid alone is reused."""

    pid: int
    start: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""


class Executable(NamedTuple):
    """The program that a process runs, whatever became of its file."""

    path: str
    """In the process's own mount namespace, as far as the reader can see it; of a file that was removed, its last."""
    device: int
    inode: int


class Stat(NamedTuple):
    """Fields of /proc/PID/stat or /proc/PID/task/TID/stat."""

    pid: int
    comm: str
    state: str
    ppid: int
    flags: int
    start: int


def parse_stat(text: str) -> Stat:
    """`comm` may hold spaces and parentheses: everything after the last `)` is plain fields."""
    head, _, tail = text.rpartition(")")
    pid, _, comm = head.partition(" (")
    fields = tail.split(None, 20)
    return Stat(int(pid), comm, fields[0], int(fields[1]), int(fields[6]), int(fields[19]))


class State(NamedTuple):
    """Of a thread, the part of its stat that says what it is about."""

    state: str
    """The letter: R, S, D and so on (proc_pid_stat(5))."""
    flags: int
    """PF_*"""


def parse_state(content: bytes) -> State:
    """The same of the file as it is, for what has no time."""
    fields = content.rpartition(b")")[2].split(None, 7)
    return State(chr(fields[0][0]), int(fields[6]))


def stat(root: Root, pid: int, tid: int | None = None) -> Stat:
    return parse_stat(root.read_text(f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat"))


class Image(NamedTuple):
    """A process, and where its address space was laid out when it executed its program.

    A fork copies the addresses, and each exec draws them anew (unless the process switched that off).
    """

    process: ProcessId
    ppid: int
    code: int
    stack: int
    heap: int

    @property
    def layout(self) -> tuple[int, int, int]:
        return (self.code, self.stack, self.heap)

    @property
    def is_told(self) -> bool:
        """Whether the kernel says where that is: all that it does not say it of would look like one another."""
        return self.code > 1

    def is_kin(self, other: Image) -> bool:
        """Whether both were laid out by the same exec, as far as that can be told."""
        return self.is_told and self.layout == other.layout


def image(root: Root, pid: int) -> Image:
    """From /proc/PID/stat: `startcode`, `startstack` and `start_brk`.

    1, 0 and 0 without the right (PTRACE_MODE_READ), all 0 of a zombie: do_task_stat() in fs/proc/array.c.
    """
    text = root.read_text(f"/proc/{pid}/stat")
    found, fields = parse_stat(text), text.rpartition(")")[2].split()
    return Image(ProcessId(pid, found.start), found.ppid, int(fields[23]), int(fields[25]), int(fields[44]))


def identify(root: Root, pid: int) -> ProcessId:
    return ProcessId(pid, stat(root, pid).start)


def pids(root: Root) -> list[int]:
    """All processes that there are, ascending."""
    return sorted(int(name) for name in os.listdir(root.name("/proc")) if name.isdigit())  # noqa: PTH208


def age(process: ProcessId) -> float:
    """Seconds since a process of this machine was made, to a hundredth."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")


def tids(root: Root, pid: int) -> list[int]:
    """Thread ids of a process, the leader among them, ascending."""
    return sorted(int(name) for name in os.listdir(root.name(f"/proc/{pid}/task")))  # noqa: PTH208


def living_thread(root: Root, pid: int) -> int | None:
    """A thread that has what the process has, its memory and its cgroup: the leader, or one that lives on without it.

    None where all are dead. `OSError` ENOENT where the process is gone.
    """
    if stat(root, pid).state not in "ZX":
        return pid
    for tid in tids(root, pid):
        try:
            if stat(root, pid, tid).state not in "ZX":
                return tid
        except OSError as error:
            if not libc.is_gone(error):
                raise
    return None


def status(root: Root, pid: int, tid: int | None = None) -> dict[str, str]:
    """`Name: value` lines of status, values stripped."""
    text = root.read_text(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.split("\n")) if key}


def children(root: Root, pid: int) -> set[int]:
    """Pids of the processes that its threads have forked, as far as they are still its children."""
    names = (f"/proc/{pid}/task/{tid}/children" for tid in tids(root, pid))
    return {int(child) for name in names for child in root.read_text(name).split()}


def users(fields: dict[str, str]) -> frozenset[int]:
    """Real and effective user id, from `status` fields."""
    return frozenset(int(number) for number in fields["Uid"].split()[:2])


def executable(root: Root, pid: int) -> Executable:
    """From /proc/PID/exe. `OSError`: ENOENT for kernel threads and zombies, EACCES without PTRACE_MODE_READ."""
    name = root.name(f"/proc/{pid}/exe")
    try:
        found = os.stat(name)  # noqa: PTH116 (the link is no path: it leads to the file itself, even to a removed one)
    except FileNotFoundError:
        if (living := living_thread(root, pid)) in (None, pid):
            raise
        name = root.name(f"/proc/{pid}/task/{living}/exe")  # of a dead leader there is none
        found = os.stat(name)  # noqa: PTH116
    return Executable(os.readlink(name).removesuffix(" (deleted)"), found.st_dev, found.st_ino)  # noqa: PTH115


def mems_allowed(fields: dict[str, str]) -> frozenset[int]:
    """Nodes that the task's cpuset lets it use, from `status` fields."""
    return nodelist.parse(fields["Mems_allowed_list"])


def cgroup_path(root: Root, pid: int, tid: int | None = None) -> str | None:
    """The task's cgroup2 path (`/a/b`), None where it has none or its cgroup was removed (` (deleted)`)."""
    text = root.read_text(f"/proc/{pid}/cgroup" if tid is None else f"/proc/{pid}/task/{tid}/cgroup")
    for line in text.split("\n"):  # splitlines() would also split at control characters in a name
        if line.startswith("0::"):
            path = line[3:]
            return None if path.endswith(" (deleted)") else path
    return None


def process_cgroup(root: Root, pid: int) -> str | None:
    """The cgroup2 path of a process: its leader's, or of one that lives on without it, for a dead leader stays behind
    when the others are moved."""
    living = living_thread(root, pid)
    return cgroup_path(root, pid, None if living == pid else living)


def thread_policy(root: Root, pid: int, tid: int) -> mempolicy.Mempolicy | None:
    """The policy of one thread as the kernel shows it, None where it has no memory (kernel thread, zombie).

    Reads only the beginning of task/TID/numa_maps: each further region costs a walk of its pages. The first region
    shows the thread's policy unless the application bound that very region (its text, in nearly every program).
    """
    name = root.name(f"/proc/{pid}/task/{tid}/numa_maps")
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.fsdecode(first_regions(fd))
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        os.close(fd)
    return mempolicy.parse_line(head.split("\n", 1)[0]) if head else None


_HEAD = 80
"""Bytes. Enough for the first region in nearly every case; each further region costs a walk of all its pages."""
_MORE = 4096
TWO_WORDS = (b"weighted", b"prefer")
"""First words of `weighted interleave` and `prefer (many)`; plain `prefer` is followed by `:` or `=`."""


def first_regions(fd: int, limit: int = _HEAD) -> bytes:
    """The beginning of an open numa_maps, at least up to the end of the first region's policy; empty without memory.

    The last line may be cut off anywhere behind that.
    """
    head = os.read(fd, limit)
    # A policy is complete when a space follows it: long lists of nodes do not fit.
    while head and not _has_policy(head):
        more = os.read(fd, _MORE)
        if not more:
            break
        head += more
    return head


def _has_policy(head: bytes) -> bool:
    line = head.split(b"\n", 1)[0]
    rest = line.partition(b" ")[2]
    spaces = 2 if rest.partition(b" ")[0] in TWO_WORDS else 1
    return len(line) < len(head) or rest.count(b" ") >= spaces

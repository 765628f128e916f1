"""`regions_target` as a process, and what numa_maps shows of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from hetmemd.kernel import numa_maps
from hetmemd.kernel.root import Root

ROOT = Root()
TARGET = Path(__file__).with_name("regions_target.py")


class Program:
    """The target, and what numa_maps shows of it."""

    def __init__(self, scale: int = 1) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, str(TARGET), str(scale)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.children: list[int] = []
        self.spans = self.tell("start")

    def say(self, command: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(command + "\n")
        self.popen.stdin.flush()

    def tell(self, command: str) -> dict[str, tuple[int, int]]:
        assert self.popen.stdout
        self.say(command)
        self.spans = {name: (span[0], span[1]) for name, span in json.loads(self.popen.stdout.readline()).items()}
        return self.spans

    def fork(self, how: str = "fork") -> int:
        """A child that waits: its pid."""
        child = self.tell(how)["child"][0]
        self.children.append(child)
        return child

    def policies(self, name: str, pid: int | None = None) -> set[str]:
        """Of all that a region comes to by now, in the program or in a child of it."""
        start, length = self.spans[name]
        lines = [(line.start, str(line.policy)) for line in numa_maps.read(ROOT, pid or self.popen.pid)]
        first = max(at for at, _ in lines if at <= start)
        return {shown for at, shown in lines if first <= at < start + length}

    def pages(self, name: str) -> Counter[int]:
        """By node, of all that a region comes to by now."""
        start, length = self.spans[name]
        lines = numa_maps.read(ROOT, self.popen.pid)
        first = max(line.start for line in lines if line.start <= start)
        found: Counter[int] = Counter()
        for line in lines:
            if first <= line.start < start + length:
                found.update(line.pages)
        return found

    def all(self, *names: str, pid: int | None = None) -> set[str]:
        return set().union(*(self.policies(name, pid) for name in names))

    def by_name(self, name: str) -> str:
        """The policy of a mapping that the kernel names."""
        text = ROOT.read_text(f"/proc/{self.popen.pid}/numa_maps")
        return next(str(numa_maps.parse_line(line).policy) for line in text.split("\n") if name in line)

    def end(self) -> None:
        for child in self.children:
            os.kill(child, signal.SIGKILL)
        self.popen.kill()
        self.popen.communicate()
        for child in self.children:
            with contextlib.suppress(ChildProcessError):  # another reaps it
                os.waitpid(child, 0)

"""Which regions of a process have a policy that hetmemd gave its parent: a fork copies them, and not the marks of them.

What the parent's marks say of addresses holds for the child until it executes another program. So they are taken down
when a fork is heard of, which costs next to nothing, and become the child's own when it is looked at first. Where a
fork was not heard of, the parent tells, or any other relative whose address space begins where the child's does (each
exec draws those addresses anew); and where there is none, the regions themselves have to be read, once (T4: a value
with nodes that was issued since boot is known again).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetmemd.engine.decide import Mark
from hetmemd.engine.ledger import Ledger, Span
from hetmemd.kernel import procfs
from hetmemd.kernel.procfs import Image, ProcessId
from hetmemd.kernel.root import Root

Marks = Mapping[Span, Mark]


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that nobody has looked at yet, as it was forked."""

    image: Image
    marks: Marks


class Heritage:
    """Not to be asked in several threads."""

    def __init__(self, root: Root, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        self._children: dict[int, _Child] = {}
        self._settled: dict[int, int] = {}
        """Processes of which it is known by now, by pid: their start."""
        bound = [process.start for process in ledger.processes() if ledger.regions(process)]
        self._since: int | None = min(bound, default=None)
        """Whoever is older than this has nothing; None where nobody has."""

    def bound(self, process: ProcessId) -> None:
        """Some region of a process is about to be bound."""
        self._since = process.start if self._since is None else min(self._since, process.start)

    # -- told

    def forked(self, pid: int, parent: int) -> None:
        """A fork."""
        if self._since is None:
            return
        mine, theirs = self._image(pid), self._image(parent)
        # Either may have executed another program since, and the parent may have ended: then `take` finds out.
        if not mine or not theirs or theirs.layout != mine.layout or self._is_known(mine.process):
            return
        if self._is_known(theirs.process):
            self._children[pid] = _Child(mine, self._of(theirs))

    def executed(self, pid: int) -> None:
        """An exec: nothing of what was inherited is left."""
        if self._since is None:
            return
        if (mine := self._image(pid)) is not None:
            self._children[pid] = _Child(mine, {})

    def forget(self, pid: int) -> None:
        """A process that ended."""
        self._children.pop(pid, None)
        self._settled.pop(pid, None)

    def settle(self, process: ProcessId) -> None:
        """Its regions were read: what it carries has marks of its own from now on."""
        self._children.pop(process.pid, None)
        self._settled[process.pid] = process.start

    # -- asked

    def take(self, process: ProcessId) -> bool:
        """What a process has inherited becomes its own in the ledger. True where that cannot be told without a reading
        of its regions. `OSError` where it is gone."""
        if self._since is None or self._is_settled(process):
            return False
        mine = procfs.image(self._root, process.pid)
        marks = self._heirloom(mine)
        if marks is None:
            return True
        self._ledger.set_regions(process, marks)
        self.settle(process)
        return False

    def _heirloom(self, mine: Image) -> Marks | None:
        """None where nobody knows."""
        heard = self._children.get(mine.process.pid)
        if heard and heard.image.process == mine.process:
            return heard.marks if heard.image.layout == mine.layout else {}
        theirs = self._image(mine.ppid)
        for relative in (theirs, *self._relatives(mine)):
            if relative and relative.layout == mine.layout and (marks := self._of(relative)):
                return marks
        return None

    def _of(self, image: Image) -> Marks:
        """What a process has, as far as that is known."""
        heard = self._children.get(image.process.pid)
        is_same = heard is not None and (heard.image.process, heard.image.layout) == (image.process, image.layout)
        return heard.marks if heard and is_same else self._ledger.regions(image.process)

    def _relatives(self, mine: Image) -> Iterable[Image]:
        """Whoever has marks and is older."""
        for process in sorted(self._ledger.processes(), key=lambda each: each.start):
            if process.start <= mine.process.start and self._ledger.regions(process):
                image = self._image(process.pid)
                if image and image.process == process:
                    yield image

    def _image(self, pid: int) -> Image | None:
        try:
            return procfs.image(self._root, pid)
        except OSError:
            return None

    # -- before it would be too late

    def bequeath(self, process: ProcessId) -> None:
        """What a process has is about to be another: children that nobody has looked at yet have it as it is."""
        theirs = self._image(process.pid)
        marks = self._ledger.regions(process)
        if theirs and theirs.process == process and marks:
            self._hand_down(theirs, marks)

    def _hand_down(self, theirs: Image, marks: Marks) -> None:
        for pid in self._forks(theirs.process.pid):
            mine = self._image(pid)
            if mine is None or mine.layout != theirs.layout or self._is_known(mine.process):
                continue
            self._children[pid] = _Child(mine, marks)
            self._hand_down(mine, marks)

    def _is_known(self, process: ProcessId) -> bool:
        heard = self._children.get(process.pid)
        return self._is_settled(process) or (heard is not None and heard.image.process == process)

    def _is_settled(self, process: ProcessId) -> bool:
        """Whether the ledger says all of it."""
        is_older = self._since is not None and process.start < self._since
        is_read = self._settled.get(process.pid) == process.start
        return is_older or is_read or bool(self._ledger.regions(process))

    def _forks(self, pid: int) -> Iterable[int]:
        try:
            return procfs.children(self._root, pid)
        except OSError:
            return ()  # it ended, or this kernel does not say

    def keep(self) -> None:
        """The daemon ends: what is known of children that were not looked at yet goes into the ledger."""
        for child in list(self._children.values()):
            if self._image(child.image.process.pid) == child.image and not self._ledger.regions(child.image.process):
                self._ledger.set_regions(child.image.process, child.marks)

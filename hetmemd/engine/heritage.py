"""Which regions of a process have a policy that hetmemd gave its parent: a fork copies them, and not the marks of them.

What the parent's marks say of addresses holds for the child until it executes another program. So they are taken down
when a fork is heard of, which costs two readings of /proc/PID/stat (about 20 us) while anything is bound, and become
the child's own when it is looked at first. Where a fork was not heard of, the parent tells, or any other relative whose
address space begins where the child's does (each exec draws those addresses anew); and where there is none, the regions
themselves have to be read, once (T4: a value with nodes that was issued since boot is known again).
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hetmemd.engine.decide import Mark
from hetmemd.engine.ledger import Ledger, Span
from hetmemd.kernel import procfs
from hetmemd.kernel.procfs import Image, ProcessId
from hetmemd.kernel.root import Root

Marks = Mapping[Span, Mark]

LONG = 0.002
"""Seconds. What it takes to write down what one child has is noticed from here on: 10,000 marks take fifty times that,
and a server may have hundreds of such children."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that nobody has looked at yet, as it was forked."""

    image: Image
    marks: Marks


class _Bound:
    """Processes that have marks, by where their address spaces were laid out, so that each is read once and not for
    every process that has a relative to look for."""

    def __init__(self, processes: Iterable[ProcessId]) -> None:
        self.unread = {process.pid: process for process in processes}
        """Those whose image was not taken down yet, by pid."""
        self._images: dict[int, Image] = {}
        self._kin: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        """(start, pid), ascending, by layout."""

    def add(self, image: Image) -> None:
        """As it is now, whatever it was before."""
        if self._images.get(image.process.pid) == image:
            self.unread.pop(image.process.pid, None)
            return
        self.remove(image.process.pid)
        if image.is_told:
            self._images[image.process.pid] = image
            bisect.insort(self._kin.setdefault(image.layout, []), (image.process.start, image.process.pid))

    def remove(self, pid: int) -> None:
        self.unread.pop(pid, None)
        if (image := self._images.pop(pid, None)) is not None:
            kin = self._kin[image.layout]
            del kin[bisect.bisect_left(kin, (image.process.start, pid))]
            if not kin:
                del self._kin[image.layout]

    def kin(self, image: Image) -> list[ProcessId]:
        """Those that began where it does and are no younger, the oldest first."""
        kin = self._kin.get(image.layout, [])
        return [ProcessId(pid, start) for start, pid in kin[: bisect.bisect_left(kin, (image.process.start + 1, 0))]]


class Heritage:
    """Not to be asked in several threads."""

    def __init__(self, root: Root, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        self._children: dict[int, _Child] = {}
        self._settled: dict[int, int] = {}
        """Processes of which it is known by now, by pid: their start."""
        bound = [process for process in ledger.processes() if ledger.regions(process)]
        self._since: int | None = min((process.start for process in bound), default=None)
        """Whoever is older than this has nothing; None where nobody has."""
        self._bound = _Bound(bound)
        self._turn = asyncio.Lock()

    def bound(self, process: ProcessId) -> None:
        """Some region of a process is about to be bound."""
        self._since = process.start if self._since is None else min(self._since, process.start)
        self._bound.unread[process.pid] = process

    # -- told

    def forked(self, pid: int, parent: int) -> None:
        """A fork."""
        if self._since is None:
            return
        mine, theirs = self._image(pid), self._image(parent)
        # Either may have executed another program since, and the parent may have ended: then `take` finds out.
        if not mine or not theirs or not theirs.is_kin(mine) or self._is_known(mine.process):
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
        self._bound.remove(pid)

    def settle(self, process: ProcessId) -> None:
        """Its regions were read: what it carries has marks of its own from now on."""
        self._children.pop(process.pid, None)
        self._settled[process.pid] = process.start
        self._read(process)  # it may have executed another program since the last time

    # -- asked

    async def inherit(self, process: ProcessId) -> bool:
        """As `take`, where many may ask at once: what takes long is done one by one, for half of the time at most."""
        if self._since is None or self._is_settled(process):
            return False
        async with self._turn:
            began = time.monotonic()
            is_unknown = self.take(process)
            spent = time.monotonic() - began
            if spent > LONG:
                await asyncio.sleep(spent)
        return is_unknown

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
            if not heard.marks or heard.image.is_kin(mine):
                return heard.marks
            return {} if mine.is_told else None
        theirs = self._image(mine.ppid)
        if theirs and theirs.is_kin(mine) and (marks := self._of(theirs)):
            return marks
        return next((marks for relative in self._relatives(mine) if (marks := self._of(relative))), None)

    def _of(self, image: Image) -> Marks:
        """What a process has, as far as that is known."""
        heard = self._children.get(image.process.pid)
        is_same = heard is not None and (heard.image.process, heard.image.layout) == (image.process, image.layout)
        return heard.marks if heard and is_same else self._ledger.regions(image.process)

    def _relatives(self, mine: Image) -> Iterator[Image]:
        """Whoever has marks and is older."""
        for process in list(self._bound.unread.values()):
            self._read(process)
        for process in self._bound.kin(mine):
            image = self._read(process)  # it may have ended, or executed another program
            if image and image.is_kin(mine):
                yield image

    def _read(self, process: ProcessId) -> Image | None:
        """A process that has marks, as it is now."""
        image = self._image(process.pid)
        if image and image.process == process and self._ledger.regions(process):
            self._bound.add(image)
            return image
        self._bound.remove(process.pid)
        return None

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
            if mine is None or not mine.is_kin(theirs) or self._is_known(mine.process):
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
            now = self._image(child.image.process.pid)
            # Its parent may be another by now: who was orphaned has what it had.
            is_same = now is not None and now.process == child.image.process and now.is_kin(child.image)
            if is_same and not self._ledger.regions(child.image.process):
                self._ledger.set_regions(child.image.process, child.marks)

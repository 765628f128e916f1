"""One inotify instance, and the source that it is: pyinotify opens it and adds the watches, the events are read here.

pyinotify's own reader decodes names strictly, so that one hostile file name raises and loses the rest of the batch, and
it blocks where nothing is to be read; its descriptor is neither non-blocking nor close-on-exec. Formats: inotify(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from hetmemd.watch.source import Deliver, Source

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_ISDIR = 0x40000000

PACE = 0.01
"""Seconds between two readings, at least."""

_HEAD = struct.Struct("iIII")
_READ = 1 << 16
_READINGS = 16
"""At a time, before others on the loop have their turn: as much as the kernel queues, unless it is told otherwise."""


class Unavailable(Exception):
    """inotify cannot be used, with the reason in a sentence."""


class Event(NamedTuple):
    watch: int
    """-1 with IN_Q_OVERFLOW."""
    mask: int
    name: str
    """The entry of the watched directory, decoded with `os.fsdecode`; empty where the event is about the watch."""


def _manager() -> Any:
    try:
        with warnings.catch_warnings():
            # It imports asyncore, which warns on 3.11 and comes from pyasyncore after that.
            warnings.simplefilter("ignore")
            import pyinotify  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(f"pyinotify cannot be imported: {error}") from None
    # It logs to standard error by a handler of its own, from the moment of its import.
    log = logging.getLogger("pyinotify")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    try:
        return pyinotify.WatchManager()
    except (OSError, pyinotify.PyinotifyError) as error:
        raise Unavailable(f"no inotify instance: {error}; see fs.inotify.max_user_instances") from None


class Inotify:
    """A queue of events. Raises `Unavailable` where there is no inotify."""

    def __init__(self) -> None:
        self._manager = _manager()
        self.descriptor: int = self._manager.get_fd()
        os.set_blocking(self.descriptor, False)
        os.set_inheritable(self.descriptor, False)

    def add(self, name: str, mask: int) -> int:
        """Watch the file or directory `name`. The same inode gives the same number, with the mask replaced.

        Raises `OSError`: ENOENT where it is gone, ENOSPC at fs.inotify.max_user_watches.
        """
        try:
            watches = self._manager.add_watch(name, mask, quiet=False)
        except UnicodeEncodeError:
            # pyinotify encodes paths strictly. An open directory has a second name, and that one is plain.
            return self._add_by_descriptor(name, mask)
        except Exception as error:
            # A WatchManagerError without an errno: it is still the one that libc left behind.
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), name) from error
        return int(next(iter(watches.values())))

    def _add_by_descriptor(self, name: str, mask: int) -> int:
        flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if mask & IN_DONT_FOLLOW else 0)
        descriptor = os.open(name, flags)
        try:
            return self.add(f"/proc/self/fd/{descriptor}", mask & ~IN_DONT_FOLLOW)
        finally:
            os.close(descriptor)

    def remove(self, watch: int) -> None:
        """Drop a watch; one that the kernel dropped already is fine."""
        if self._manager.get_watch(watch) is None:
            return
        try:
            self._manager.rm_watch(watch, quiet=False)
        except Exception:
            # A WatchManagerError: EINVAL, the inode went away and the watch with it.
            self._manager.del_watch(watch)

    def read(self) -> list[Event]:
        """What is queued, up to 64 KiB of it; the descriptor stays readable where there is more. Never blocks."""
        try:
            data = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return []
        events = []
        offset = 0
        while offset < len(data):
            watch, mask, _cookie, length = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            name = data[offset : offset + length]
            offset += length
            if mask & IN_IGNORED and self._manager.get_watch(watch) is not None:
                self._manager.del_watch(watch)
            events.append(Event(watch, mask, os.fsdecode(name[: name.find(b"\0")]) if length else ""))
        return events

    def close(self) -> None:
        with suppress(OSError):
            self._manager.close()


class InotifySource(Source, ABC):
    """A source that reads an inotify instance on the loop: a subclass watches what it wants, and takes the batches."""

    advice: ClassVar[str] = ""
    """What helps while the source is down, after a semicolon."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        super().__init__(deliver)
        self._loop = loop
        self.inotify: Inotify | None = None
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> bool:
        """Up, with nothing watched yet; False where it cannot be, with a note."""
        try:
            self.inotify = Inotify()
            self._loop.add_reader(self.inotify.descriptor, self._readable)
        except (Unavailable, OSError) as error:
            self.fail(f"{error}{self.advice}")
            return False
        self.up, self.note = True, ""
        return True

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self.inotify is not None:
            self._loop.remove_reader(self.inotify.descriptor)
            self.inotify.close()
            self.inotify = None
        self.fail("closed")

    @abstractmethod
    def take(self, events: Sequence[Event], overflow: bool) -> None:
        """One batch. With `overflow` some are missing: `lost` is told, once everything is watched again."""

    def _readable(self) -> None:
        """Something came: take everything at once, and what comes in the next moment together after that. So what comes
        alone is not late, and what comes in masses costs one waking in each moment."""
        if self.inotify is None:
            return
        self._loop.remove_reader(self.inotify.descriptor)
        self._pause = self._loop.call_later(PACE, self._listen)
        events: list[Event] = []
        try:
            for _ in range(_READINGS):
                if not (some := self.inotify.read()):
                    break
                events += some
        except OSError as error:
            self.close()
            self.fail(f"reading inotify events: {error}{self.advice}")
            self.lost()
            return
        told = [event for event in events if not event.mask & IN_Q_OVERFLOW]
        self.events += len(told)
        self.take(told, overflow=len(told) < len(events))

    def _listen(self) -> None:
        self._pause = None
        if self.inotify is not None:
            try:
                self._loop.add_reader(self.inotify.descriptor, self._readable)
            except OSError:
                self._readable()  # the descriptor is lost: reading it says so

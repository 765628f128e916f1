"""What keeps an act by hand from being done: what keeps the daemon from it as well. Each refusal says how to go on."""

from __future__ import annotations

import os
import pwd

from hetmemd import instance, settings
from hetmemd.engine.brakes import denied
from hetmemd.engine.holds import Holds
from hetmemd.engine.ledger import BOOT_ID
from hetmemd.kernel import libc, procfs
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote import kin
from hetmemd.settings import OBSERVE_FILES, PATH


class RefusedError(RuntimeError):
    """Nothing is done; the text says why."""


class ByHandBrakes:
    def __init__(self, root: Root) -> None:
        """`RefusedError` where it cannot be known what is denied or held."""
        self._root = root
        try:
            self._settings = settings.load(root)
        except settings.SettingsError as error:
            raise RefusedError(f"what {PATH} denies is not known: {error}; see hetmemctl check") from None
        self._holds = Holds(root, root.read_text(BOOT_ID).strip())
        if self._holds.damage:
            raise RefusedError(f"what is held is not known: {self._holds.damage}; hetmemctl release --all ends that")

    def check(self, process: ProcessId) -> None:
        """`RefusedError` where nothing may be done to a process, now or ever. `OSError` where it is gone."""
        pid = process.pid
        if pid == 1:
            raise RefusedError("process 1 is init, which is never touched (T5)")
        service = instance.holder(self._root)
        if pid in (os.getpid(), service) or (service and procfs.stat(self._root, pid).ppid == service):
            raise RefusedError(f"process {pid} is hetmemd itself, which is never touched (T5)")
        self._check_program(pid)
        if why := self.shares_memory(pid):
            raise RefusedError(f"process {pid}: {why}")

    def _check_program(self, pid: int) -> None:
        found = self._settings.brakes
        try:
            executable = procfs.executable(self._root, pid)
        except FileNotFoundError:
            raise RefusedError(f"process {pid} has no memory: a kernel thread, or one that has ended") from None
        users = procfs.users(procfs.status(self._root, pid))
        reason = denied(executable, users, found.deny_executables, _uids(found.deny_users))
        if reason:
            key = reason.replace("denied-", "deny_") + "s"
            raise RefusedError(f"process {pid} ({executable.path}) is on the deny-list: {key} in {PATH}")
        if hold := self._holds.executable(executable):
            raise RefusedError(f"{hold.what} is held: {hold.why}; hetmemctl release {hold.what} ends that")

    def shares_memory(self, pid: int) -> str:
        """Why its address space is not its own (T5), or may not be; empty where it is. `OSError` where it is gone."""
        tid = procfs.living_thread(self._root, pid)
        try:
            if tid is None or not kin.shares_memory(self._root, pid, tid):
                return ""
        except OSError as error:
            if libc.is_gone(error):
                raise
            return f"whether another process shares its memory (T5) cannot be told: {error.strerror}"
        return "another process shares its memory (T5): it can be acted on after its exec"

    def switch(self) -> str:
        """Why nothing may be done to anybody now, the kill switch; empty where something may."""
        by = f"observe in {PATH}" if self._settings.observe else ""
        by = by or next((name for name in OBSERVE_FILES if self._root.path(name).exists()), "")
        return f"the kill switch is on ({by}): hetmemctl observe off" if by else ""


def _uids(users: tuple[str | int, ...]) -> frozenset[int]:
    """Of those that there are on this machine."""
    known = {user.pw_name: user.pw_uid for user in pwd.getpwall()} if any(isinstance(u, str) for u in users) else {}
    found = (user if isinstance(user, int) else known.get(user) for user in users)
    return frozenset(uid for uid in found if uid is not None)

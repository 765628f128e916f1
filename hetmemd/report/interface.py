"""The Varlink interface `org.hetmemd`: its methods and errors, for the service and for its clients.

Objects are those of `report.answers`; `varlinkctl introspect /run/hetmemd/control org.hetmemd` shows the rest.
"""

# No postponed annotations here: asyncvarlink makes the types of parameters from them.

from typing import Any

from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterface, varlinkmethod


class NotReady(TypedVarlinkErrorReply, interface="org.hetmemd"):
    """The service has just started and knows nothing yet: ask again in a moment."""

    class Parameters:
        pass


class NoSuchCgroup(TypedVarlinkErrorReply, interface="org.hetmemd"):
    """There is no such cgroup, or no policy reaches it."""

    class Parameters:
        cgroup: str


class NoSuchProcess(TypedVarlinkErrorReply, interface="org.hetmemd"):
    """There is no such process, or it is in no cgroup of the unified hierarchy."""

    class Parameters:
        pid: int


class Failed(TypedVarlinkErrorReply, interface="org.hetmemd"):
    """It could not be done, and nothing was: why."""

    class Parameters:
        why: str


class Interface(VarlinkInterface, name="org.hetmemd"):
    """Memory policies of cgroups: what holds and why. Methods that read are for everybody; Undo and Release are
    for root."""

    errors = (NotReady, NoSuchCgroup, NoSuchProcess, Failed)

    @varlinkmethod(return_parameter="status", allow_foreign=True)
    async def Status(self) -> Any:
        """What `hetmemctl status --json` prints."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="answer", allow_foreign=True)
    async def Explain(self, *, cgroup: str | None = None, pid: int | None = None) -> Any:
        """What `hetmemctl explain --json` prints, for a path below the cgroup2 root or for a process."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="files", allow_foreign=True)
    async def Check(self) -> Any:
        """The policy files as the service took them: a list of objects with `path`, `state` and `faults`."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="answer", allow_foreign=True)
    async def Undo(
        self, *, cgroup: str | None = None, pid: int | None = None, dry_run: bool = False, force: bool = False
    ) -> Any:
        """Give back what was replaced, in a cgroup and all below it, in a process, or everywhere; from then on nothing
        is given to them until Release. With `force` also in processes that are denied, or held after a crash. What
        `hetmemctl undo --json` prints."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="released", allow_foreign=True)
    async def Release(self, *, what: str | None = None) -> Any:
        """End what is held under this name, or everything: a list of objects with `kind`, `what` and `why`."""
        raise NotImplementedError

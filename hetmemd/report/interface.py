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


class Interface(VarlinkInterface, name="org.hetmemd"):
    """Memory policies of cgroups: what holds and why. Methods that read are for everybody."""

    errors = (NotReady, NoSuchCgroup, NoSuchProcess)

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

"""hetmemctl: what holds for which cgroup, and why.

Data goes to stdout, messages to stderr. Exit status: 0 done; 1 `check` found faults, nothing is known of the cgroup or
process, a file of the machine cannot be read, or an order was not carried out whole; 2 wrong usage; 3 the service
cannot be reached.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hetmemd import __version__
from hetmemd.ctl import client, completion, orders, text
from hetmemd.kernel.root import Root
from hetmemd.policy.faults import Caution, Fault, printable
from hetmemd.report import SOCKET

if TYPE_CHECKING:
    from types import ModuleType

SCHEMA = 1
"""Of what `check --json` prints; `status` and `explain` have theirs in report.answers."""

OK = 0
NEGATIVE = 1
USAGE = 2
UNREACHABLE = 3

_SETTINGS = "hetmemd.toml"
_CGROUP_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="hetmemctl",
        description="Shows which memory policy holds for which cgroup, and why; gives back, and switches off.",
        epilog="Exit status: 0 done; 1 check found faults, nothing is known of what was asked for, a file of the "
        "machine cannot be read, or an order was not carried out whole; 2 wrong usage; 3 the service cannot be "
        "reached.",
    )
    top.add_argument("--version", action="version", version=f"hetmemctl {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    status = verbs.add_parser("status", help="cgroups, policy files and sources of events at a glance")
    _common(status)

    explain = verbs.add_parser(
        "explain",
        help="the policy of a cgroup or process, with file, line and rules",
        description="Shows the policy that holds, the file and line it comes from, the rules that decided, what lost "
        "against it, what the kernel says now, and what was done last.",
    )
    explain.add_argument(
        "what", metavar="CGROUP|PID", help="a path below the cgroup2 root, such as /system.slice, or a pid"
    )
    explain.add_argument(
        "--regions",
        action="store_true",
        help="of a process: each region's kind, policy, pages by node, and why; for its own user and root",
    )
    explain.add_argument("--root", metavar="DIR", help="without the service: for the machine whose files are below DIR")
    _common(explain)

    check = verbs.add_parser(
        "check",
        help="all faults of policy files, without the service and as any user",
        description="Names every fault as file:line with a hint. Without FILE, what is in force: the settings and the "
        "policy directories. Exit status 1 if there is a fault; warnings do not count.",
    )
    check.add_argument("files", metavar="FILE", nargs="*", help="policy files or folders of them, or a hetmemd.toml")
    check.add_argument("--root", metavar="DIR", help="for the machine whose files are below DIR")
    _common(check)

    weights = verbs.add_parser(
        "weights",
        help="bandwidths of the nodes, the kernel's interleave weights, and what each policy gets",
        description="Shows what the firmware tells of each node, the kernel's global table of weights for weighted "
        "interleave, and the weights that each policy comes to. Works without the service and as any user.",
    )
    weights.add_argument("--root", metavar="DIR", help="for the machine whose files are below DIR")
    weights.add_argument(
        "--measure",
        action="store_true",
        help="measure each node from each socket and propose weights: takes the machine's memory bandwidth meanwhile",
    )
    weights.add_argument("--size", help="memory to measure with, at most half of what is free; default: by the caches")
    weights.add_argument("--seconds", type=float, default=0.5, help="for each of reading, writing and copying")
    _common(weights)
    _orders(verbs)

    bind = verbs.add_parser(
        "bind",
        help="give regions of a running process a policy, without a file",
        description="Has the process itself call mbind(2) for its regions: those of classes (heap,anon unless told "
        "otherwise) or of a range of addresses. Works without the service. Pages stay where they are: see move.",
    )
    _by_hand(bind)
    bind.add_argument("--mode", metavar="MODE", required=True, help="as in a policy file; default takes a policy away")
    bind.add_argument("--home-node", metavar="NODE", type=int, help="with bind and preferred-many")
    bind.add_argument("--override", action="store_true", help="also regions that have a policy of their own")

    move = verbs.add_parser(
        "move",
        help="move pages of a running process, without a file",
        description="Moves pages to these nodes or, with --weights, to that ratio, with the fewest moves. What is "
        "chosen is as with bind, also of classes that cannot be bound (exec, file).",
    )
    _by_hand(move)
    move.add_argument(
        "--weights", metavar="WEIGHTS", help='such as "0=3,1=1" or "dram=3,cpuless=1"; bandwidth, capacity or kernel'
    )
    move.add_argument("--rate", metavar="RATE", default="256MiB/s", help="at most, 256MiB/s unless told otherwise")

    complete = verbs.add_parser("completion", help="the completion script of a shell")
    complete.add_argument("shell", choices=("bash", "zsh"))
    return top


def _by_hand(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("pid", metavar="PID", type=int)
    verb.add_argument(
        "what", metavar="RANGE|CLASS", nargs="?", help="START-END in hexadecimal as in /proc/PID/maps, or heap,anon,..."
    )
    verb.add_argument("--nodes", metavar="NODES", help="as in a policy file: 0-1, dram+cpuless, all")
    verb.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    _common(verb)


def _orders(verbs: Any) -> None:
    """The verbs that change something."""
    undo = verbs.add_parser(
        "undo",
        help="give back what was replaced, and give nothing any more until it is released; as root",
        description="Gives threads and regions the policies back that they had before hetmemd, also when the service "
        "is gone. Where it runs, nothing is given there any more until hetmemctl release. Pages stay where they are.",
    )
    where = undo.add_mutually_exclusive_group()
    where.add_argument("--cgroup", metavar="CGROUP", help="only in this cgroup and those below it")
    where.add_argument("--pid", metavar="PID", type=int, help="only in this process")
    undo.add_argument("--dry-run", action="store_true", help="only say what would be given back")
    undo.add_argument(
        "--force", action="store_true", help="also in processes that are denied, or held after a crash of their program"
    )

    release = verbs.add_parser(
        "release",
        help="end what is held after a crash or an undo, as status lists it; as root",
        description="What is held is given policies again: an executable or a policy after a crash, a cgroup or a "
        "process after an undo.",
    )
    what = release.add_mutually_exclusive_group(required=True)
    what.add_argument("what", metavar="WHAT", nargs="?", help="an executable, a policy file, a cgroup or a pid")
    what.add_argument("--all", action="store_true", help="everything that is held")

    observe = verbs.add_parser(
        "observe",
        help="the kill switch, for longer than this boot; without a word, how it stands",
        description="While it is on, nothing is applied or moved; all is measured and reported.",
    )
    observe.add_argument("switch", choices=("on", "off"), nargs="?")
    for verb in (undo, release, observe):
        verb.add_argument("--root", help=argparse.SUPPRESS)
        _common(verb)


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--json", action="store_true", help="for programs; `schema` is raised when something is taken away"
    )
    verb.add_argument("--socket", default=SOCKET, help=argparse.SUPPRESS)


def main(arguments: Sequence[str] | None = None) -> int:
    # A cgroup's name may be any bytes; what the terminal's encoding lacks must not stop the rest.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    top = parser()
    chosen = top.parse_args(arguments)
    if getattr(chosen, "root", None) is not None and not os.path.isdir(chosen.root):  # noqa: PTH112
        return _fail(USAGE, f"--root: there is no folder {chosen.root}")
    try:
        match chosen.verb:
            case "status":
                return _status(chosen)
            case "explain":
                return _explain(chosen)
            case "check":
                return _check(chosen)
            case "weights":
                return _weights(chosen)
            case "bind" | "move":
                return _act(chosen)
            case "undo":
                return _undo(chosen)
            case "release":
                return _release(chosen)
            case "observe":
                return _observe(chosen)
            case _:
                sys.stdout.write(completion.script(top, chosen.shell))
                return OK
    except client.UnreachableError as error:
        return _fail(UNREACHABLE, str(error))
    except (client.UnknownError, orders.RefusedError) as error:
        return _fail(NEGATIVE, str(error))
    except BrokenPipeError:
        # `hetmemctl status | head`: the reader has what it wanted. Nothing may be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _status(chosen: argparse.Namespace) -> int:
    told = client.status(chosen.socket)
    _show(chosen, told, lambda paint: text.status(told, paint))
    return OK


def _explain(chosen: argparse.Namespace) -> int:
    what: str = chosen.what
    if what.isascii() and what.isdigit():
        if chosen.regions:
            return _regions(chosen, int(what))
        if chosen.root is not None:
            return _fail(USAGE, "a process is known to its own machine only: with --root, name a cgroup")
        told = client.explain_process(int(what), chosen.socket)
    else:
        cgroup = _below_mount(what)
        if chosen.regions:
            return _fail(USAGE, f"--regions shows those of a process: name one by its number, not {what!r}")
        if not cgroup.startswith("/"):
            return _fail(
                USAGE, f"a cgroup is named by its path below the cgroup root, which begins with /, not {what!r}"
            )
        if chosen.root is None:
            told = client.explain_cgroup(cgroup, chosen.socket)
        else:
            try:
                path = _policy("explain").cgroup_path(cgroup)
            except ValueError as error:
                return _fail(USAGE, str(error))
            try:
                told = _explain_offline(_root(chosen.root), path)
            except OSError as error:
                return _fail(NEGATIVE, f"{error.filename}: {error.strerror}")
    _show(chosen, told, lambda paint: text.explain(told, paint))
    return OK


def _explain_offline(root: Root, cgroup: str) -> dict[str, Any]:
    """What the service would answer where it ran on the machine below `root`. `OSError`."""
    from hetmemd import settings  # noqa: PLC0415 - as in _policy()

    notes: list[str] = []
    try:
        defaults = settings.load(root).defaults
    except settings.SettingsError as error:
        defaults = settings.Settings().defaults
        notes = [f"built-in defaults, as the settings are broken: {fault}" for fault in error.faults]
    told: dict[str, Any] = {"schema": SCHEMA, **_policy("explain").offline(root, cgroup, defaults)}
    told["notes"] += notes
    return told


def _regions(chosen: argparse.Namespace, pid: int) -> int:
    """Read here, so that the kernel itself decides who may see them; why they are so, the service says."""
    try:
        return int(importlib.import_module("hetmemd.ctl.regions").explain(chosen, pid, _show))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(NEGATIVE, importlib.import_module("hetmemd.ctl.regions").refusal(error, pid))


def _act(chosen: argparse.Namespace) -> int:
    try:
        return int(importlib.import_module("hetmemd.ctl.by_hand").run(chosen, _show))
    except ValueError as error:
        return _fail(USAGE, ": ".join(str(part) for part in error.args if part))
    except BrokenPipeError:
        raise
    except (OSError, RuntimeError) as error:
        return _fail(NEGATIVE, importlib.import_module("hetmemd.ctl.regions").refusal(error, chosen.pid))


def _policy(name: str) -> ModuleType:
    """A module of the policy room: its import takes longer than asking the service does, which needs none of it."""
    return importlib.import_module(f"hetmemd.policy.{name}")


def _below_mount(what: str) -> str:
    """A cgroup as typed: its folder below /sys/fs/cgroup is the same as its path."""
    for mount in _CGROUP_MOUNTS:
        if what == mount or what.startswith(mount + "/"):
            return what.removeprefix(mount) or "/"
    return what


def _check(chosen: argparse.Namespace) -> int:
    root = _root(chosen.root)
    found: list[Fault | Caution] = []
    try:
        if chosen.files:
            mine = [name for name in chosen.files if os.path.basename(name) == _SETTINGS]  # noqa: PTH119
            for name in mine:
                if not os.path.lexists(name):
                    found.append(Fault(name, 1, "does not exist"))
                found += _settings_faults(Root(), os.path.abspath(name))  # noqa: PTH100
            others = [name for name in chosen.files if name not in mine]
            found += _policy("check").check_files(root, others) if others else []
        else:
            found += _settings_faults(root, f"/etc/{_SETTINGS}")
            found += _policy("check").check_files(root)
    except OSError as error:
        return _fail(NEGATIVE, f"{error.filename}: {error.strerror}")
    told = {
        "schema": SCHEMA,
        "findings": [
            {
                "file": finding.file,
                "line": finding.line,
                "severity": finding.severity,
                "message": finding.message,
                "hint": finding.hint,
            }
            for finding in found
        ],
    }
    _show(chosen, told, lambda paint: text.check(told["findings"], paint))  # type: ignore[arg-type]
    faults = sum(isinstance(finding, Fault) for finding in found)
    if not chosen.json and not found:
        print("no fault found", file=sys.stderr)
    return NEGATIVE if faults else OK


def _weights(chosen: argparse.Namespace) -> int:
    from hetmemd.ctl import weights  # noqa: PLC0415 - as in _policy()
    from hetmemd.policy import quantity  # noqa: PLC0415

    if chosen.measure and chosen.root is not None:
        return _fail(USAGE, "only the machine at hand can be measured: --measure goes without --root")
    try:
        size = None if chosen.size is None else quantity.size(chosen.size)
    except ValueError as error:
        return _fail(USAGE, f"--size: {error}")
    if (size is not None and size < weights.LEAST) or not 0 < chosen.seconds <= 60:
        return _fail(USAGE, f"--size is at least {weights.LEAST >> 20}MiB, and --seconds at most 60")
    try:
        told: dict[str, Any] = {"schema": SCHEMA, **weights.shown(_root(chosen.root))}
        if chosen.measure:
            told |= weights.measured(_root(None), size, chosen.seconds, lambda text: print(text, file=sys.stderr))
    except OSError as error:
        return _fail(NEGATIVE, f"{error.filename}: {error.strerror}")
    _show(chosen, told, lambda paint: weights.lines(told, paint))
    return OK


def _undo(chosen: argparse.Namespace) -> int:
    cgroup = None if chosen.cgroup is None else _below_mount(chosen.cgroup)
    if cgroup is not None and not cgroup.startswith("/"):
        return _fail(USAGE, f"a cgroup is named by its path below the cgroup root, which begins with /, not {cgroup!r}")
    told = orders.undo(_root(chosen.root), chosen.socket, cgroup, chosen.pid, chosen.dry_run, chosen.force)
    _show(chosen, told, lambda paint: text.undo(told, paint))
    return NEGATIVE if told.get("left") else OK


def _release(chosen: argparse.Namespace) -> int:
    told = orders.release(_root(chosen.root), chosen.socket, None if chosen.all else chosen.what)
    _show(chosen, told, lambda paint: text.released(told))
    if not told["released"] and not chosen.all:
        return _fail(NEGATIVE, f"nothing is held under the name {chosen.what}: hetmemctl status lists what is")
    return OK


def _observe(chosen: argparse.Namespace) -> int:
    told = orders.observe(_root(chosen.root), chosen.socket, chosen.switch)
    _show(chosen, told, lambda paint: text.observe(told, paint))
    return OK if chosen.switch is None or told["observing"] == (chosen.switch == "on") else NEGATIVE


def _settings_faults(root: Root, path: str) -> list[Fault]:
    from hetmemd import settings  # noqa: PLC0415 - as in _policy()

    try:
        settings.load(root, path)
    except settings.SettingsError as error:
        return list(error.faults)
    return []


def _root(folder: str | None) -> Root:
    return Root() if folder is None else Root(os.path.abspath(folder))  # noqa: PTH100


def _show(chosen: argparse.Namespace, told: Any, lines: Any) -> None:
    if chosen.json:
        json.dump(told, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for line in lines(text.Paint(wanted)):
            print(line)
    sys.stdout.flush()


def _fail(code: int, message: str) -> int:
    print(f"hetmemctl: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

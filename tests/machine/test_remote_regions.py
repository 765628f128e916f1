"""Policies of regions: many calls by any one thread of a process, a bounded stop at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hetmemd.kernel import libc, numa_maps, procfs
from hetmemd.kernel.mempolicy import DEFAULT, Mempolicy, Mode
from hetmemd.remote import regions as regions_module
from hetmemd.remote.regions import Bind, HomeNode, RegionCall, RegionsResult
from hetmemd.remote.result import Outcome
from tests.machine import dying_tracer
from tests.machine.remote_target import BIND, INTERLEAVE, NODE0, ROOT, Acting, Target

pytestmark = pytest.mark.root

Built = Callable[..., Path]

PAGE = 4096


class Regions:
    """A target with so many pages, and a thread beside its leader."""

    def __init__(self, target: Target) -> None:
        self.target = target
        _, address, tid = target.line().split()
        self.start, self.tid = int(address), int(tid)

    def bind(self, page: int, policy: Mempolicy, count: int = 1) -> Bind:
        return Bind(self.start + page * PAGE, count * PAGE, policy)

    def policies(self, count: int) -> list[Mempolicy | None]:
        """Of each of the first pages."""
        lines = [line for line in numa_maps.read(ROOT, self.target.pid) if line.start < self.start + count * PAGE]
        starts = [line.start for line in lines]
        shown: list[Mempolicy | None] = []
        at = max(index for index, start in enumerate(starts) if start <= self.start)
        for page in range(count):
            while at + 1 < len(starts) and starts[at + 1] <= self.start + page * PAGE:
                at += 1
            shown.append(lines[at].policy)
        return shown


@contextlib.contextmanager
def regions(built: Built, pages: int, kind: str) -> Iterator[Regions]:
    with Target([built("regions"), str(pages), kind]) as target:
        yield Regions(target)
        assert target.finish() == f"intact {pages}\n"


def alternating(some: Regions, count: int) -> list[RegionCall]:
    """As many regions as pages."""
    return [some.bind(page, (BIND, INTERLEAVE)[page % 2]) for page in range(count)]


@pytest.mark.parametrize(("kind", "count"), [("spin", 10_000), ("alarms", 1000)])
def test_thousands_of_calls_in_many_stops(built: Built, acting: Acting, kind: str, count: int) -> None:
    with regions(built, count, kind) as some:
        result = acting.bind(some.target, alternating(some, count), [some.tid])
        assert (result.outcome, result.reason) == (Outcome.APPLIED, "")
        assert result.errnos == (0,) * count
        # How long a stop is depends on the machine; that there are many does not.
        assert len(result.pauses_ns) >= count / regions_module.CALLS
        assert some.policies(count) == [(BIND, INTERLEAVE)[page % 2] for page in range(count)]
        assert some.target.policy() == DEFAULT, "no thread's own policy has changed"


def test_a_thread_that_ends_amid_the_calls_is_succeeded_by_another(built: Built, acting: Acting) -> None:
    count = 5000
    # It ends between the stops, in which its own first calls were made.
    with regions(built, count, "end") as some:
        result = acting.bind(some.target, alternating(some, count), [some.tid, some.target.pid])
        assert not Path(f"/proc/{some.tid}").exists()
        assert len(result.pauses_ns) >= 2
        assert (result.outcome, result.errnos) == (Outcome.APPLIED, (0,) * count)
        # With nobody to succeed it there are results up to its end.
        assert acting.bind(some.target, alternating(some, 3), [some.tid]) == RegionsResult(
            Outcome.GONE, "exited", 0, (), ()
        )


def test_a_call_that_fails_is_one_among_others(built: Built, acting: Acting) -> None:
    with regions(built, 8, "spin") as some:
        wrong_node = Mempolicy(Mode.BIND, frozenset({1000}))
        requests: list[RegionCall] = [
            some.bind(0, BIND),
            Bind(PAGE, PAGE, BIND),  # nothing is mapped there
            some.bind(1, wrong_node),
            some.bind(2, Mempolicy(Mode.PREFERRED, NODE0), 2),
            Bind(some.start + 1, PAGE, BIND),
            some.bind(4, Mempolicy(Mode.LOCAL)),
            HomeNode(some.start, PAGE, 0),
            HomeNode(some.start + 6 * PAGE, PAGE, 0),
            HomeNode(some.start, PAGE, 1000),
            some.bind(5, INTERLEAVE),
        ]
        result = acting.bind(some.target, requests)
        assert result.outcome is Outcome.APPLIED
        failures = [errno.errorcode.get(code) for code in result.errnos]
        assert failures == [None, "EFAULT", "EINVAL", None, "EINVAL", None, None, "ENOENT", "EINVAL", None] or (
            # set_mempolicy_home_node(2) came with 5.17, and of a region without a policy it says something else there.
            failures[6] == "ENOSYS"
        )
        shown = [BIND, DEFAULT, *[Mempolicy(Mode.PREFERRED, NODE0)] * 2, Mempolicy(Mode.LOCAL), INTERLEAVE, DEFAULT]
        assert some.policies(7) == shown
        # Given back, from a region on.
        assert acting.bind(some.target, [some.bind(0, DEFAULT, 8)]).errnos == (0,)
        assert some.policies(8) == [DEFAULT] * 8


def test_more_nodemasks_than_go_into_one_stop(built: Built, acting: Acting) -> None:
    with regions(built, 40, "spin") as some:
        # Nodes that do not exist are left out by the kernel, where one that does is among them.
        policies = [Mempolicy(Mode.INTERLEAVE, NODE0 | {node}) for node in range(1, 41)]
        result = acting.bind(some.target, [some.bind(page, policy) for page, policy in enumerate(policies)])
        assert (result.outcome, set(result.errnos)) == (Outcome.APPLIED, {0})
        assert len(result.pauses_ns) >= 10
        assert some.policies(40) == [Mempolicy(Mode.INTERLEAVE, NODE0)] * 40


def test_what_forbids_an_act_forbids_this_one(built: Built, acting: Acting, monkeypatch: pytest.MonkeyPatch) -> None:
    with Target([built("family"), "vfork"]) as parent:
        parent.expect("ready")
        parent.line()
        result = acting.bind(parent, [Bind(PAGE, PAGE, BIND)])
        assert (result.outcome, result.reason, result.errnos) == (Outcome.DEFERRED, "shared-memory", ())
        assert parent.finish() == "alive\n"
    kthreadd = procfs.identify(ROOT, 2)
    assert acting.bind(kthreadd, [Bind(PAGE, PAGE, BIND)]).reason == "kernel-thread"
    assert acting.bind(kthreadd._replace(start=1), [Bind(PAGE, PAGE, BIND)]).outcome is Outcome.GONE
    assert acting.bind(kthreadd, []) == RegionsResult(Outcome.APPLIED, "", 0, (), ())
    monkeypatch.setattr(libc, "SUPPORTED", False)
    assert acting.bind(kthreadd, [Bind(PAGE, PAGE, BIND)]).reason == "architecture"


def test_threads_under_a_filter_that_kills(built: Built, acting: Acting) -> None:
    with Target([built("filters"), "kill"]) as target:
        target.expect("ready")
        target.wait_blocked()
        result = acting.bind(target, [Bind(PAGE, PAGE, BIND)] * 3)
        assert (result.outcome, result.errnos) == (Outcome.APPLIED, (errno.EFAULT,) * 3)
        assert target.finish() == "alive\n"


def test_another_thread_takes_over_where_one_is_traced(built: Built, acting: Acting) -> None:
    with regions(built, 4, "spin") as some:
        from hetmemd.kernel import ptrace

        ptrace.seize(some.target.pid, 0)
        try:
            only = acting.bind(some.target, alternating(some, 4), [some.target.pid])
            assert (only.outcome, only.reason) == (Outcome.DEFERRED, "traced")
            assert acting.bind(some.target, alternating(some, 4)).errnos == (0,) * 4
        finally:
            ptrace.interrupt(some.target.pid)
            ptrace.wait_any()
            ptrace.detach(some.target.pid)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP])
def test_a_tracer_that_dies_amid_the_calls(built: Built, acting: Acting, by: signal.Signals) -> None:
    with regions(built, 100, "spin") as some:
        for step in (16, 44, 81):
            tracer = dying_tracer.make(step, by, limit_seconds=0.3)
            with contextlib.closing(tracer):
                result = acting.with_tracer(tracer).bind(some.target, alternating(some, 100), [some.tid])
            reason = "tracer-died" if by is signal.SIGKILL else "timeout"
            assert (result.outcome, result.reason) == (Outcome.DEFERRED, reason)
        assert acting.bind(some.target, alternating(some, 100), [some.tid]).errnos == (0,) * 100
        assert os.waitpid(some.target.pid, os.WNOHANG) == (0, 0)

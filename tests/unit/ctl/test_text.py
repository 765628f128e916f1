"""What a person reads."""

from __future__ import annotations

import os

from hetmemd.ctl import text
from hetmemd.ctl.text import Paint
from hetmemd.report import answers
from tests.unit.report.sample import FILE, NOW, heir, owner, snapshot, task

PLAIN = Paint(False)


def test_status() -> None:
    assert text.status(answers.status(snapshot(observing=True)), PLAIN, NOW) == [
        "hetmemd 0.1.0, started 2 h ago, state of 1 s ago",
        "OBSERVING: nothing is applied or moved, only measured",
        "",
        "Cgroups",
        "  CGROUP                                       STATE    POLICY                       TASKS"
        "                  DISTANCE     NODE 0     NODE 1",
        "  /system.slice/redis\\x2dserver.service        active   weighted-interleave 0-1 3:1  1 applied, 1 deferred"
        "     0.003  384.0 MiB  128.0 MiB",
        "  /system.slice/redis\\x2dserver.service/child  blocked  bind 1                       none"
        "                          -          -          -",
        "",
        "Policy files",
        "  /etc/hetmemd.d/50-redis.toml      in-force",
        "  /etc/hetmemd.d/60-new.toml        last-good",
        "      /etc/hetmemd.d/60-new.toml:3: unknown key 'nods'",
        "  /usr/lib/hetmemd.d/50-redis.toml  masked",
        "",
        "Sources of events",
        "  inotify-cgroup  up    1234 events  0 losses",
        "  inotify-files   up    5 events     0 losses",
        "  proc-connector  down  10 events    2 losses  no CAP_NET_ADMIN: scans stand in",
        "  9 scans, the last took 4.0 ms",
        "",
        "Kernel's weights: 0=3 1=1",
        "",
        "Others that move pages too",
        "  demotion  on       moves pages to a slower node",
        "  damon     unknown  not to be read",
        "",
        "What this machine cannot do",
        "  - no weighted interleave before 6.9: interleave, and the ratio by moving",
    ]


def test_explain_a_cgroup() -> None:
    view = owner()
    told = answers.explain(view.effective, view)
    assert text.explain({**told, "notes": ["cut (I6)"]}, PLAIN, NOW) == [
        "/system.slice/redis\\x2dserver.service: active",
        "  policy      weighted-interleave on nodes 0-1, weights 0=3 1=1",
        f"  own         {FILE}:2",
        "  rules       M1 I3",
        "  handling    existing rebalance, rate 256MiB/s, tolerance 0.02, foreign respect, shared skip",
        "  lost        /usr/lib/hetmemd.d/10-all.toml:7: a weaker directory",
        "  note        cut (I6)",
        "",
        "                node 0  node 1  total",
        "  memory, MiB    384.0   128.0  512.0",
        "  is, %           75.0    25.0  100.0",
        "  should be, %    75.0    25.0  100.0",
        "  distance 0.003 (0: there, 1: all elsewhere)",
        "",
        "  PID  NAME          OUTCOME            THREADS  DISTANCE  KERNEL SAYS                     LAST ACTION",
        "  812  redis-server  applied            4        0.003     weighted interleave=static:0-1"
        "  applied to 4 threads, 12 s ago",
        "  813  redis-server  deferred (frozen)  4        0.003     weighted interleave=static:0-1"
        "  applied to 4 threads, 12 s ago",
    ]


def test_figures_have_their_age() -> None:
    view = owner()
    told = {**answers.explain(view.effective, view), "measured_at": NOW - 50}
    assert "  distance 0.003 (0: there, 1: all elsewhere), measured 50 s ago" in text.explain(told, PLAIN, NOW)


def test_a_trial_run_of_undo_tells_of_the_hold() -> None:
    assert text.undo({"dry_run": True, "planned": []}, PLAIN) == [
        "nothing is to be given back",
        "Without --dry-run a running service then gives nothing there any more, until hetmemctl release.",
    ]


def test_what_undo_gave_back_is_counted() -> None:
    told = {"dry_run": False, "threads": 1, "regions": 13, "left": [], "held": "812"}
    assert text.undo(told, PLAIN)[0] == "given back: 1 thread, 13 regions"


def test_explain_a_blocked_heir() -> None:
    view = heir()
    lines = text.explain(answers.explain(view.effective, view), PLAIN, NOW)
    assert "  policy      bind on node 1, not applied" in lines
    assert f"  inherited   from /system.slice, {FILE}:9" in lines
    assert any(line.startswith("  handling    existing once, rate 256MiB/s, rate_total 1MiB/s") for line in lines)


def test_explain_a_process() -> None:
    view = owner(tasks=(task(),))
    kernel = {"policies": {"default": 1, "weighted interleave=static:0-1": 3}, "mems_allowed": [0, 1], "note": ""}
    told = {**answers.explain(view.effective, view, 812), "pid": 812, "kernel": kernel}
    lines = text.explain(told, PLAIN, NOW)
    at = lines.index("Process 812 (redis-server)")
    assert lines[at + 1 :] == [
        "  outcome     applied",
        "  kernel says weighted interleave=static:0-1 in 3 threads",
        "  kernel says default in 1 thread",
        "  cpuset      allows nodes 0-1",
        "  last action applied to 4 threads, 12 s ago",
        "",
        "                node 0  node 1  total",
        "  memory, MiB    192.0    64.0  256.0",
        "  is, %           75.0    25.0  100.0",
        "  should be, %    75.0    25.0  100.0",
        "  distance 0.003 (0: there, 1: all elsewhere)",
    ]


def test_explain_a_process_that_was_not_looked_at() -> None:
    view = owner(tasks=())
    told = {**answers.explain(view.effective, view, 5), "pid": 5, "kernel": {"policies": {}, "note": "busy"}}
    lines = text.explain(told, PLAIN, NOW)
    assert "Process 5" in lines
    assert "  outcome     not looked at yet, or never touched (T5)" in lines


def test_findings() -> None:
    found = [
        {"file": "/a.toml", "line": 3, "severity": "error", "message": "unknown key 'nods'", "hint": "nodes?"},
        {"file": "/b.toml", "line": 1, "severity": "warning", "message": "says nothing", "hint": ""},
    ]
    assert text.check(found, PLAIN) == [
        "/a.toml:3: error: unknown key 'nods' (nodes?)",
        "/b.toml:1: warning: says nothing",
    ]


def test_names_cannot_write_to_the_terminal() -> None:
    hostile = os.fsdecode(b"/a\xff\x1b]0;title\x07\n/b")
    view = owner(hostile, tasks=(task(comm="\x1b[2J\n"),))
    for lines in (
        text.status(answers.status(snapshot(view)), PLAIN, NOW),
        text.explain(answers.explain(view.effective, view), PLAIN, NOW),
        text.explain({**answers.explain(view.effective, view, 812), "pid": 812, "kernel": {}}, PLAIN, NOW),
    ):
        assert all(line.isprintable() for line in lines)
        "\n".join(lines).encode()


def test_colours_only_where_wanted() -> None:
    told = answers.status(snapshot())
    assert not any("\033" in line for line in text.status(told, PLAIN, NOW))
    coloured = text.status(told, Paint(True), NOW)
    assert any("\033[32mactive" in line for line in coloured)
    assert any("\033[31mblocked" in line for line in coloured)

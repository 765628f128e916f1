"""A stop is told from a restart by the job of the service manager, as `systemctl list-jobs` shows it."""

from __future__ import annotations

import asyncio

import pytest

from hetmemd import manager
from hetmemd.kernel.root import Root

UNIT = "hetmemd.service"


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ("241 hetmemd.service stop running\n", ""),
        ("241 hetmemd.service restart running\n", "a restart"),
        ("241 hetmemd.service try-restart running\n", "a try-restart"),
        ("", "no job"),
        ("No jobs running.\n", "no job"),
        ("241 other.service stop running\n", "no job"),
        ("12 hetmemd.service stop running\n13 shutdown.target start waiting\n", "goes down"),
        ("12 hetmemd.service stop running\n13 shutdown.target stop waiting\n", ""),
    ],
)
def test_only_a_stop_is_a_stop(jobs: str, says: str) -> None:
    why = manager.why_not(jobs, UNIT)
    assert (why == "") == (says == "")
    assert says in why


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s\n", 20), ("1min 30s", 90), ("500ms", 0.5), ("infinity", 86400), ("1h", 3600)]
)
def test_time_spans(text: str, seconds: float) -> None:
    assert manager.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "3 fortnights"])
def test_what_is_no_time_span(text: str) -> None:
    with pytest.raises(ValueError, match="TimeoutStopUSec"):
        manager.seconds(text)


def test_without_a_manager_a_signal_is_a_stop() -> None:
    seconds, why = asyncio.run(manager.time_to_give_back(Root(), {}))
    assert (seconds, why) == (manager.WITHOUT_MANAGER, "")

"""The brakes at work on processes in a folder: what is asked before an act, told after it, and heard of its target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hetmemd.engine import braking
from hetmemd.engine.brakes import DOUBTS
from hetmemd.engine.braking import Brakes, policy_key
from hetmemd.engine.ledger import Ledger
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.remote.result import Outcome
from hetmemd.settings import BrakeSettings

POLICY = policy_key("bind=static:1 for /a of /b", "/etc/hetmemd.d/50-a of .toml")


class Machine:
    """Processes in a folder, and the brakes of a daemon that serves them."""

    def __init__(self, folder: Path) -> None:
        self.root = Root(folder)
        (folder / "proc/sys/kernel/random").mkdir(parents=True)
        (folder / "proc/sys/kernel/random/boot_id").write_text("one\n")
        (folder / "proc/self").mkdir()
        self.looked_at: list[int] = []
        self.hears = True
        self.rescans = 0
        self.settings = BrakeSettings(first_tasks=2, first_seconds=0.1)
        self.ledger = Ledger(self.root)
        self.start()

    def start(self) -> None:
        self.brakes = Brakes(
            self.root, self.ledger, self.settings, self._rescan, self.looked_at.append, lambda: self.hears
        )

    def restart(self) -> None:
        self.brakes.close()
        self.ledger.close()
        self.ledger = Ledger(self.root)
        self.start()

    def _rescan(self) -> None:
        self.rescans += 1

    def process(
        self, pid: int, program: str = "/bin/db", state: str = "S", dumps: int = 0, start: int = 1000
    ) -> ProcessId:
        """It lives, or is what it is now."""
        folder = self.root.path(f"/proc/{pid}")
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        fields = " ".join(["0"] * 18)
        for name in (folder / "stat", folder / "task" / str(pid) / "stat"):
            name.write_text(f"{pid} (db) {state} {fields} {start + pid} 0 0\n")
        (folder / "status").write_text(f"Name:\tdb\nUid:\t0\t0\t0\t0\nCoreDumping:\t{dumps}\n")
        file = self.root.path(program)
        file.parent.mkdir(exist_ok=True)
        file.touch()
        if not (folder / "exe").is_symlink():
            (folder / "exe").symlink_to(file)
        return ProcessId(pid, start + pid)

    def act(self, process: ProcessId, stops: int = 1, ended: bool = False, policy: str = POLICY) -> tuple[int, str]:
        permit = self.brakes.permit(process, "/a", policy, 1)
        if permit.granted:
            self.brakes.done(process, policy, permit.granted, stops, ended)
            return permit.granted, ""
        assert permit.outcome is not Outcome.APPLIED
        return 0, permit.reason

    def held(self) -> set[tuple[str, str]]:
        return {(hold.kind, hold.what) for hold in self.brakes.holds}


def served(test: Callable[[Machine], Awaitable[None]]) -> Callable[[Path], None]:
    """A test with a loop."""

    def run(tmp_path: Path) -> None:
        async def serve() -> None:
            machine = Machine(tmp_path)
            await test(machine)
            machine.brakes.close()
            machine.ledger.close()

        asyncio.run(serve())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@served
async def test_a_death_that_is_told_after_the_act_is_its_fault(machine: Machine) -> None:
    process = machine.process(7)
    assert machine.act(process, ended=True) == (1, "")
    machine.process(7, state="Z")
    machine.brakes.crashed(7, 11, False)
    assert machine.brakes.crashes == 1
    assert machine.held() == {
        ("executable", str(machine.root.path("/bin/db"))),
        ("policy", "/etc/hetmemd.d/50-a of .toml"),
    }
    assert machine.act(machine.process(8)) == (0, "crashed")


@served
async def test_who_was_not_stopped_dies_of_something_else(machine: Machine) -> None:
    assert machine.act(machine.process(7), stops=0) == (1, "")
    machine.brakes.crashed(7, 11, False)
    assert (machine.brakes.crashes, machine.held()) == (0, set())


@served
async def test_while_it_is_not_known_how_one_ended_in_an_act_its_executable_rests(machine: Machine) -> None:
    first, second, other = machine.process(7), machine.process(8), machine.process(9, "/bin/other")
    machine.act(first, ended=True)
    machine.process(7, state="Z")
    assert machine.act(second) == (0, "suspect")
    assert machine.act(other, policy="another") == (1, "")
    machine.brakes.ended(7)
    assert machine.act(second) == (1, "")


@served
async def test_that_rest_ends_by_itself_and_not_while_a_core_is_dumped(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=0)
    machine.restart()
    machine.act(machine.process(7))
    machine.process(7, dumps=1)
    machine.act(machine.process(7, dumps=1))
    second = machine.process(8)
    assert machine.act(second) == (0, "suspect")
    suspicion = next(iter(machine.brakes._suspicions.values()))
    for executable in machine.brakes._suspicions:
        long_ago = suspicion.at - 2 * braking.PATIENCE
        machine.brakes._suspicions[executable] = braking._Suspicion(suspicion.process, long_ago)
    assert machine.act(second) == (0, "suspect")
    machine.process(7, state="Z")
    assert machine.act(second) == (1, "")


@served
async def test_one_act_after_the_other_on_an_executable(machine: Machine) -> None:
    first, second, other = machine.process(7), machine.process(8), machine.process(9, "/bin/other")
    turn = machine.brakes.turn(first)
    async with turn:
        assert machine.brakes.turn(second).locked()
        assert not machine.brakes.turn(other).locked()


@served
async def test_a_place_among_the_first_goes_to_the_next_at_once(machine: Machine) -> None:
    processes = [machine.process(pid) for pid in range(1, 5)]
    for each in processes[:2]:
        assert machine.brakes.permit(each, "/a", POLICY, 1).granted
    assert machine.act(processes[2]) == (0, "trial")
    assert machine.act(processes[3]) == (0, "trial")
    for each in processes[:2]:
        machine.brakes.done(each, POLICY, 1, 0)
    assert machine.looked_at == [3, 4]
    assert machine.act(processes[2]) == (1, "")


@served
async def test_without_a_stop_granted_nothing_is_tried(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=2, first_seconds=0.1, stops_per_second=1)
    machine.restart()
    assert machine.act(machine.process(7), policy="") == (1, "")
    assert machine.act(machine.process(8)) == (0, "stop-rate")
    await asyncio.sleep(0.2)
    assert (machine.ledger.tried, machine.looked_at) == (set(), [])


@served
async def test_who_is_refused_is_given_back_to_where_somebody_insists(machine: Machine) -> None:
    process = machine.process(7)
    machine.act(process)
    machine.brakes.crashed(7, 11, False)
    assert machine.act(process, policy="") == (0, "crashed")
    with machine.brakes.insisting(lambda each, cgroup: (each, cgroup) == (process, "/a")):
        assert machine.brakes.refusal(process, "/a/b") == "crashed"
        assert machine.brakes.refusal(process, "/a") == ""
        assert machine.act(process, policy="") == (1, "")
    assert machine.act(process, policy="") == (0, "crashed")


@served
async def test_what_an_act_took_too_much_of_is_paid_before_the_next(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=0, stops_per_second=100)
    machine.restart()
    assert machine.act(machine.process(7), stops=150) == (1, "")
    assert machine.act(machine.process(8)) == (0, "stop-rate")


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


@served
async def test_a_trial_passes_when_its_processes_are_well(machine: Machine) -> None:
    for pid in (7, 8):
        assert machine.act(machine.process(pid)) == (1, "")
    machine.process(8, state="Z")
    machine.brakes.ended(8)
    for pid in (9, 10):
        assert machine.act(machine.process(pid)) == (0, "trial")
    await until(lambda: machine.ledger.tried == {POLICY})
    assert machine.looked_at == [9, 10]


@served
async def test_a_trial_does_not_pass_while_it_is_not_known_how_one_of_them_ended(machine: Machine) -> None:
    for pid in (7, 8):
        assert machine.act(machine.process(pid)) == (1, "")
    machine.process(8, state="Z")
    assert machine.act(machine.process(9)) == (0, "trial")
    await until(lambda: machine.looked_at == [9])
    assert machine.ledger.tried == set()
    assert machine.act(machine.process(9)) == (1, ""), "in the place of the one that is gone"
    await until(lambda: machine.ledger.tried == {POLICY})


@served
async def test_a_trial_is_told_of_ends_however_short_the_watch_over_an_act(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=3, first_seconds=0.1, crash_window=0.01)
    machine.restart()
    for pid in (7, 8, 9):
        assert machine.act(machine.process(pid)) == (1, "")
    await asyncio.sleep(0.02)
    machine.act(machine.process(20), policy="")  # which makes the watch forget the others
    machine.process(7, state="Z")
    machine.process(8, state="Z")
    machine.brakes.ended(7)
    machine.brakes.crashed(8, 11, False)
    assert machine.held() == set(), "too late to be the act's fault"
    assert machine.act(machine.process(10)) == (0, "trial")
    await until(lambda: machine.looked_at == [10])
    assert machine.ledger.tried == {POLICY}


@served
async def test_where_nobody_tells_of_ends_a_trial_awaits_no_word(machine: Machine) -> None:
    machine.hears = False
    machine.act(machine.process(7))
    machine.process(7, state="Z")
    await until(lambda: machine.ledger.tried or not machine.brakes._timer)
    assert machine.ledger.tried == {POLICY}


@served
async def test_where_deaths_are_nobodys_fault_a_trial_awaits_no_word(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=2, first_seconds=0.1, crash_window=0.0)
    machine.restart()
    machine.act(machine.process(7))
    machine.process(7, state="Z")
    await until(lambda: machine.ledger.tried or not machine.brakes._timer)
    assert machine.ledger.tried == {POLICY}


def test_a_trial_that_ends_without_a_word_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        machine = Machine(tmp_path)
        for pid in range(7, 50):
            if machine.ledger.tried:
                break
            machine.act(machine.process(pid))
            machine.process(pid, state="Z")
            await until(lambda: machine.ledger.tried or not machine.brakes._timer)
        machine.brakes.close()
        machine.ledger.close()

    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == DOUBTS + 1
    assert ["others try" in each for each in said] == [True] * DOUBTS + [False]
    assert "all are given" in said[-1]


@served
async def test_who_dies_with_the_pid_of_one_whose_end_was_lost_is_another(machine: Machine) -> None:
    for pid in (7, 8):
        assert machine.act(machine.process(pid)) == (1, "")
    for pid in (7, 8):
        machine.brakes.dumps(pid)
    machine.process(7, state="Z", start=9000)
    machine.process(8, start=9000)
    machine.brakes.crashed(7, 11, False)
    assert (machine.brakes.crashes, machine.held()) == (0, set())
    machine.brakes.crashed(8, 11, False)
    assert machine.brakes.crashes == 1, "the new one lives: the word is about the one before"


@served
async def test_what_was_dying_when_words_were_lost_is_soon_forgotten(machine: Machine) -> None:
    for pid in (7, 8):
        assert machine.act(machine.process(pid)) == (1, "")
    for pid in (7, 8):
        machine.brakes.dumps(pid)
    machine.process(7, state="Z")
    machine.process(8, dumps=1)
    machine.brakes.lost()
    later = time.monotonic() + 3600.0
    assert machine.brakes._watch.died(7, later) is None
    assert machine.brakes._watch.died(8, later) is not None, "its core is dumped still"


@served
async def test_the_executable_rests_from_the_beginning_of_a_dump(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=0)
    machine.restart()
    machine.act(machine.process(7))
    second = machine.process(8)
    assert machine.act(second) == (1, "")
    machine.process(7, dumps=1)
    machine.brakes.dumps(7)
    assert machine.act(second) == (0, "suspect")
    machine.process(7, state="Z")
    machine.brakes.ended(7)
    assert machine.act(second) == (1, "")


@served
async def test_the_executable_rests_after_a_restart_amid_a_dump(machine: Machine) -> None:
    machine.settings = BrakeSettings(first_tasks=0)
    machine.restart()
    machine.act(machine.process(7))
    machine.process(7, dumps=1)
    machine.restart()
    second = machine.process(8)
    assert machine.act(second) == (0, "suspect")
    machine.brakes.crashed(7, 11, True)
    assert machine.act(second) == (0, "crashed")


@served
async def test_a_death_after_a_restart_is_still_that_of_the_act(machine: Machine) -> None:
    machine.act(machine.process(7))
    machine.act(machine.process(8, "/bin/other"), policy="another of /etc/x.toml", stops=0)
    machine.restart()
    machine.brakes.crashed(8, 11, False)
    assert machine.held() == set()
    machine.brakes.crashed(7, 11, False)
    assert {kind for kind, _ in machine.held()} == {"executable", "policy"}


@served
async def test_a_trial_goes_on_over_a_restart(machine: Machine) -> None:
    for pid in (7, 8):
        assert machine.act(machine.process(pid)) == (1, "")
    machine.restart()
    assert machine.act(machine.process(9)) == (0, "trial")
    await until(lambda: machine.ledger.tried == {POLICY})


def test_who_ended_unheard_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        machine = Machine(tmp_path)
        for pid in (7, 8, 9):
            machine.act(machine.process(pid))
        machine.process(8, state="Z")
        machine.process(9, state="Z")
        machine.brakes.ended(9)
        machine.brakes.lost()
        assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [8]
        machine.restart()
        assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [8, 8]
        machine.brakes.close()
        machine.ledger.close()

    asyncio.run(run())

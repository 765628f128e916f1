"""A slice of the campaign in which tracers are killed, tests/campaigns/tracer_kills; and that it would notice harm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.campaigns import kills, sabotage
from tests.campaigns.rounds import survivable
from tests.campaigns.tally import RANDOM, State, Tally, by_call, digest, summary
from tests.campaigns.victims import KINDS, Victim
from tests.machine import reports

pytestmark = pytest.mark.root

# Of any act: of a thread that is blocked, or runs; one call or several.
ALWAYS = {"seize 1", "interrupt 1", "wait 1", "get 1", "write 1", "peek 1", "set 1", "set 2", "write 2", "detach 1"}
RUNNING = {"rseq 1", "read 1"}


def test_killing_the_tracer_harms_nobody(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert kills.main(["--rounds", "400", "--least", "6", "--seed", "2", "--state", str(state)]) == 0
    tally = Tally.from_json(json.loads(state.read_text())["tally"])
    total = by_call(tally.kills)
    assert total.keys() >= ALWAYS | RUNNING | {f"many {step}" for step in ALWAYS}
    assert min(total.values()) >= 6
    assert {where.partition(":")[0] for where in tally.where} == set(KINDS)
    assert tally.injections > 400
    reports.note("tracers killed", summary(tally)[-1])


def test_killing_the_tracer_at_random_harms_nobody(tmp_path: Path) -> None:
    state = tmp_path / "state"
    asked = ["--rounds", "1000", "--at-random", "1", "--seed", "5"]
    assert kills.main([*asked, "--state", str(state)]) == 0
    tally = Tally.from_json(json.loads(state.read_text())["tally"])
    assert tally.kills.keys() == {RANDOM}
    assert tally.kills[RANDOM] >= 1000
    # Not between two acts only, where there is nothing to harm.
    assert tally.amid >= 250
    assert tally.injections > 1000
    line = f"at random {tally.kills[RANDOM]}, {tally.amid} of them amid an act, {tally.injections} whole injections"
    reports.note("tracers killed", line)


def test_where_no_tracer_of_a_program_that_its_filter_kills_dies() -> None:
    sent = ["after set 1", "before resume 1", "after resume 1", "before wait 2"]
    called = ["after wait 2", "before resume 2", "after resume 2", "before wait 3"]
    before, after = ["before seize 1", "after wait 1", "before set 1"], ["before write 2", "after detach 1"]
    # After one call this restores the thread; where there is time for two it sends it for the second.
    restored = ["after get 3", "before set 2", "after set 2"]
    assert survivable([*before, *sent, *called, *restored, *after]) == [*before, *after]
    assert survivable(before) == before


def test_a_campaign_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state"
    state = State(seed=3, code=digest(kills.CHECKOUT / "hetmemd"), batches=7)
    state.tally.kills["before set 1"] = 900
    state.save(path)
    asked = ["--rounds", "950", "--seed", "3", "--targets", "wait", "--lanes", "1", "--state", str(path)]
    assert kills.main(asked) == 0
    assert "going on after batch 6" in capsys.readouterr().out
    after = State.load(path, 3, state.code)
    assert after.batches > 8
    assert 950 <= after.tally.kills.total() < 1000
    assert after.tally.kills["before set 1"] >= 900
    after.tally.harm.append("x")
    after.save(path)
    assert kills.main(asked) == 1
    assert kills.main([*asked, "--seed", "4"]) == 2


@pytest.mark.parametrize("kind", list(sabotage.HARMS))
def test_harm_of_each_kind_is_noticed(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    harm = sabotage.HARMS[kind]
    folder = tmp_path_factory.getbasetemp() / "victims"
    folder.mkdir(exist_ok=True)
    with Victim(folder, harm.victim) as victim:
        victim.watched.work(True)
        victim.watched.remember()
        assert victim.watched.harm() == ""
        assert victim.watched.newly_interrupted() == 0
        # Of several wounds one at least is felt: a register may be of no use where the thread was stopped.
        for seed in range(30):
            assert sabotage.do(harm, victim.watched, seed, seconds=10)
            if victim.watched.harm(10) or victim.watched.newly_interrupted():
                return
        pytest.fail("nobody noticed")


def test_a_stub_that_does_not_restore_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole campaign, on an act that only looks right while its tracer lives."""
    state = tmp_path / "state"
    monkeypatch.setattr(kills, "ROUNDS", "import sys; sys.path.insert(0, sys.argv[1])" + _BREAK)
    asked = ["--rounds", "60", "--targets", "wait", "--steps", "after resume 1", "--lanes", "1", "--harm", "1"]
    assert kills.main([*asked, "--state", str(state)]) == 1
    harm: Sequence[str] = json.loads(state.read_text())["tally"]["harm"]
    assert any("killed after resume 1" in line or "killed many after resume 1" in line for line in harm), harm


_BREAK = """
from hetmemd.remote import x86_64
from tests.campaigns import rounds
whole = x86_64.X86_64.write_stub
def broken(address, registers, result, pc):
    registers = list(registers)
    registers[x86_64.RDX] ^= 8
    return whole(address, registers, result, pc)
object.__setattr__(x86_64.X86_64, "write_stub", broken)
object.__setattr__(x86_64.X86_64, "kept", tuple(kept for kept in x86_64.X86_64.kept if kept[1] != x86_64.RDX))
rounds.main()
"""

"""Who is named where pages do not stay (L6)."""

from __future__ import annotations

from hetmemd.engine.others import remarks
from hetmemd.engine.record import Record
from hetmemd.kernel.procfs import ProcessId
from hetmemd.machine.movers import Mover

OFF = (Mover("numa-balancing", False), Mover("demotion", False))
ON = (Mover("numa-balancing", False), Mover("demotion", True, "demotes"))
UNKNOWN = (Mover("numa-balancing", None), Mover("demotion", False))


def process(went_back: int = 0, has_settled: bool = True) -> Record:
    return Record(ProcessId(1, 1), "x", "/a", None, went_back=went_back, has_settled=has_settled)


def test_L6_pages_that_were_moved_back_name_who_may_have_done_it() -> None:
    (said,) = remarks([process(), process(1), process(4)], False, ON)
    assert said.startswith("pages of 2 processes were moved back after up to 4 passes in a row")
    assert "demotion" in said and "numa-balancing" not in said and "(L6)" in said


def test_L6_where_no_switch_is_on_somebody_else_did() -> None:
    (said,) = remarks([process(1)], True, OFF)
    assert said.startswith("pages of one process were moved back after one pass")
    assert "no mover of the kernel is on" in said and "the program itself" in said
    (said,) = remarks([process(1)], True, UNKNOWN)
    assert "whether numa-balancing is on is not known" in said and "no mover" not in said


def test_L6_what_lies_wrong_after_a_pass_is_perhaps_moved_by_others() -> None:
    (said,) = remarks([process()], True, ON)
    assert "demotion" in said and "may" in said
    assert remarks([process()], False, ON) == (), "it is as it should be"
    assert remarks([process(has_settled=False)], True, ON) == (), "no pass went through it yet"
    assert remarks([process()], True, OFF) == (), "nobody is there to be named"
    assert remarks([], True, ON) == ()

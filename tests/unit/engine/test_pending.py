"""Hints put together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetmemd.engine.pending import Pending
from hetmemd.watch.hint import CgroupGone, CgroupHint, CpusetHint, FilesHint, LostHint, RegionsHint, TaskHint

pids = st.integers(1, 5)
tasks = st.builds(TaskHint, pids, pids, st.sampled_from(["fork", "exec", "exit"]), pids)
paths = st.sampled_from(["/a", "/b"])
hints = st.lists(
    st.one_of(
        tasks,
        st.builds(CgroupHint, paths),
        st.builds(CgroupGone, paths),
        st.builds(CpusetHint, paths),
        st.builds(RegionsHint, pids, st.floats(0, 10)),
        st.just(FilesHint()),
        st.just(LostHint("x")),
    ),
    max_size=30,
)


@given(hints, st.integers(0, 30))
def test_it_does_not_matter_in_which_batches_hints_come(all_of_them: list[object], cut: int) -> None:
    at_once, in_two = Pending(), Pending()
    at_once.add(all_of_them, 1.0)  # type: ignore[arg-type]
    in_two.add(all_of_them[:cut], 1.0)  # type: ignore[arg-type]
    in_two.add(all_of_them[cut:], 1.0)  # type: ignore[arg-type]
    assert at_once == in_two


@given(hints)
def test_the_last_word_on_a_process_is_followed(all_of_them: list[object]) -> None:
    pending = Pending()
    pending.add(all_of_them, 1.0)  # type: ignore[arg-type]
    last = {hint.pid: hint for hint in all_of_them if isinstance(hint, TaskHint)}
    for pid, hint in last.items():
        if hint.why == "exit":
            assert pid in pending.ended
            assert pid not in pending.forked
            assert pid not in pending.executed
        elif hint.why == "fork":
            assert pending.forked[pid] == hint.parent
        else:
            assert pid in pending.executed


def test_a_delay_is_measured_from_the_first_hint() -> None:
    pending = Pending()
    pending.add([CgroupHint("/a")], 1.0)
    pending.add([CgroupHint("/a"), CgroupHint("/b")], 2.0)
    assert pending.cgroups == {"/a": 1.0, "/b": 2.0}
    pending.add([RegionsHint(1, 0.5), RegionsHint(1, 0.25), RegionsHint(2, 0.75)], 3.0)
    assert pending.mapped == {1: 0.25, 2: 0.75}


def test_where_nothing_else_happened() -> None:
    pending = Pending()
    assert not pending.is_all_mapped
    pending.add([RegionsHint(1, 0.5)], 1.0)
    assert pending.is_all_mapped
    pending.add([FilesHint()], 1.0)
    assert not pending.is_all_mapped

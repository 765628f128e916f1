"""Classes of mappings, and threads' stacks within them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmemd.kernel import maps
from hetmemd.memory import classes
from hetmemd.memory.classes import PAGE, Traces

MIB = 1 << 20


def mapping(name: str, permissions: str = "rw-p", device: str = "fe:00", inode: int = 5) -> maps.Mapping:
    anonymous = not name.startswith("/")
    return maps.Mapping(0, 4096, permissions, "00:00" if anonymous else device, 0 if anonymous else inode, name)


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (mapping(""), "anon"),
        (mapping("[anon:glibc: malloc arena]"), "anon"),
        (mapping("[heap]"), "heap"),
        (mapping("[stack]"), "stack"),
        (mapping("/usr/bin/redis-server", "r-xp"), "exec"),
        (mapping("/usr/bin/redis-server", "r--p"), "file"),
        (mapping("/srv/was here (deleted)"), "file"),
        (mapping("", "rwxp"), "exec"),
        (mapping("/memfd:jit (deleted)", "r-xs", "00:01"), "shm"),
        (mapping("/SYSV00000000 (deleted)", "rw-s", "00:01"), "shm"),
        (mapping("/dev/zero (deleted)", "rw-s", "00:01"), "shm"),
        (mapping("/dev/shm/x", "rw-s", "00:1a"), "shm"),
        (mapping("[anon_shmem:name]", "rw-s"), "shm"),
        (mapping("/memfd:ring (deleted)", "rw-s", "00:01"), "shm"),
        (mapping("[anon: glibc: pthread stack: 4711]"), "stack"),
        (mapping("", "---p"), "guard"),
        (mapping("[anon:reserve]", "---p"), "guard"),
        (mapping("/usr/lib/libc.so.6", "---p"), "file"),
        (mapping("/dev/zero", "rw-p", "00:06"), "anon"),
        (mapping("[vdso]", "r-xp"), "special"),
        (mapping("[vvar]", "r--p"), "special"),
        (mapping("[vvar_vclock]", "r--p"), "special"),
        (mapping("[uprobes]", "--xp"), "special"),
        (mapping("/dev/dri/renderD128", "rw-s", "00:06"), "special"),
        (mapping("/sys/devices/pci0000:00/0000:00:02.0/resource0", "rw-s", "00:16"), "special"),
        (mapping("anon_inode:[perf_event]", "rw-s"), "special"),
        (mapping("/dmabuf:", "rw-s", "00:0c"), "special"),
    ],
)
def test_classes(of: maps.Mapping, kind: str) -> None:
    assert classes.classify(of) == kind
    assert kind in classes.KINDS


def test_what_the_line_alone_does_not_say() -> None:
    assert classes.classify(mapping("/anon_hugepage (deleted)"), is_huge=True) == "hugetlb"
    assert classes.classify(mapping("/tmp/x", "rw-s", "00:2f"), is_tmpfs=True) == "shm"
    # A container's /dev is a tmpfs.
    assert classes.classify(mapping("/dev/nvidia0", "rw-s", "00:2f"), is_tmpfs=True) == "special"
    assert classes.classify(mapping("", "---p"), pages=3) == "anon", "protected for a while: no guard"


def at(start: int, end: int, permissions: str = "rw-p", name: str = "") -> maps.Mapping:
    return maps.Mapping(start, end, permissions, "00:00", 0, name)


GUARD = at(9 * MIB - PAGE, 9 * MIB, "---p")
STACK = at(9 * MIB, 17 * MIB - PAGE)
BLOCK = 17 * MIB - PAGE - 1632
"""Where glibc 2.36 has the list of locks in a stack that ends there."""


def test_a_stack_is_told_by_its_control_block() -> None:
    assert classes.stacks([GUARD, STACK], [Traces(block=BLOCK)]) == [(9 * MIB, 17 * MIB - PAGE)]
    assert classes.stacks([GUARD, STACK], []) == []


def test_a_stack_that_was_merged_with_what_lies_above() -> None:
    merged = at(9 * MIB, 90 * MIB)
    found = classes.stacks([GUARD, merged], [Traces(block=BLOCK)])
    assert found == [(9 * MIB, 17 * MIB - PAGE)]
    assert classes.segments(merged, "anon", found) == [
        (9 * MIB, 17 * MIB - PAGE, "stack"),
        (17 * MIB - PAGE, 90 * MIB, "anon"),
    ]


def test_a_stack_without_a_guard_is_as_long_as_usual() -> None:
    merged = at(1 * MIB, 90 * MIB)
    assert classes.stacks([merged], [Traces(block=BLOCK)]) == [(9 * MIB - PAGE, 17 * MIB - PAGE)]


def test_a_stack_is_told_by_its_pointer_where_a_guard_stands() -> None:
    assert classes.stacks([GUARD, STACK], [Traces(pointer=16 * MIB)]) == [(9 * MIB, 17 * MIB - PAGE)]
    assert classes.stacks([STACK], [Traces(pointer=16 * MIB)]) == [], "a coroutine's, in a heap"
    merged = at(9 * MIB, 90 * MIB)
    assert classes.stacks([GUARD, merged], [Traces(pointer=16 * MIB)]) == [(9 * MIB, 17 * MIB)]


def test_no_stack_in_a_file_or_in_what_cannot_be_written() -> None:
    for other in (at(9 * MIB, 17 * MIB, "r--p"), at(9 * MIB, 17 * MIB, name="[heap]"), at(9 * MIB, 17 * MIB, "rw-s")):
        assert classes.stacks([GUARD, other], [Traces(block=BLOCK), Traces(pointer=16 * MIB)]) == []


def test_a_stack_stays_one_when_its_thread_ended() -> None:
    found = classes.stacks([GUARD, STACK], [Traces(block=BLOCK)])
    assert classes.stacks([GUARD, STACK], [], found) == found
    # Unmapped, and its place taken by something else.
    assert classes.stacks([STACK], [], found) == []
    assert classes.stacks([at(1 * MIB, 90 * MIB)], [], found) == []
    assert classes.stacks([GUARD], [], found) == []


@st.composite
def layouts(draw: st.DrawFn) -> list[maps.Mapping]:
    at_page, found = 1, []
    for _ in range(draw(st.integers(0, 8))):
        at_page += draw(st.integers(0, 3))
        pages = draw(st.integers(1, 5000))
        found.append(
            at(
                at_page * PAGE,
                (at_page + pages) * PAGE,
                draw(st.sampled_from(["rw-p", "---p", "r-xp", "rw-s"])),
                draw(st.sampled_from(["", "", "[anon:x]", "[heap]", "/lib/x"])),
            )
        )
        at_page += pages
    return found


ADDRESSES = st.integers(0, 48000 * PAGE)
TRACES = st.one_of(st.builds(Traces, block=ADDRESSES), st.builds(Traces, pointer=ADDRESSES))
SPANS = st.builds(lambda first, pages: (first * PAGE, (first + pages) * PAGE), st.integers(0, 48000), st.integers(1, 9))


@given(layouts(), st.lists(TRACES, max_size=6), st.lists(SPANS, max_size=3))
def test_stacks_lie_within_writable_anonymous_memory(
    mappings: list[maps.Mapping], threads: list[Traces], known: list[classes.Span]
) -> None:
    found = classes.stacks(mappings, threads, known)
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    for start, end in found:
        assert start % PAGE == end % PAGE == 0
        assert start < end
        (home,) = [each for each in mappings if each.start <= start < each.end]
        assert end <= home.end
        assert home.permissions == "rw-p"
        assert home.name in ("", "[anon:x]")
    # What was found once is found again for as long as it stands behind its guard.
    again = classes.stacks(mappings, [], found)
    assert set(again) <= set(found)


@given(layouts(), st.lists(TRACES, max_size=6))
def test_segments_are_the_whole_mapping(mappings: list[maps.Mapping], threads: list[Traces]) -> None:
    found = classes.stacks(mappings, threads)
    for each in mappings:
        kind = classes.classify(each)
        cut = classes.segments(each, kind, found)
        assert cut[0].start == each.start
        assert cut[-1].end == each.end
        assert all(before.end == after.start for before, after in pairwise(cut))
        assert {part.kind for part in cut} <= {kind, "stack"}
        inside = [span for span in found if each.start <= span[0] < each.end]
        assert [(part.start, part.end) for part in cut if part.kind == "stack" and kind == "anon"] == inside

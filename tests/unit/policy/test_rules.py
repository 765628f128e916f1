"""Each numbered rule has a test that is named after it, and no test is named after a rule that there is not.

Those that need nothing but values are here, in test_rules_*.py and test_properties.py; T and L are about tasks and the
life of the daemon, and are tested where these are: in tests/unit/engine, tests/machine and tests/guest.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "packaging/man/hetmemd.policy.5"
RULES = re.findall(r"^\.It ([FMITL][0-9])$", PAGE.read_text("ascii"), re.MULTILINE)


def named(pattern: str) -> dict[str, list[str]]:
    """By rule: the tests in files of this pattern that have its number in their names."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for rule in re.findall(r"(?<=_)[FMITL][0-9](?=_|$)", node.name):
                    found.setdefault(rule, []).append(f"{path.name}::{node.name}")
    return found


def test_the_page_has_the_rules() -> None:
    assert len(RULES) == len(set(RULES)) == 26


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_has_its_tests(rule: str) -> None:
    pure = rule[0] in "FMI"
    assert named("unit/policy/test_rules_*.py" if pure else "**/test_*.py").get(rule), f"no test is named after {rule}"


def test_no_test_is_named_after_a_rule_that_there_is_not() -> None:
    assert set(named("**/test_*.py")) <= set(RULES)


SENTENCES = (
    # The language.
    (
        "a table without a mode is handling only and keeps the placement",
        "test_I4_a_table_without_mode_keeps_the_inherited_placement",
    ),
    ("placement keys without a mode are a fault", "test_faults_of_a_table"),
    (
        "a table that is switched off is as if it were not there",
        "test_a_table_that_is_switched_off_is_shown_and_does_nothing",
    ),
    ("and is checked all the same", "test_a_table_that_is_switched_off_is_checked_as_well"),
    ("/ is the root and means everything", "test_I1_a_policy_for_the_root_is_for_everything"),
    ("a backslash in a pattern is literal", "test_patterns"),
    ("* ? and sets stay within a level", "test_M3_every_pattern_against_one_that_tries_all_ways"),
    ("every mode is issued with its nodes", "test_I6_every_mode_with_nodes_is_static_unless_relative_is_asked_for"),
    ("default and local take no flag", "test_I6_no_flag_with_modes_without_nodes"),
    ("balancing goes with bind and preferred-many", "test_balancing_goes_beside_static_and_relative"),
    (
        "balancing that the kernel does not take is left out and said",
        "test_L5_a_kernel_that_does_not_take_balancing_is_told_of",
    ),
    ("home_node goes with bind and preferred-many", "test_a_home_node_goes_with_the_placement"),
    ("home_node is any node online", "test_a_home_node_may_be_one_without_memory_or_outside_of_the_nodes"),
    ("preferred comes to exactly one node", "test_preferred_must_come_to_one_node"),
    (
        "+ unites, ! takes out, whatever the order",
        "test_united_by_plus_and_taken_out_by_exclamation_marks_whatever_the_order",
    ),
    ("tier:N is the kernel's memory tier", "test_selector_tier"),
    ("nearest is by the sockets of the cgroup's CPUs", "test_nearest_is_by_socket_with_its_memory_only_nodes"),
    ("selectors are evaluated for who receives the policy", "test_selector_nearest_is_evaluated_for_who_receives_it"),
    ("again when CPUs change", "test_I6_selectors_are_evaluated_again_for_who_inherits"),
    ("an explicit node's weight beats a selector's", "test_weights"),
    ("a node without a weight is an error", "test_a_node_without_one_weight_blocks"),
    (
        "bandwidth is the kernel's reduction over all nodes",
        "test_bandwidth_is_the_kernels_reduction_for_any_figures_and_any_nodes",
    ),
    ("the policy's nodes are taken out of it", "test_a_subset_keeps_the_weights_of_the_whole_machine"),
    ("without figures the state is blocked", "test_weights_without_figures_block_and_name_the_way_round"),
    ("capacity is by size", "test_capacity_is_by_memory"),
    ("kernel is the table as it stands", "test_kernel_is_the_table_as_it_stands"),
    # Files.
    ("four directories, strongest first", "test_F1_four_directories"),
    ("a file masks its namesake", "test_F1_a_file_masks_its_namesakes_in_weaker_directories"),
    ("a link to /dev/null masks it away", "test_F1_a_link_to_dev_null_masks_away"),
    ("order is by file name alone", "test_F1_order_is_by_name_alone"),
    ("leftovers are ignored", "test_F1_leftovers_are_ignored"),
    ("the directory may be a link that is swapped", "test_F1_the_directory_may_be_a_link_that_is_swapped"),
    ("a file is taken whole or not at all", "test_F2_a_file_is_taken_whole_or_not_at_all"),
    ("every fault is told, by file and line", "test_all_faults_of_a_file_are_told_at_once_in_their_order"),
    ("the last good version holds across restarts", "test_F2_the_last_good_version_holds_across_restarts"),
    ("where it is lost, nothing is undone", "test_F2_a_broken_file_whose_last_good_version_is_lost_undoes_nothing"),
    ("a file that was never good masks nothing", "test_F2_a_file_that_was_never_good_masks_nothing"),
    ("a node that does not exist is no fault", "test_F2_a_node_that_does_not_exist_is_no_fault"),
    ("and is warned of", "test_a_node_that_does_not_exist"),
    ("never half-written", "test_F3_a_file_in_the_middle_of_a_write_is_not_taken_yet"),
    # Match.
    (
        "the strongest directory, before specificity",
        "test_M1_the_strongest_directory_wins_over_the_most_specific_pattern",
    ),
    ("the order is total", "test_M1_M3_the_choice_is_a_total_order"),
    ("losers are kept", "test_M1_a_tie_goes_to_the_later_file_then_the_later_table"),
    ("a pattern waits for what does not exist", "test_M2_a_pattern_waits_for_cgroups_that_do_not_exist_yet"),
    ("** is for the topmost match", "test_M3_double_star_owns_only_the_topmost_match"),
    # Inheritance.
    ("the parent's policy holds", "test_I1_without_an_own_policy_the_parents_holds"),
    ("the root's is the kernel's default", "test_I1_the_roots_own_default_is_the_kernels"),
    (
        "inherit = self keeps placement and handling",
        "test_I2_inherit_self_keeps_placement_and_handling_from_the_children",
    ),
    ("never walls or buckets", "test_I2_walls_and_buckets_go_past"),
    ("placement is one atom", "test_I1_I2_I3_placement_is_that_of_the_nearest_who_hands_it_on"),
    ("handling is inherited key by key", "test_I4_handling_comes_key_by_key_from_the_nearest_that_says_it"),
    ("rates excepted", "test_I4_rates_are_not_inherited_as_keys"),
    ("a descendant's nodes are cut, its mode holds", "test_I5_a_childs_nodes_are_cut_and_its_mode_wins"),
    ("walls nest by intersection", "test_I5_walls_nest_by_intersection"),
    (
        "cut to nothing, the wall's placement holds, as a conflict",
        "test_I5_cut_to_nothing_gives_way_to_who_set_the_wall",
    ),
    ("so do placements without nodes", "test_I5_local_has_no_nodes_and_gives_way"),
    ("a wall cut to nothing is no wall", "test_I5_a_wall_that_an_outer_wall_cuts_to_nothing_is_no_wall"),
    ("relative nodes are folded, cut, and issued as static", "test_I5_relative_is_folded_then_cut_then_static"),
    ("what spills is said", "test_I5_modes_that_can_spill_over_a_wall_are_named"),
    ("what is issued is not cut by the cpuset", "test_I6_the_request_is_not_cut_by_the_cpuset"),
    ("what is expected is", "test_I6_a_policy_that_a_cpuset_cuts_is_right_as_it_shows"),
    ("cut to nothing it is blocked", "test_I6_a_disjoint_cpuset_blocks"),
    ("and the default is given back", "test_I6_cut_to_nothing_gives_the_default_back_to_what_carries_ours"),
    ("threads tell, not cgroup files", "test_I6_offline_tasks_tell_where_no_cpuset_of_cgroup2_does"),
    ("a hotplug is a reason to resolve again", "test_I6_a_node_that_comes_is_resolved_at_the_next_scan"),
    ("and what goes offline is reported", "test_I6_a_node_that_goes_offline_is_cut_at_the_next_scan_and_reported"),
    ("a cpuset too", "test_I6_a_cpuset_whose_event_was_lost_is_read_at_the_next_scan"),
    ("a move is paid for in all that stand above", "test_I7_a_move_is_paid_for_in_every_bucket_above"),
    ("rate is for each cgroup, rate_total for the table", "test_I7_each_owner_has_a_bucket_and_the_table_one_for_all"),
    ("an own default shields", "test_I8_an_own_default_shields_a_subtree"),
    ("walls excepted", "test_I8_walls_excepted"),
    # Life.
    (
        "weights other than the table's are met by moving, and that is said",
        "test_L5_what_the_kernel_does_by_itself_is_said",
    ),
    (
        "a policy takes a task out of NUMA balancing, and explain says so",
        "test_L6_what_a_policy_means_for_numa_balancing_is_said",
    ),
    (
        "who else moves pages is shown, and named where pages go back",
        "test_L6_who_else_moves_pages_is_read_again_with_the_machine_and_told",
    ),
    ("bind is refused without headroom", "test_L7_bind_needs_headroom_above_the_reserve"),
)
"""What the rules and the language say, sentence by sentence, each with the test that fails where it is not so."""


def test_every_sentence_has_its_test() -> None:
    there = {
        node.name
        for path in TESTS.glob("**/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert [(sentence, test) for sentence, test in SENTENCES if test not in there] == []

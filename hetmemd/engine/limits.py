"""What this machine cannot do, each with the way round it that is taken, in words for a person (L5). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from hetmemd.kernel import libc, nodelist
from hetmemd.kernel.mempolicy import Flag, Mode
from hetmemd.machine import weights
from hetmemd.machine.topology import Machine
from hetmemd.policy.effective import Placement

MOVING_ONLY: Mapping[str, str] = {
    "architecture": "this architecture has no stub for calls in other tasks",
    "permission": "the right to trace tasks is missing (CAP_SYS_PTRACE, or a security module refuses)",
    "proc-mem": "the kernel keeps code from being written into other tasks (proc_mem.force_override)",
    "yama": "Yama lets nobody trace (kernel.yama.ptrace_scope = 3)",
}
"""Reasons of the machine for which a task cannot be called though its pages can be moved."""


def limitations(machine: Machine, placements: Sequence[Placement], reasons: Collection[str]) -> list[str]:
    """For what the placements in force ask. `reasons` are those for which acts were refused since they are known."""
    return [*_machine(machine), *_calls(reasons), *_modes(machine, placements)]


def _machine(machine: Machine) -> Iterator[str]:
    if len(machine.memory_nodes) == 1:
        yield "this machine has one memory node: policies are applied and shown, and there is nowhere to move to"
    if not machine.features.scans_pagemap:
        yield (
            "this kernel has no PAGEMAP_SCAN (6.7 has): which pages are there is read from pagemap entry by entry, "
            "which costs more"
        )


def _calls(reasons: Collection[str]) -> Iterator[str]:
    if not libc.MOVES:
        yield (
            "this architecture is neither x86-64 nor aarch64, or its pages are not of 4 KiB: no policy is set, and no "
            "page is moved"
        )
        return
    for reason, what in MOVING_ONLY.items():
        if reason in reasons or (reason == "architecture" and not libc.SUPPORTED):
            yield f"{what}: policies are not set, and pages are moved to where they belong"


def _modes(machine: Machine, placements: Sequence[Placement]) -> Iterator[str]:
    weighted = [each for each in placements if each.mempolicy.mode is Mode.WEIGHTED_INTERLEAVE]
    if weighted and machine.kernel_weights is None:
        yield (
            "this kernel has no weighted interleave (6.9 has): new pages are interleaved evenly, "
            "and the ratio is made by moving"
        )
    elif any(not weights.agrees_with_kernel(machine, each.weights) for each in weighted):
        table = _table(machine.kernel_weights or {})
        yield (
            f"the kernel's table of weights ({table}) differs from what policies ask for: new pages come in its ratio, "
            "and are moved to the policy's"
        )
    unbalanced = {
        each.mempolicy.mode.word
        for each in placements
        if Flag.NUMA_BALANCING in each.mempolicy.flags and each.mempolicy.mode not in machine.features.balancing
    }
    for mode in sorted(unbalanced):
        yield (
            f"this kernel does not take the flag balancing with {mode}: the policy is set without it, "
            "and NUMA balancing leaves its tasks alone"
        )


def _table(of_nodes: Mapping[int, int]) -> str:
    by_weight: dict[int, list[int]] = {}
    for node, weight in sorted(of_nodes.items()):
        by_weight.setdefault(weight, []).append(node)
    return ", ".join(f"node {nodelist.format_list(nodes)}: {weight}" for weight, nodes in by_weight.items())

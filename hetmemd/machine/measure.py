"""How fast each node's memory is for the CPUs of each socket: read, written and copied by threads that stay there.

Figures of the machine as it is now, with whatever else runs on it. They hold for large sequential accesses, which is
what weights for interleaving are about; latency is another matter. What fits into the caches says nothing of memory:
all nodes would be as fast. So arrays are several times as large as the caches, and figures of smaller ones are not
believed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hetmemd.kernel import own_memory, pages
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.machine import weights
from hetmemd.machine.topology import Machine

LEAST = 1 << 20
"""Bytes of one thread's share: with less, a thread is not worth its start."""
ENOUGH = 4
"""Times the caches: as large each array should be. Of an array that is read from its beginning again and again a cache
that keeps the last used has nothing, and any other a quarter at most."""
DOUBTFUL = 2
"""Times the caches: with less, figures may be the caches'."""
_ALIGNED = 2 << 20
_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class Figure:
    """One node, from one socket; rates in bytes per second."""

    node: int
    socket: int
    cpus: frozenset[int]
    """One thread ran on each."""
    size: int
    """Bytes that all threads together went over."""
    read: float | None = None
    write: float | None = None
    copy: float | None = None
    """What is read and what is written both count, as with STREAM."""
    note: str = ""
    """Why there are no rates, or why they are not believed."""
    caches: int = 0
    """Bytes that the caches of these CPUs hold."""

    @property
    def is_believed(self) -> bool:
        """Memory was measured and not caches: each array was large enough."""
        return self.size // 2 >= DOUBTFUL * self.caches


def wanted(caches: int, least: int) -> int:
    """Bytes with which to measure: two arrays, each several times as large as the caches."""
    return max(least, 2 * ENOUGH * caches)


def sockets(machine: Machine, usable: frozenset[int]) -> dict[int, frozenset[int]]:
    """The usable CPUs of each socket; nodes stand for sockets where the machine does not tell of them."""
    found: dict[int, set[int]] = {}
    for node in machine.nodes.values():
        for cpu in node.cpus & usable:
            found.setdefault(machine.packages.get(cpu, node.id), set()).add(cpu)
    return {socket: frozenset(cpus) for socket, cpus in sorted(found.items())}


def measure(node: int, socket: int, cpus: Iterable[int], size: int, seconds: float, caches: int = 0) -> Figure:
    """Each way for `seconds`, with `size` bytes in all, half of it read and half of it written by a copy.

    `caches`: bytes that the caches of these CPUs hold, 0 where that is not known.
    """
    chosen = sorted(cpus)[: max(1, size // (2 * LEAST))]
    share = max(LEAST, size // (2 * len(chosen)) // _ALIGNED * _ALIGNED)
    threads = [_Thread(node, cpu, share, seconds) for cpu in chosen]
    gate = threading.Barrier(len(threads))
    for thread in threads:
        thread.gate = gate
        thread.start()
    for thread in threads:
        thread.join()
    known = Figure(node, socket, frozenset(chosen), 2 * share * len(chosen), caches=caches)
    if not known.is_believed:
        known = replace(known, note=f"may be the caches' figures: they hold {caches >> 20} MiB")
    if failed := next((thread.failed for thread in threads if thread.failed), ""):
        return replace(known, note=failed)
    read, write, copy = (sum(thread.rates[way] for thread in threads) for way in ("read", "write", "copy"))
    return replace(known, read=read, write=write, copy=copy)


def proposed(machine: Machine, figures: Iterable[Figure]) -> dict[int, int] | None:
    """Weights by the kernel's reduction, from the lesser of read and write of the socket that reaches a node best.

    None where a node with memory has no figure that is believed.
    """
    best: dict[int, float] = {}
    for figure in figures:
        if figure.read and figure.write and figure.is_believed:
            best[figure.node] = max(best.get(figure.node, 0.0), min(figure.read, figure.write))
    if not best or best.keys() < machine.memory_nodes:
        return None
    return weights.reduce({node: max(1, round(rate / 1e6)) for node, rate in sorted(best.items())})


class _Thread(threading.Thread):
    """Runs on one CPU, over memory of its own. numpy lets go of the interpreter's lock while it works on an array."""

    def __init__(self, node: int, cpu: int, share: int, seconds: float) -> None:
        super().__init__(name=f"measure-{cpu}", daemon=True)
        self._node = node
        self._cpu = cpu
        self._share = share
        self._seconds = seconds
        self.gate: threading.Barrier | None = None
        self.rates: Mapping[str, float] = {}
        self.failed = ""

    def run(self) -> None:
        assert self.gate is not None
        try:
            os.sched_setaffinity(0, {self._cpu})
            # Preferred: where the node fills up meanwhile, memory comes from elsewhere, and nothing is killed for it.
            policy = Mempolicy(Mode.PREFERRED, frozenset((self._node,)), Flag.STATIC_NODES)
            source, target = (np.frombuffer(own_memory.mapped(self._share, policy), dtype=np.int64) for _ in range(2))
            source.fill(1)
            target.fill(0)
            self.failed = _misplaced(source, self._node) or _misplaced(target, self._node)
            if self.failed:
                self.gate.abort()
                return
            ways = (
                ("read", lambda: np.add.reduce(source), 1),
                ("write", lambda: target.fill(2), 1),
                ("copy", lambda: np.copyto(target, source), 2),
            )
            rates = {}
            for way, act, passes in ways:
                # All threads in one way at a time: a reader beside a writer would be another figure.
                self.gate.wait()
                rates[way] = passes * self._share * self._paced(act)
            self.rates = rates
        except threading.BrokenBarrierError:
            self.failed = self.failed or "another thread could not be measured"
        except OSError as error:
            self.failed = f"{error.strerror} (CPU {self._cpu})"
            self.gate.abort()

    def _paced(self, act: Callable[[], object]) -> float:
        """How often a second."""
        times, begin = 0, time.perf_counter()
        while True:
            act()
            times += 1
            if (spent := time.perf_counter() - begin) >= self._seconds:
                return times / spent


def _misplaced(array: NDArray[np.int64], node: int) -> str:
    """Empty where the memory is where it should be."""
    step = max(pages.PAGE_SIZE, array.nbytes // _SAMPLES // pages.PAGE_SIZE * pages.PAGE_SIZE)
    at = array.ctypes.data + np.arange(0, array.nbytes, step, dtype=np.int64)
    found = pages.query(0, at)
    there = int(np.count_nonzero(found == node))
    if there * 100 >= len(found) * 95:
        return ""
    return f"only {100 * there // len(found)} % of the memory came from node {node}"

"""Ten thousand regions of a process that runs: what it takes to tell their classes, and for how long it is stopped to
bind them.

    .venv/bin/python -m tests.bench.regions [--regions 10000] [--check]

Needs root. Binds to node 0, and takes it away again.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time

from hetmemd.engine.regionwise import Asked, Regionwise, decide_regions
from hetmemd.kernel import procfs
from hetmemd.kernel.mempolicy import Flag, Mempolicy, Mode
from hetmemd.kernel.procfs import ProcessId
from hetmemd.kernel.root import Root
from hetmemd.memory import regions
from hetmemd.memory.scope import scope
from hetmemd.remote.client import Tracer
from tests.bench.figures import Figures

ROOT = Root()
POLICY = Mempolicy(Mode.INTERLEAVE, frozenset({0}), Flag.STATIC_NODES)
LIMIT = 2e-3
# Two pages and a guard, again and again: nothing that could be joined. The main thread works, another one sleeps.
TARGET = """
import ctypes, mmap, sys, threading
count = int(sys.argv[1])
libc = ctypes.CDLL(None)
area = mmap.mmap(-1, count * 3 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
base = ctypes.addressof(ctypes.c_char.from_buffer(area))
for number in range(count):
    area[number * 3 * 4096] = 1
    assert not libc.mprotect(ctypes.c_void_p(base + (number * 3 + 2) * 4096), ctypes.c_size_t(4096), 0)
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
while True:
    sum(range(1000))
"""


def decided(process: ProcessId, policy: Mempolicy | None) -> tuple[Regionwise, float, float]:
    """The decision, and how many seconds reading and deciding took."""
    begin = time.perf_counter()
    found = regions.read(ROOT, process.pid)
    read = time.perf_counter()
    asked = Asked(policy, scope(("heap", "anon")))
    decision = decide_regions(found, asked, frozenset({0}), issued={POLICY})
    return decision, read - begin, time.perf_counter() - read


async def measure(count: int, figures: Figures) -> None:
    with subprocess.Popen([sys.executable, "-c", TARGET, str(count)], stdout=subprocess.PIPE, text=True) as popen:
        tracer = Tracer(ROOT)
        try:
            assert popen.stdout
            popen.stdout.readline()
            process = procfs.identify(ROOT, popen.pid)
            await tracer.start()
            for word, policy in (("bound", POLICY), ("undone", None)):
                decision, read, decide = decided(process, policy)
                calls = [call for change in decision.changes for call in change.calls]
                begin = time.perf_counter()
                result = await tracer.bind(process, calls)
                took = time.perf_counter() - begin
                assert not any(result.errnos), result
                assert len(result.errnos) == len(calls) >= count
                left, _, _ = decided(process, policy)
                assert not left.changes
                stops = sorted(pause / 1e9 for pause in result.pauses_ns)
                p99 = stops[int(len(stops) * 0.99)]
                print(
                    f"{len(decision.verdicts)} regions, {len(calls)} {word}: read in {read * 1e3:.0f} ms, decided in "
                    f"{decide * 1e3:.0f} ms, called in {took:.2f} s; {len(stops)} stops: median "
                    f"{statistics.median(stops) * 1e3:.2f}, p99 {p99 * 1e3:.2f}, longest {stops[-1] * 1e3:.2f} ms"
                )
                figures.held("stop to bind, p99 / 2 ms", p99 / LIMIT)
        finally:
            tracer.close()
            popen.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--regions", type=int, default=10000)
    figures = Figures(parser)
    asyncio.run(measure(figures.options().regions, figures))
    figures.end()


if __name__ == "__main__":
    main()

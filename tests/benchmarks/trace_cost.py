#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `sme trace` costs: reset to start_kernel, with and without it, in turns on one machine.

    PYTHONPATH=. python3 -m tests.benchmarks.trace_cost --image debian-6.1 --times 10

Wall time, and the CPU time of gdb and QEMU, which other work on the machine disturbs less. What is
done at reset, gdb's start, the emulation and the arming of the trace, is not in it; the arming has
a row of its own. The figures of docs/trace.md are these.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import machine_config

_STOP = "start_kernel"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Seconds: wall time, CPU time of QEMU and of gdb, and wall time at reset."""

    wall: float
    qemu: float
    gdb: float
    arming: float

    @property
    def cpu(self) -> float:
        return self.qemu + self.gdb


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far: utime and stime of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(image: str, encryption: str, trace: bool) -> Cost:
    with Session(machine_config(image, encryption), "reset") as session:
        gdb = int(session.gdb.execute("python import os; print(os.getpid())"))
        qemu = session.machine.pid
        session.gdb.execute(f"hbreak {_STOP}")
        start = time.monotonic()
        if trace:
            session.gdb.execute(f"sme trace start --quiet --until {_STOP}")
        before = time.monotonic(), cpu_seconds(qemu), cpu_seconds(gdb)
        session.gdb.execute("continue", 300)
        after = time.monotonic(), cpu_seconds(qemu), cpu_seconds(gdb)
        spent = (then - now for now, then in zip(before, after, strict=True))
        return Cost(*spent, before[0] - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="debian-6.1")
    parser.add_argument("--encryption", default="sme", choices=("none", "sme", "sev"))
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    # As a user has it: gdb's Python keeps the bytecode that it made.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    measure(given.image, given.encryption, True)
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    for _ in range(given.times):
        for trace in (False, True):
            costs[trace].append(measure(given.image, given.encryption, trace))
    print(f"{given.image}, {given.encryption}, reset to {_STOP}, {given.times} times in turns")
    print(f"{'median (least), s':20} {'without':>14} {'with trace':>14} {'ratios':>12}")
    for name in ("wall", "cpu", "qemu", "gdb", "arming"):
        without, with_trace = ([getattr(c, name) for c in costs[trace]] for trace in (False, True))
        median = statistics.median(without), statistics.median(with_trace)
        least = min(without), min(with_trace)
        cells = [f"{m:.2f} ({low:.2f})" for m, low in zip(median, least, strict=True)]
        ratio = ""
        if name != "arming":
            ratio = " ".join(f"{b / a:.2f}" for a, b in (median, least))
        print(f"{name:20} {cells[0]:>14} {cells[1]:>14} {ratio:>12}")


if __name__ == "__main__":
    main()

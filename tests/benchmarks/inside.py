# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the benchmark that runs inside gdb: times commands, and prints one JSON document."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import gdb

from gdb_sme.core.scan import scan
from gdb_sme.core.walk import walk
from gdb_sme.linux.translate import root_of_cpu
from gdb_sme.target import qemu
from gdb_sme.target.session import SESSIONS


def together(works: dict[str, Callable[[], object]], seconds: float) -> dict[str, Any]:
    """First, least and median time of each, and least and median CPU time, in seconds.

    In turns, since the machine may be in use by others; the CPU time of this thread, which they
    disturb less, is all of the time where no other process has to answer. As many rounds as fit
    into ``seconds`` for each, at least 3, or 1 where that takes a minute.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    begun = time.perf_counter()
    for number in range(500):
        spent = time.perf_counter() - begun
        if spent > (seconds * len(works) if number >= 3 else 60):
            break
        for name, work in works.items():
            start, spent = time.perf_counter(), time.thread_time()
            work()
            cpu[name].append(time.thread_time() - spent)
            times[name].append(time.perf_counter() - start)
    return {
        name: {
            "first": each[0], "best": min(each), "median": sorted(each)[len(each) // 2],
            "cpu best": min(cpu[name]), "cpu median": sorted(cpu[name])[len(each) // 2],
            "runs": len(each),
        }
        for name, each in times.items()
    }  # fmt: skip


def commands(lines: list[str], seconds: float) -> dict[str, Any]:
    """Times of gdb commands with their output kept from the screen; of each, or its error.

    Each alone for the first time, then all in turns.
    """
    found: dict[str, Any] = {}
    works: dict[str, Callable[[], object]] = {}
    for line in lines:
        start = time.perf_counter()
        try:
            output = gdb.execute(line, to_string=True)
        except Exception as error:  # another tool may raise anything
            found[line] = {"error": str(error).strip().split("\n")[-1][:120]}
            continue
        found[line] = {"first": time.perf_counter() - start, "lines": output.count("\n")}
        works[line] = lambda line=line: gdb.execute(line, to_string=True)
    for line, times in together(works, seconds).items():
        found[line] = {**times, **found[line]}
    return found


def ours(seconds: float, added: list[int]) -> dict[str, Any]:
    """The scan by itself through each reader, and what it reads.

    ``added``: first and last virtual address of what the benchmark mapped itself, looked at apart.
    """
    session = SESSIONS.current()
    kernel, cpu, stub = session.kernel, session.cpu, session.target.stub
    assert stub is not None
    root = root_of_cpu(kernel, cpu).pa
    whole = scan(kernel.memory, root, cpu.mode, kernel.table_enc, in_bulk=False)
    pages = sorted({use.pa for use in whole.tables})

    def scanning(memory: Any, in_bulk: bool, **bounds: int) -> Callable[[], object]:
        return lambda: scan(
            memory, root, cpu.mode, kernel.table_enc, with_tables=False, in_bulk=in_bulk, **bounds
        )

    def reading(memory: Any, pages: list[int] = pages) -> Callable[[], object]:
        def read() -> None:
            with memory.batch():
                for pa in pages:
                    memory.read(pa, 4096)

        return read

    mapped: dict[str, Callable[[], object]] = {"python": scanning(kernel.memory, in_bulk=False)}
    if importlib.util.find_spec("numpy") is not None:
        mapped["numpy"] = scanning(kernel.memory, in_bulk=True)
        again = scan(kernel.memory, root, cpu.mode, kernel.table_enc, in_bulk=True)
        assert again == whole, "NumPy and Python differ"
    mapped["read"] = reading(kernel.memory)
    over_stub = {"python": scanning(stub, in_bulk=False), "read": reading(stub)}
    found: dict[str, Any] = {
        "reader": type(kernel.memory).__name__,
        "tables": whole.tables_read,
        "ranges": len(whole.ranges),
        "pages": sum(each.page_count for each in whole.ranges),
        "unencrypted": sum(
            each.page_count for each in whole.ranges if not each.attributes.encrypted
        ),
        "packets": {"mapped": _packets(mapped["python"]), "stub": _packets(over_stub["python"])},
    }
    del whole
    if added:
        bounds = dict(zip(("start", "end"), added, strict=True))
        part = scan(kernel.memory, root, cpu.mode, kernel.table_enc, **bounds)
        alone = {"read": reading(kernel.memory, sorted({use.pa for use in part.tables}))}
        for name in ("python", "numpy"):
            if name in mapped:
                alone[name] = scanning(kernel.memory, in_bulk=name == "numpy", **bounds)
        found["alone"] = together(alone, seconds) | {"tables": part.tables_read}
    found["mapped"] = together(mapped, seconds)
    found["stub"] = together(over_stub, seconds)
    found["peak"] = {name: _peak(work) for name, work in mapped.items() if name != "read"}
    counted = _Counted(kernel.memory)
    steps = walk(counted, cpu.rip, root, cpu.mode, kernel.table_enc).steps
    found["walk"] = {"reads": counted.calls, "levels": len(steps)}
    found["walk"] |= together(
        {"walk": lambda: walk(kernel.memory, cpu.rip, root, cpu.mode, kernel.table_enc)}, 0.1
    )["walk"]
    return found


def _peak(work: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy had at a time for ``work``, its result included."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class _Counted:
    """A reader that counts."""

    def __init__(self, memory: Any) -> None:
        self.calls = 0
        self._memory = memory

    def read(self, pa: int, length: int) -> bytes:
        self.calls += 1
        return bytes(self._memory.read(pa, length))


def _packets(work: Callable[[], object]) -> int:
    """Remote protocol packets that ``work`` sends."""
    count = 0
    send = qemu.send_packet

    def counting(*arguments: Any) -> bytes:
        nonlocal count
        count += 1
        return send(*arguments)

    qemu.send_packet = counting
    try:
        work()
    finally:
        qemu.send_packet = send
    return count


def main(plan: str) -> None:
    """Run a plan: ``{"commands": [...], "ours": bool, "added": [...], "seconds": float}``."""
    what = json.loads(plan)
    found: dict[str, Any] = {"commands": commands(what["commands"], what["seconds"])}
    if what["ours"]:
        found["ours"] = ours(what["seconds"], what["added"])
        found["numpy"] = getattr(sys.modules.get("numpy"), "__version__", None)
    print("BENCHMARK " + json.dumps(found))
    sys.stdout.flush()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the benchmark that runs inside gdb: times commands, and prints one JSON document."""

from __future__ import annotations

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


def best(work: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Least and median of as many runs as fit into ``seconds``, at least 3; all in seconds."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < seconds and len(times) < 200):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    times.sort()
    return {"best": times[0], "median": times[len(times) // 2], "runs": len(times)}


def commands(lines: list[str], seconds: float) -> dict[str, Any]:
    """Times of gdb commands with their output kept from the screen; of each, or its error."""
    found: dict[str, Any] = {}
    for line in lines:
        try:
            output = gdb.execute(line, to_string=True)
            found[line] = best(lambda line=line: gdb.execute(line, to_string=True), seconds)
            found[line]["lines"] = output.count("\n")
        except gdb.error as error:
            found[line] = {"error": str(error).strip().split("\n")[-1][:120]}
    return found


def ours(seconds: float) -> dict[str, Any]:
    """The scan by itself through each reader, and what it reads."""
    SESSIONS.current()
    session = SESSIONS.current()
    kernel, cpu, stub = session.kernel, session.cpu, session.target.stub
    assert stub is not None
    root = root_of_cpu(kernel, cpu).pa
    found: dict[str, Any] = {}
    for name, memory in (("file", kernel.memory), ("stub", stub)):

        def once(memory: Any = memory) -> Any:
            return scan(memory, root, cpu.mode, kernel.table_enc)

        result = once()
        pages = sorted({use.pa for use in result.tables})

        def read(memory: Any = memory, pages: list[int] = pages) -> None:
            with memory.batch():
                for pa in pages:
                    memory.read(pa, 4096)

        found[name] = {
            "reader": type(memory).__name__,
            "scan": best(once, seconds),
            "read only": best(read, seconds),
            "packets": _packets(once),
            "tables": result.tables_read,
            "bytes": result.bytes_read,
            "ranges": len(result.ranges),
            "pages": sum(each.page_count for each in result.ranges),
            "unencrypted": sum(
                each.page_count for each in result.ranges if not each.attributes.encrypted
            ),
        }
    tracemalloc.start()
    scan(kernel.memory, root, cpu.mode, kernel.table_enc)
    found["peak"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counted = _Counted(kernel.memory)
    found["walk"] = {
        **best(lambda: walk(kernel.memory, cpu.rip, root, cpu.mode, kernel.table_enc), 0.1),
        "reads": len(walk(counted, cpu.rip, root, cpu.mode, kernel.table_enc).steps),
        "counted": counted.calls,
    }
    return found


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
    """Run a plan: ``{"commands": [...], "ours": bool, "seconds": float}``."""
    what = json.loads(plan)
    found: dict[str, Any] = {"commands": commands(what["commands"], what["seconds"])}
    if what["ours"]:
        found["ours"] = ours(what["seconds"])
    print("BENCHMARK " + json.dumps(found))
    sys.stdout.flush()

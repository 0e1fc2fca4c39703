# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots guests and measures, side by side in one run, this project and others on the same tables.

``scripts/benchmark --help``. The figures of docs/benchmarks.md come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import machine_config

_ROOT = Path(__file__).resolve().parents[2]
_TABLE = 4096
_MIB = 1 << 20
_MONITOR = 600.0  # seconds: a million lines of `info tlb` take QEMU that long on a busy machine


@dataclass(frozen=True)
class Case:
    """One guest: a kernel, its machine, and how many 4 KiB PTEs to add to its tables."""

    title: str
    image: str = "debian-6.1"
    encryption: str = "none"
    memory: str = "512M"
    la57: bool = False
    added: int = 0
    scattered: bool = False


CASES = (
    Case("6.1, SME off, 512 MB"),
    Case("6.1, SME, 512 MB", encryption="sme"),
    Case("6.1, SME off, 4 GiB", memory="4G"),
    Case("6.1, SME, 4 GiB", encryption="sme", memory="4G"),
    Case("+ 64 Ki PTEs, contiguous", encryption="sme", added=1 << 16),
    Case("+ 256 Ki PTEs, contiguous", encryption="sme", added=1 << 18),
    Case("+ 1 Mi PTEs, contiguous", encryption="sme", added=1 << 20),
    Case("+ 1 Mi PTEs, contiguous, 5-level", encryption="sme", added=1 << 20, la57=True),
    Case("+ 1 Mi PTEs, scattered", encryption="sme", added=1 << 20, scattered=True),
)


def add_ptes(session: Session, count: int, *, levels: int, c_mask: int, scattered: bool) -> None:
    """Map ``count`` 4 KiB pages (a multiple of 512) more, from a free entry of the top table on.

    The tables are written into zeroed RAM of the standing guest, which does not run again.
    Contiguous pages are what a direct map split to 4 KiB is; scattered ones are all apart.
    """
    fd, parts = session.machine.ram_fd, session.machine.layout.parts
    root = session.gdb.evaluate("(unsigned long)$cr3") & 0x000FFFFFFFFFF000 & ~c_mask
    bottom = -(-count // 512)
    needed = (bottom + -(-bottom // 512) + 4) * _TABLE
    low = parts[0]
    at = next(
        start
        for start in range(low.pa + 64 * _MIB, low.pa + low.size - needed, _MIB)
        if not any(os.pread(fd, needed, low.offset + start - low.pa))
    )

    def write(pa: int, data: bytes) -> None:
        os.pwrite(fd, data, low.offset + pa - low.pa)

    def entries(values: list[int]) -> bytes:
        return b"".join(value.to_bytes(8, "little") for value in values)

    flags, pointer = 0x8000000000000163 | c_mask, 0x67 | c_mask
    pfns = [number * 40503 & (1 << 20) - 1 for number in range(count)] if scattered else None
    for table in range(bottom):
        first = table * 512
        numbers = pfns[first : first + 512] if pfns else range(first, first + 512)
        write(at + table * _TABLE, entries([number << 12 | flags for number in numbers]))
    tables, place = [at + table * _TABLE for table in range(bottom)], at + bottom * _TABLE
    for _ in range(levels - 2):
        groups = [tables[n : n + 512] for n in range(0, len(tables), 512)]
        tables = []
        for group in groups:
            write(place, entries([pa | pointer for pa in group]))
            tables.append(place)
            place += _TABLE
    assert len(tables) == 1
    slot = next(
        index
        for index in range(16, 255)
        if os.pread(fd, 8, low.offset + root + 8 * index - low.pa) == bytes(8)
    )
    write(root + 8 * slot, entries([tables[0] | pointer]))


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one case."""
    config = machine_config(case.image, case.encryption, case.memory, la57=case.la57)
    with Session(config, "shell") as session:
        session.machine.qmp.timeout = _MONITOR
        if case.added:
            mask = 0 if case.encryption == "none" else 1 << config.c_bit
            levels = 5 if case.la57 else 4
            add_ptes(session, case.added, levels=levels, c_mask=mask, scattered=case.scattered)
        found: dict[str, Any] = {"socket": {}}
        for command in ("info tlb", "info mem"):
            if case.la57 and command == "info mem":
                continue  # QEMU 7.2 takes 19 s there and prints nothing
            found["socket"][command] = _hmp(session, command, options.seconds)
        ours = ["sme dump", "sme dump --json"] if not case.scattered else ["sme dump --json"]
        # Not `monitor info tlb` in gdb: over a Unix socket gdb's acknowledgements of that many
        # packets fill QEMU's receive queue while QEMU still sends, and both wait for ever.
        found |= _inside(session, ours, options, ours=True)
        for name, load, command in (
            ("gdb-pt-dump", options.pt, "pt"),
            ("pwndbg", options.pwndbg, "vmmap"),
        ):
            if load is not None:
                script = load / ("pt.py" if name == "gdb-pt-dump" else "gdbinit.py")
                session.gdb.run(f"source {script}")
                peer = _inside(session, [command], options, ours=False)
                found["commands"][name] = peer["commands"][command]
        return found


def _hmp(session: Session, command: str, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    text = ""
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < seconds and len(times) < 200):
        start = time.perf_counter()
        text = session.machine.qmp.hmp(command)
        times.append(time.perf_counter() - start)
    return {"best": min(times), "median": sorted(times)[len(times) // 2], "lines": text.count("\n")}


def _inside(
    session: Session, commands: list[str], options: argparse.Namespace, *, ours: bool
) -> dict[str, Any]:
    plan = json.dumps({"commands": commands, "ours": ours, "seconds": options.seconds})
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from tests.benchmarks import inside"
    output = session.gdb.execute(f"python {code}; inside.main({plan!r})", timeout=600)
    line = next(line for line in output.splitlines() if line.startswith("BENCHMARK "))
    result: dict[str, Any] = json.loads(line.removeprefix("BENCHMARK "))
    return result


def report(case: Case, found: dict[str, Any]) -> str:
    """A case as Markdown."""
    ours = found["ours"]
    fast, stub = ours["file"], ours["stub"]
    lines = [
        f"### {case.title}",
        "",
        f"{fast['tables']} table pages ({fast['bytes'] >> 10} KiB), {fast['pages']} leaves in "
        f"{fast['ranges']} ranges, {fast['unencrypted']} leaves without the C-bit; "
        f"peak memory of a scan {ours['peak'] / _MIB:.1f} MiB; "
        f"stub: {stub['packets']} packets, file: {fast['packets']}; "
        f"one walk: {ours['walk']['counted']} reads, {ours['walk']['best'] * 1e3:.3f} ms",
        "",
        "| what | best, ms | median, ms | lines |",
        "|---|---|---|---|",
        _row("scan, QEMU's RAM mapped", fast["scan"]),
        _row("only reading the same tables, likewise", fast["read only"]),
        _row("scan, over the stub", stub["scan"]),
        _row("only reading the same tables, likewise", stub["read only"]),
    ]
    lines += [_row(f"`{name}`", each) for name, each in found["commands"].items()]
    lines += [_row(f"`{name}` on QEMU's socket", each) for name, each in found["socket"].items()]
    scan = fast["scan"]["best"]
    ratios = [f"scan / reading {scan / fast['read only']['best']:.1f}"]
    for name, each in found["socket"].items():
        ratios.append(f"{name} / scan {each['best'] / scan:.1f}")
    for name in ("gdb-pt-dump", "pwndbg"):
        peer, dump = found["commands"].get(name), found["commands"].get("sme dump")
        if peer and "best" in peer:
            ratios.append(f"{name} / scan {peer['best'] / scan:.1f}")
            if dump:
                ratios.append(f"{name} / `sme dump` {peer['best'] / dump['best']:.1f}")
    return "\n".join([*lines, "", f"Ratios: {', '.join(ratios)}.", ""])


def _row(name: str, each: dict[str, Any]) -> str:
    if "error" in each:
        return f"| {name} | fails: {each['error']} | | |"
    lines = each.get("lines", "")
    return f"| {name} | {each['best'] * 1e3:.2f} | {each['median'] * 1e3:.2f} | {lines} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases, or those whose title contains a given text."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    parser.add_argument("--pt", type=Path, metavar="DIR", help="a checkout of gdb-pt-dump")
    parser.add_argument("--pwndbg", type=Path, metavar="DIR", help="a checkout of pwndbg")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their title")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="to repeat each measurement for (2)"
    )
    options = parser.parse_args(arguments)
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} CPUs, load {load} at the start\n", flush=True)
    for case in CASES:
        if options.only in case.title:
            print(report(case, measure(case, options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

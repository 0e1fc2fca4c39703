# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots guests and measures, side by side in one run, this project and others on the same tables.

``scripts/benchmark --help``. The figures of docs/benchmarks.md come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdb_sme.errors import SmeError
from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import PLUGIN
from gdb_sme.harness.pytest_plugin import machine_config

_ROOT = Path(__file__).resolve().parents[2]
_TABLE = 4096
_MIB = 1 << 20
_GIB = 1 << 30
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
    Case("+ 64 Ki PTEs, scattered", encryption="sme", added=1 << 16, scattered=True),
    Case("+ 256 Ki PTEs, scattered", encryption="sme", added=1 << 18, scattered=True),
    Case("+ 1 Mi PTEs, scattered", encryption="sme", added=1 << 20, scattered=True),
    Case(
        "+ 1 Mi PTEs, scattered, 5-level",
        encryption="sme",
        added=1 << 20,
        scattered=True,
        la57=True,
    ),
)


def add_ptes(session: Session, count: int, *, levels: int, c_mask: int, scattered: bool) -> range:
    """Map ``count`` 4 KiB pages (a multiple of 512) more, from a free entry of the top table on.

    The tables are written into zeroed RAM of the standing guest, which does not run again.
    Contiguous pages are what a direct map split to 4 KiB is; scattered ones are all apart, and so
    are their tables. Returns the virtual addresses, up to the next GiB.
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
    order = list(range(bottom))
    if scattered:
        random.Random(1).shuffle(order)
    for table in range(bottom):
        first = table * 512
        numbers = pfns[first : first + 512] if pfns else range(first, first + 512)
        write(at + order[table] * _TABLE, entries([number << 12 | flags for number in numbers]))
    tables, place = [at + table * _TABLE for table in order], at + bottom * _TABLE
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
    start = slot << 9 * levels + 3
    return range(start, start + -(-count * _TABLE // _GIB) * _GIB)


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one case."""
    config = machine_config(case.image, case.encryption, case.memory, la57=case.la57)
    with Session(config, "shell") as session:
        session.machine.qmp.timeout = _MONITOR
        added: list[int] = []
        if case.added:
            mask = 0 if case.encryption == "none" else 1 << config.c_bit
            levels = 5 if case.la57 else 4
            mapped = add_ptes(
                session, case.added, levels=levels, c_mask=mask, scattered=case.scattered
            )
            added = [mapped.start, mapped.stop]
        # A million ranges are no text that anyone reads, and JSON of a GiB.
        commands = [] if case.scattered else ["sme dump", "sme dump --json"]
        if not case.added:  # an audit would find what was added
            commands.append("sme audit")
        found = _inside(session, commands, options, added)
        found["socket"] = {}
        for command in ("info tlb", "info mem"):
            if case.la57 and command == "info mem":
                continue  # QEMU 7.2 takes 19 s there and prints nothing
            found["socket"][command] = _hmp(session, command, options.seconds)
        # Not `monitor info tlb` in gdb: over a Unix socket gdb's acknowledgements of that many
        # packets fill QEMU's receive queue while QEMU still sends, and both wait for ever.
        for name, script, command in (
            ("gdb-pt-dump", options.pt and options.pt / "pt.py", "pt"),
            ("pwndbg", options.pwndbg and options.pwndbg / "gdbinit.py", _VMMAP),
        ):
            if script is not None and session.alive():
                found["commands"][name] = _peer(session, script, command, options)
        return found


#: It keeps its answer for a stop; only the first counts.
_VMMAP = (
    "python import gdb, pwndbg.lib.cache; pwndbg.lib.cache.clear_caches(); gdb.execute('vmmap')"
)


def _peer(
    session: Session, script: Path, command: str, options: argparse.Namespace
) -> dict[str, Any]:
    """A command of another tool, loaded into the same gdb, in turns with `sme dump`."""
    try:
        session.gdb.run(f"source {script}", timeout=120)
        found = _inside(session, ["sme dump", command], options, None)["commands"]
    except SmeError as error:
        return {"error": str(error)[:120]}
    return {**found[command], "beside": found["sme dump"]}


def _hmp(session: Session, command: str, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    text = ""
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < (30 if len(times) < 3 else seconds):
        start = time.perf_counter()
        text = session.machine.qmp.hmp(command)
        times.append(time.perf_counter() - start)
        if len(times) == 200:
            break
    return {"best": min(times), "median": sorted(times)[len(times) // 2], "lines": text.count("\n")}


def _inside(
    session: Session, commands: list[str], options: argparse.Namespace, added: list[int] | None
) -> dict[str, Any]:
    """Measure inside gdb; the scan too unless ``added`` is None."""
    plan = json.dumps(
        {
            "commands": commands,
            "ours": added is not None,
            "added": added,
            "seconds": options.seconds,
        }
    )
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from tests.benchmarks import inside"
    output = session.gdb.execute(f"python {code}; inside.main({plan!r})", timeout=900)
    line = next(line for line in output.splitlines() if line.startswith("BENCHMARK "))
    result: dict[str, Any] = json.loads(line.removeprefix("BENCHMARK "))
    return result


def report(case: Case, found: dict[str, Any]) -> str:
    """A case as Markdown."""
    ours = found["ours"]
    mapped, stub, walk = ours["mapped"], ours["stub"], ours["walk"]
    peaks = ", ".join(f"{name} {peak / _MIB:.1f} MiB" for name, peak in ours["peak"].items())
    lines = [
        f"### {case.title}",
        "",
        f"{ours['tables']} table pages ({ours['tables'] * _TABLE >> 10} KiB), {ours['pages']} "
        f"leaves in {ours['ranges']} ranges, {ours['unencrypted']} leaves without the C-bit; "
        f"peak memory of a scan: {peaks}; packets: {ours['packets']['stub']} over the stub, "
        f"{ours['packets']['mapped']} with RAM mapped; one walk: {walk['reads']} reads of "
        f"{walk['levels']} levels, {walk['best'] * 1e3:.3f} ms",
        "",
        "| what | first, ms | best, ms | median, ms | CPU best, ms | lines |",
        "|---|---|---|---|---|---|",
        _row("scan, RAM mapped, NumPy", mapped.get("numpy", {"error": "no NumPy"})),
        _row("scan, RAM mapped, Python alone", mapped["python"]),
        _row("only reading the same tables, likewise", mapped["read"]),
        _row("scan, over the stub", stub["python"]),
        _row("only reading the same tables, likewise", stub["read"]),
    ]
    if "alone" in ours:
        alone = ours["alone"]
        lines += [
            _row("scan of the added PTEs alone, NumPy", alone.get("numpy", {"error": "no NumPy"})),
            _row("scan of the added PTEs alone, Python alone", alone["python"]),
            _row(f"only reading their {alone['tables']} tables", alone["read"]),
        ]
    lines += [_row(f"`{name}`", each) for name, each in found["commands"].items()]
    lines += [_row(f"`{name}` on QEMU's socket", each) for name, each in found["socket"].items()]
    lines += ["", *(f"- {text}" for text in targets(case, found)), ""]
    return "\n".join(lines)


def targets(case: Case, found: dict[str, Any]) -> Iterator[str]:
    """What is aimed at, and what was measured."""
    ours, commands = found["ours"], found["commands"]
    mapped = ours["mapped"]
    scan, read = mapped.get("numpy", mapped["python"]), mapped["read"]
    if case.added == _MIB:
        alone = ours["alone"]
        for how in ("cpu best", "cpu median"):
            part = alone.get("numpy", alone["python"])[how] / alone["read"][how]
            yield _target(f"scan of these PTEs / reading, {how}", part, at_most=3)
            yield _target(f"scan of everything / reading, {how}", scan[how] / read[how], at_most=3)
        tlb = found["socket"]["info tlb"]
        yield _target("`info tlb` / scan, best", tlb["best"] / scan["best"], at_least=1)
    elif not case.added:
        for name in ("gdb-pt-dump", "pwndbg"):
            for how in ("best", "median"):
                each = commands.get(name, {})
                if how in each and how in each["beside"]:
                    ratio = each[how] / each["beside"][how]
                    yield _target(f"{name} / `sme dump`, {how}", ratio, at_least=10)
        if case.memory == "4G":
            yield _target("`sme audit`, first, s", commands["sme audit"]["first"], at_most=1)
    walk = ours["walk"]
    yield _target("reads a level of a walk", walk["reads"] / walk["levels"], at_most=1)


def _target(
    what: str, ratio: float, *, at_most: float | None = None, at_least: float | None = None
) -> str:
    if at_most is not None:
        return f"{what}: {ratio:.2f}, at most {at_most} {'ok' if ratio <= at_most else 'MISSED'}"
    assert at_least is not None
    return f"{what}: {ratio:.2f}, at least {at_least} {'ok' if ratio >= at_least else 'MISSED'}"


def _row(name: str, each: dict[str, Any]) -> str:
    if "error" in each:
        return f"| {name} | fails: {each['error']} | | | | |"
    columns = ("first", "best", "median", "cpu best")
    times = [f"{each[how] * 1e3:.2f}" if how in each else "" for how in columns]
    return f"| {name} | {' | '.join(times)} | {each.get('lines', '')} |"


def loading() -> str:
    """CPU time (user and system) of gdb's start with and without the extension, medians of 20."""
    bare = ["gdb", "-nx", "-batch"]
    both = (bare, [*bare, "-x", str(PLUGIN)])
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(21):
        for arguments, each in zip(both, times, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:  # the first one compiles
                each.append(
                    after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                )  # fmt: skip
    alone, with_it = (sorted(each)[len(each) // 2] * 1e3 for each in times)
    more = _target("more with the extension, ms", with_it - alone, at_most=50)
    both_text = f"gdb alone {alone:.1f} ms of CPU, with the extension {with_it:.1f}"
    return f"### Loading\n\n{both_text}\n\n- {more}\n"


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
    print(f"{os.cpu_count()} CPUs, load {_load()} at the start\n", flush=True)
    if options.only in "Loading":
        print(loading(), flush=True)
    for case in CASES:
        if options.only in case.title:
            print(report(case, measure(case, options)), flush=True)
    print(f"load {_load()} at the end", flush=True)
    return 0


def _load() -> str:
    return "/".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())

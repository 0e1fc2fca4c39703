# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme cr3`: two verdicts a CPU, and the conclusion."""

from __future__ import annotations

from gdb_sme.core.address import hex_pa, hex_va
from gdb_sme.linux.cr3check import CpuCheck, Cr3Report, Part
from gdb_sme.render.document import (
    GAP,
    Document,
    Line,
    bad,
    comment,
    good,
    keyword,
    number,
    plain,
    table,
    verdict,
)
from gdb_sme.render.json import hexadecimal


def text(report: Cr3Report) -> Document:
    """A block a CPU."""
    return Document(tuple(line for check in report.cpus for line in _cpu(check)))


def _cpu(check: CpuCheck) -> tuple[Line, ...]:
    head: list[tuple[str, str]] = [keyword(f"CPU {check.cpu}")]
    if check.cr3 is not None:
        head += [plain(GAP), number(hex_va(check.cr3.raw)), plain(GAP)]
        head.append(good("C") if check.cr3.c_bit else plain("-"))
    lines: list[Line] = [tuple(head)]
    if check.address is not None and check.c_bit is not None and check.cr3 is not None:
        lines += table([_address(check.address), _bit(check.c_bit)])
    paint = comment if check.skipped else good if check.passed else bad
    return (*lines, (paint(check.conclusion),))


def _address(part: Part) -> list[Line]:
    return [
        (keyword("  address"),),
        (number(hex_pa(part.actual)),),
        (plain(part.reason),),
        (verdict(part.verdict.value),),
    ]


def _bit(part: Part) -> list[Line]:
    return [
        (keyword("  C-bit"),),
        (plain("set" if part.actual else "clear"),),
        (plain(part.reason),),
        (verdict(part.verdict.value),),
    ]


def payload(report: Cr3Report) -> dict[str, object]:
    """Members: passed, sme_me_mask, stage, cpus: each with cr3, table, expected, two verdicts."""
    return {
        "passed": report.passed,
        "sme_me_mask": hex_va(report.sme_me_mask),
        "stage": report.stage,
        "cpus": [_cpu_payload(check) for check in report.cpus],
    }


def _cpu_payload(check: CpuCheck) -> dict[str, object]:
    return {
        "cpu": check.cpu,
        "cr3": hex_va(check.cr3.raw) if check.cr3 else None,
        "pa": hexadecimal(check.cr3.pa) if check.cr3 else None,
        "c_bit": check.cr3.c_bit if check.cr3 else None,
        "table": check.table.name if check.table else None,
        "detail": (check.table.detail or None) if check.table else None,
        "expected": check.expected.name if check.expected else None,
        "passed": check.passed,
        "address": _part(check.address),
        "c_bit_check": _part(check.c_bit),
        "conclusion": check.conclusion,
    }


def _part(part: Part | None) -> dict[str, object] | None:
    if part is None:
        return None
    return {
        "verdict": part.verdict.value,
        "expected": hexadecimal(part.expected),
        "actual": hexadecimal(part.actual),
        "reason": part.reason,
    }

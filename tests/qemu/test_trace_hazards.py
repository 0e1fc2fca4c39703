# SPDX-License-Identifier: GPL-2.0-or-later
"""Hazards on a real kernel: made by hand, between sme_enable and the end of early boot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions

MASK = 1 << 47
ADDRESS = 0xFFFF888000100000


@pytest.fixture
def session(boot: OwnSessions) -> Session:
    made = boot("debian-6.1", "sme")
    made.gdb.execute("sme trace start --quiet --until init_mem_mapping")
    return made


def go_to(session: Session, place: str) -> None:
    session.gdb.execute(f"thbreak {place}")
    session.gdb.execute("continue")


def write_cr3(session: Session, value: int) -> None:
    """gdb has CR3 as flags, which take no number: send the stub's packet for it."""
    registers = session.gdb.execute("maint print remote-registers").splitlines()
    (number,) = (int(line.split()[6]) for line in registers if line.split()[:1] == ["cr3"])
    session.gdb.execute(f"maint packet P{number:x}={value.to_bytes(8, 'little').hex()}")
    session.gdb.execute("maint flush register-cache")


def call(session: Session, function: str, **registers: str) -> None:
    """Let the guest call ``function`` and come back to where it stands, registers as before."""
    kept = {name: session.gdb.evaluate(f"${name}") for name in ("rip", *registers)}
    session.gdb.execute("set var $rsp = $rsp - 8")
    session.gdb.execute("set var *(unsigned long *) $rsp = $rip")
    for name, value in registers.items():
        session.gdb.execute(f"set var ${name} = {value}")
    session.gdb.execute(f"set var $rip = {function}")
    go_to(session, f"*{kept.pop('rip'):#x}")
    for name, number in kept.items():
        session.gdb.execute(f"set var ${name} = {number:#x}")


def failures(session: Session) -> list[tuple[str, str, str]]:
    """Rule, outcome and text of what does not pass; `sme trace check` must say so as well."""
    said: dict[str, Any] = json.loads(session.gdb.execute("sme trace show --json"))
    failed = [
        (each["rule"], each["outcome"], each["text"])
        for each in said["verdicts"]
        if each["outcome"] not in ("ok", "open")
    ]
    error = session.gdb.run("sme trace check").error
    assert said["passed"] == (error is None) == (not failed)
    if error is not None:
        assert failed[0][2] in error
    return failed


def test_nothing_made(session: Session) -> None:
    go_to(session, "init_mem_mapping")
    assert failures(session) == []


def test_a_fault_before_sme_early_init(session: Session) -> None:
    go_to(session, "sme_early_init")
    # What early_make_pgtable would do for a fault: early_pmd_flags has no mask yet.
    call(session, "__early_make_pgtable", rdi=f"{ADDRESS:#x}", rsi="early_pmd_flags")
    go_to(session, "init_mem_mapping")
    ((rule, outcome, text),) = failures(session)
    assert (rule, outcome) == ("early-pmd-flags", "HAZARD")
    assert text == (
        f"HAZARD: fault at {ADDRESS:#x} mapped without the C-bit (pmd 0x80000000000000e3), "
        "mask already set, early_pmd_flags not yet"
    )


def test_the_mask_taken_out_of_early_pmd_flags(session: Session) -> None:
    go_to(session, "idt_setup_early_handler")
    session.gdb.execute(f"set var early_pmd_flags = early_pmd_flags & ~{MASK:#x}ul")
    ((rule, outcome, text),) = failures(session)
    assert (rule, outcome) == ("early-pmd-flags", "HAZARD")
    assert text.startswith("HAZARD: early_pmd_flags lost the mask: 0x80008000000000e3 -> ")
    go_to(session, "init_mem_mapping")
    *faults, (_, _, lost) = failures(session)
    assert lost == text
    assert len(faults) == 3
    assert all(each.endswith("early_pmd_flags lost it again") for _, _, each in faults)


def test_the_mask_taken_out_of_cr3(session: Session) -> None:
    go_to(session, "idt_setup_early_handler")
    before = session.gdb.evaluate("(unsigned long)$cr3")
    assert before & MASK
    write_cr3(session, before & ~MASK)
    ((rule, outcome, text),) = failures(session)
    assert (rule, outcome) == ("cr3", "FAIL")
    assert text.startswith(f"CR3 lost its C-bit: {before & ~MASK:#x} at idt_setup_early_handler")
    go_to(session, "start_kernel")
    assert [rule for rule, _, _ in failures(session)] == ["cr3"]


def test_cr3_loaded_without_the_mask(session: Session) -> None:
    go_to(session, "idt_setup_early_handler")
    value = session.gdb.evaluate("(unsigned long)$cr3") & ~MASK
    call(session, "native_write_cr3", rdi=f"{value:#x}")
    found = failures(session)
    assert found[0][:2] == ("cr3", "FAIL")
    assert found[0][2] == (
        f"CR3 loads early_top_pgt without the C-bit: {value:#x} in native_write_cr3, "
        f"expected {value | MASK:#x}"
    )

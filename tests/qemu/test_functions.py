# SPDX-License-Identifier: GPL-2.0-or-later
"""Convenience functions and pretty-printers on a live kernel."""

from __future__ import annotations

import json

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import SharedSessions

C47 = 1 << 47


@pytest.fixture
def running(booted: SharedSessions) -> Session:
    return booted("debian-6.1", "sme", until="shell")


def value(session: Session, expression: str) -> int:
    return session.gdb.evaluate(expression)


def test_sme_pa_is_what_the_walk_finds(running: Session) -> None:
    assert value(running, "$sme_me_mask()") == C47
    for address in ("&init_top_pgt", "&_text", "page_offset_base + 0x2000000"):
        (walk,) = [json.loads(running.gdb.execute(f"sme pte --json {address}"))]
        assert walk["encrypted"]
        assert value(running, f"$sme_pa({address})") == int(walk["pa"], 16) | C47
        assert value(running, f"$sme_pa_nodebug({address})") == int(walk["pa"], 16) | C47
    # The macro says mask also where the mapping has none.
    assert value(running, "$sme_pa(&__start_bss_decrypted)") & C47
    # Beyond both maps __pa_nodebug calculates all the same.
    assert (
        value(running, "$sme_pa_nodebug(0)")
        == (-value(running, "page_offset_base") % (1 << 64)) | C47
    )


def test_sme_va_undoes_it(running: Session) -> None:
    base = value(running, "page_offset_base")
    assert value(running, f"$sme_va({0x2000000 | C47:#x})") == base + 0x2000000
    assert value(running, "$sme_va(0x2000000)") == base + 0x2000000
    assert value(running, "$sme_va($sme_pa(page_offset_base + 0x1234567))") == base + 0x1234567


def test_cr3_by_expression(running: Session) -> None:
    current = value(running, "$cr3 & ~0") & ~0xFFF
    assert value(running, "$sme_pa($sme_va($cr3 & ~0xfff))") == current


def test_c_bit_and_pte(running: Session) -> None:
    assert value(running, "$c_bit(&init_top_pgt)") == 1
    assert value(running, "$c_bit(__start_bss_decrypted)") == 0
    assert value(running, "$c_bit(schedule)") == 1
    for address in ("&init_top_pgt", "__start_bss_decrypted", "0"):
        walk = json.loads(running.gdb.execute(f"sme pte --json {address}"))
        assert value(running, f"$pte({address})") == int(walk["levels"][-1]["raw"], 16)
    # In conditions, as of a breakpoint.
    assert value(running, "$c_bit(&init_top_pgt) && !$c_bit(__start_bss_decrypted)") == 1


def test_the_kernels_own_types_print_their_c_bit(running: Session) -> None:
    walk = json.loads(running.gdb.execute("sme pte --json &init_top_pgt"))
    raw = int(walk["levels"][-1]["raw"], 16)
    va = value(running, f"$sme_va({walk['levels'][-1]['entry_pa']})")
    text = running.gdb.execute(f"output *(pmd_t *){va:#x}")
    assert text.startswith(f"{raw:#018x} C -> 0x02a00000 RW ACCESSED DIRTY PSE")
    assert text.endswith("ENC")
    pgd = value(running, f"$sme_va({walk['levels'][0]['entry_pa']})")
    assert " C -> " in running.gdb.execute(f"output *(pgd_t *){pgd:#x}")
    # protection_map[] of the vm_get_page_prot() has the C-bit from add_encrypt_protection_map().
    shown = running.gdb.execute("output protection_map")
    assert shown.count(" ENC") == 16
    assert "PAGE_COPY | _PAGE_ENC: " in shown


def test_the_bit_set_by_hand_is_used(running: Session) -> None:
    running.gdb.execute("set sme c-bit 50")
    try:
        found = json.loads(running.gdb.execute("sme status --json"))
        assert (found["c_bit"], found["c_bit_source"]) == (50, "set sme c-bit")
    finally:
        running.gdb.execute("set sme c-bit auto")
    assert json.loads(running.gdb.execute("sme status --json"))["c_bit"] == 47


def test_without_encryption(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "none", until="shell")
    assert value(session, "$sme_me_mask()") == 0
    assert value(session, "$c_bit(&init_top_pgt)") == 0
    assert value(session, "$sme_pa(&init_top_pgt)") == 0x2A10000

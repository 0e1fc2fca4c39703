# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme audit` on stock kernels: it passes, and each rule names a fault made in the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import SharedSessions
from gdb_sme.linux.audit import RULES
from tests.qemu.fault import answer, assert_named, entry, overwritten, rules, word

C = 1 << 47
RW, NX = 1 << 1, 1 << 63
DIRECT = 0xFFFF888000000000
MIDDLE = DIRECT + 0x10000000
KERNEL_MAP = 0xFFFFFFFF80000000

#: Rules that say nothing on these guests: no KVM, no SEV-ES, no EFI, and long after early boot.
#: test_audit_machines.py has such guests.
ELSEWHERE = {"boot-data-unmapped", "percpu-decrypted", "ghcb-decrypted", "efi-runtime"}


def test_early_boot_passes_and_boot_data_left_mapped_does_not(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="start_kernel")
    assert session.gdb.run("sme audit").error is None
    assert rules(session)["boot-data-unmapped"]["verdict"] == "pass"
    assert rules(session)["early-pmd-flags"]["verdict"] == "pass"
    # sme_map_bootdata() had mapped this; its table is still there, its pmd is zero again.
    va = DIRECT + 0x14000
    pa, raw = entry(session, va)
    assert raw == 0
    with overwritten(session, pa, 0xE3):
        (place,) = rules(session)["boot-data-unmapped"]["places"]
    assert (int(place["va"], 16), int(place["entry_pa"], 16)) == (DIRECT, pa)
    assert session.gdb.run("sme audit").error is None


@pytest.mark.parametrize(
    ("image", "encryption", "settings"),
    [
        # In this order the last two are still there for the tests below.
        ("debian-6.1", "sev", {}),
        ("debian-6.12", "sme", {}),
        ("debian-6.1", "sme", {"c_bit": 51, "la57": True, "memory": "4G"}),
        ("debian-6.12", "sev", {}),
        ("debian-6.1", "sme", {}),
    ],
)
def test_a_stock_kernel_passes(
    booted: SharedSessions, image: str, encryption: str, settings: dict[str, Any]
) -> None:
    session = booted(image, encryption, until="shell", **settings)
    said = session.gdb.run("sme audit")
    assert said.error is None, said.output
    verdicts = {name: each["verdict"] for name, each in rules(session).items()}
    silent = ELSEWHERE | ({"firmware-tables"} if encryption == "sev" else set())
    # In the idle task of a kernel thread init_top_pgt may be the only root.
    assert {n for n, v in verdicts.items() if v == "n/a"} - {"kernel-half-shared"} == silent
    assert {v for n, v in verdicts.items() if n not in silent} <= {"pass", "n/a"}


def _value(expression: str) -> Callable[[Session], int]:
    return lambda session: session.gdb.evaluate(f"(unsigned long)({expression})")


def _user(session: Session) -> int:
    return int(answer(session, "sme dump --user-pages --encrypted")["ranges"][0]["start"], 16)


def _stack(session: Session) -> int:
    return int(answer(session, "sme dump --region vmalloc --encrypted")["ranges"][0]["start"], 16)


def _firmware(session: Session) -> int:
    ranges = answer(session, "sme dump --region vmalloc --unencrypted")["ranges"]
    return next(int(each["start"], 16) for each in ranges if int(each["pa"], 16) == 0xF5000)


def _swiotlb(session: Session) -> int:
    pool = "" if session.gdb.run("print io_tlb_default_mem.start").error is None else "defpool."
    return DIRECT + session.gdb.evaluate(f"io_tlb_default_mem.{pool}start")


def _table_page(session: Session) -> int:
    level = answer(session, f"sme pte {MIDDLE:#x}")["levels"][1]
    return DIRECT + int(level["table_pa"], 16)


#: Rule: an address, how many levels above its leaf, and the bits that are flipped there.
ENTRIES: dict[str, tuple[Callable[[Session], int], int, int]] = {
    "direct-map-encrypted": (lambda _: MIDDLE, 0, C),
    "table-entries-encrypted": (lambda _: MIDDLE, 1, C),
    "kernel-half-shared": (lambda _: MIDDLE, 2, C),
    "tables-well-formed": (lambda _: MIDDLE, 0, 1 << 13),
    "table-pages-encrypted": (_table_page, 0, C),
    "kernel-text-encrypted": (_value("&_text"), 0, C),
    "kernel-data-encrypted": (_value("&linux_banner"), 0, C),
    "no-writable-code": (_value("&_text"), 0, RW),
    "bss-decrypted": (_value("&__start_bss_decrypted"), 0, C),
    "kernel-memory-encrypted": (lambda _: 0xFFFFEA0000000000, 0, C),
    "views-agree": (lambda _: 0xFFFFEA0000000000, 0, C),
    "lower-half-encrypted": (_user, 0, C),
    "swiotlb-decrypted": (_swiotlb, 0, C),
    "dma-pools-decrypted": (
        _value("((struct gen_pool_chunk *)atomic_pool_kernel->chunks.next)->start_addr"), 0, C,
    ),
    "trampoline": (_value("real_mode_header"), 0, C),
    "mmio-decrypted": (lambda _: 0xFFFFFFFFFF5FD000, 0, C),
    "firmware-tables": (_firmware, 0, C),
    "vga-decrypted": (lambda _: DIRECT + 0xB8000, 0, C),
}  # fmt: skip
VARIABLES = {
    "early-pmd-flags": ("&early_pmd_flags", C),
    "protection-map": ("&protection_map[3]", C),
    "masks-agree": ("&__supported_pte_mask", C),
}


def test_every_rule_is_broken_somewhere() -> None:
    covered = {*ENTRIES, *VARIABLES, "cr3", "ioremaps-known"}
    assert {rule.name for rule in RULES} == covered | ELSEWHERE


GUESTS = [("debian-6.1", "sme"), ("debian-6.12", "sev")]


@pytest.fixture(params=GUESTS, ids="-".join)
def guest(request: pytest.FixtureRequest, booted: SharedSessions) -> Session:
    return booted(*request.param, until="shell")


@pytest.mark.parametrize("rule", ENTRIES)
def test_a_wrong_entry_is_found_and_named(guest: Session, rule: str) -> None:
    if rule == "firmware-tables" and rules(guest, rule)[rule]["verdict"] == "n/a":
        return  # under SEV both ways are right
    where, up, bits = ENTRIES[rule]
    va = where(guest)
    assert_named(guest, rule, va, entry(guest, va, up), bits)


@pytest.mark.parametrize("rule", VARIABLES)
def test_a_wrong_variable_is_found_and_named(guest: Session, rule: str) -> None:
    expression, bits = VARIABLES[rule]
    pa = guest.gdb.evaluate(f"(unsigned long){expression}") - KERNEL_MAP
    with overwritten(guest, pa, word(guest, pa) ^ bits):
        said = guest.gdb.run(f"sme audit {rule}")
        (place,) = rules(guest, rule)[rule]["places"]
    assert said.error == f"sme audit: 1 rule fails: {rule}"
    assert int(place["pa"], 16) == pa
    assert guest.gdb.run(f"sme audit {rule}").error is None


def test_a_device_mapped_outside_every_area_is_found(guest: Session) -> None:
    va = _stack(guest)
    pa, raw = entry(guest, va)
    with overwritten(guest, pa, 0xFEB00000 | raw & (NX | 0xFFF)):
        (place,) = rules(guest, "ioremaps-known")["ioremaps-known"]["places"]
    assert (int(place["va"], 16), int(place["pa"], 16)) == (va, 0xFEB00000)


def test_a_cr3_without_the_c_bit_is_found(guest: Session) -> None:
    value = guest.gdb.evaluate("$cr3")
    assert value & C
    try:
        guest.gdb.execute(f"set $cr3 = ($cr3 & 0) | {value & ~C:#x}")
        (place,) = rules(guest, "cr3")["cr3"]["places"]
    finally:
        guest.gdb.execute(f"set $cr3 = ($cr3 & 0) | {value:#x}")
    assert int(place["raw"], 16) == value & ~C
    assert "the C-bit is missing" in place["detail"]
    assert guest.gdb.run("sme audit cr3").error is None


def test_ctrl_c_gives_the_prompt_back_and_leaves_the_stub_as_it_was(guest: Session) -> None:
    going = guest.gdb.begin("python while True: gdb.execute('sme audit', to_string=True)")
    going.begun()
    guest.gdb.interrupt()
    assert going.result().error is not None
    assert 'received: "0"' in guest.gdb.execute("maint packet qqemu.PhyMemMode")
    assert guest.gdb.run("sme audit").error is None


def test_a_person_s_mistakes(guest: Session) -> None:
    assert guest.gdb.run("sme audit no-such-rule").error == (
        "sme audit: there is no rule 'no-such-rule'; see: sme audit --rules"
    )
    listed = guest.gdb.execute("sme audit --rules")
    assert all(rule.name in listed and rule.source in listed for rule in RULES)

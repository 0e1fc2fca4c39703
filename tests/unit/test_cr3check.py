# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest

from gdb_sme.errors import SymbolError, TargetError
from gdb_sme.linux.cr3check import CpuCheck, check_cr3
from gdb_sme.linux.kernel import Kernel
from gdb_sme.render import cr3 as view
from tests.unit.boot_kernel import (
    EARLY_PGD,
    FREEING,
    IDENTITY_PGD,
    LOW,
    RUNNING,
    TASK_PGD,
    TRAMPOLINE_PGD,
    WORKAREA,
    Booting,
)
from tests.unit.fake_kernel import IMAGE_PA, INIT_PGD, OFFSETS, TEXT, C


def checks(machine: Booting, expect: str | None = None) -> tuple[CpuCheck, ...]:
    return check_cr3(machine.kernel(), expect).cpus


def verdicts(check: CpuCheck) -> tuple[str, str]:
    assert check.address is not None
    assert check.c_bit is not None
    return check.address.verdict.value, check.c_bit.verdict.value


def test_early_boot() -> None:
    (check,) = checks(Booting())
    assert verdicts(check) == ("ok", "ok")
    assert check.conclusion == "CR3 == __sme_pa(early_top_pgt)"
    assert check.passed


@pytest.mark.parametrize(("rip", "cs"), [(TEXT, 0x10), (0x7F0000001000, 0x33)])
def test_a_kernel_that_the_symbols_are_not_of_is_no_verdict(rip: int, cs: int) -> None:
    """Also when the CPU stands in user space."""
    machine = Booting()
    machine.run_task()
    machine.rip, machine.cpu["cs"] = rip, cs
    machine.write(IMAGE_PA + OFFSETS["linux_banner"], b"something else")
    kernel = machine.kernel(place=False)
    assert kernel.image is None
    with pytest.raises(SymbolError):
        check_cr3(kernel)


def test_the_older_names() -> None:
    machine = Booting()
    for today, before in (
        ("early_top_pgt", "early_level4_pgt"),
        ("init_top_pgt", "init_level4_pgt"),
    ):
        machine.symbols._addresses[before] = machine.symbols._addresses.pop(today)
    (check,) = checks(machine, "early_top_pgt")
    assert check.conclusion == "CR3 == __sme_pa(early_level4_pgt)"


@pytest.mark.parametrize(
    ("cr3", "expected", "why"),
    [
        (EARLY_PGD, ("ok", "FAIL"), "the C-bit is missing (__early_make_pgtable strips"),
        (0x5000 | C, ("FAIL", "ok"), "0x5000 is no known table, expected early_top_pgt (0x121"),
        (0x5000, ("FAIL", "FAIL"), "expected early_top_pgt (0x1210000); the C-bit is missing"),
        (INIT_PGD | C, ("FAIL", "ok"), "that of init_top_pgt, not of early_top_pgt"),
    ],
)  # fmt: skip
def test_a_wrong_cr3_in_early_boot(cr3: int, expected: tuple[str, str], why: str) -> None:
    machine = Booting()
    machine.cr3 = cr3
    (check,) = checks(machine)
    assert verdicts(check) == expected
    assert not check.passed
    assert check.conclusion.startswith("CR3 != __sme_pa(early_top_pgt): ")
    assert why in check.conclusion


def test_going_back_to_early_top_pgt_is_for_kasan_init_alone() -> None:
    machine = Booting()
    machine.take_over()
    machine.cr3 = EARLY_PGD | C
    (check,) = checks(machine)
    assert verdicts(check) == ("FAIL", "ok")
    machine.symbols._addresses["kasan_init"] = machine.rip - 8
    (check,) = checks(machine)
    assert check.passed


def test_without_encryption_a_c_bit_is_wrong() -> None:
    machine = Booting(mask=0)
    (check,) = checks(machine)
    assert check.conclusion == "CR3 == __pa(early_top_pgt)"
    machine.cr3 = EARLY_PGD | C
    (check,) = checks(machine)
    assert verdicts(check) == ("ok", "FAIL")
    assert "the C-bit is set although sme_me_mask is 0" in check.conclusion


@pytest.mark.parametrize(
    ("cr3", "kind"), [(IDENTITY_PGD, "identity map"), (WORKAREA + 0x202000, "sme_workarea")]
)
def test_tables_before_the_switch_have_no_c_bit_by_design(cr3: int, kind: str) -> None:
    machine = Booting()
    machine.cr3, machine.rip = cr3, LOW
    (check,) = checks(machine)
    assert verdicts(check) == ("ok", "by design")
    assert check.table is not None
    assert check.table.name == kind
    assert check.conclusion.startswith(f"CR3 is not one of the kernel's tables yet: {kind}, ")
    (check,) = checks(machine, "early")
    assert not check.passed


def test_the_trampoline() -> None:
    machine = Booting()
    machine.take_over()
    machine.others = (TRAMPOLINE_PGD,)
    first, second = checks(machine)
    assert first.passed
    assert verdicts(second) == ("ok", "by design")
    assert [check.passed for check in checks(machine, "init")] == [True, False]


def test_a_task() -> None:
    machine = Booting()
    machine.run_task()
    (check,) = checks(machine)
    assert check.passed
    assert check.address is not None
    assert check.address.reason == "= __pa(loaded_mm->pgd), task 77 (sh)"
    machine.cr3 = TASK_PGD
    (check,) = checks(machine)
    assert verdicts(check) == ("ok", "FAIL")
    assert "__early_make_pgtable" not in check.conclusion
    machine.cr3 = TASK_PGD | 0x1000 | C
    (check,) = checks(machine)
    assert check.table is not None
    assert "user half of page-table isolation" in check.table.detail


@pytest.mark.parametrize("state", [FREEING, RUNNING])
def test_early_top_pgt_is_gone_after_boot(state: int) -> None:
    machine = Booting()
    machine.run_task()
    machine.state(state)
    machine.cr3 = EARLY_PGD | C
    (check,) = checks(machine)
    assert check.table is None
    assert not check.passed
    for name in ("early", "early_top_pgt", "early_level4_pgt"):
        with pytest.raises(SymbolError, match=r"freed with the rest of \.init memory after boot"):
            checks(machine, name)


def test_what_cannot_be_checked_says_so() -> None:
    machine = Booting()
    machine.cpu["cr0"] = 0x10
    (check,) = checks(machine)
    assert check.conclusion == "paging is off (real mode); CR3 is not in use"
    machine.cpu["cr0"] = 0x11
    (check,) = checks(machine)
    assert check.conclusion == "paging is off (protected mode); CR3 is not in use"
    with pytest.raises(SymbolError, match="no symbol nowhere in the kernel's symbol file"):
        checks(machine, "nowhere")


def test_symbols_that_do_not_fit() -> None:
    machine = Booting()
    machine.symbols._addresses["__start_notes"] = TEXT + 0x4000
    machine.symbols._addresses["__stop_notes"] = TEXT + 0x4024
    machine.symbols.build_id = "aa" * 20
    owner = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
    machine.write(0x1004000, owner + b"\xbb" * 20)
    kernel = machine.kernel(place=False)
    with pytest.raises(SymbolError, match=f"build-id {'aa' * 20}, the guest has {'bb' * 20}"):
        check_cr3(kernel)
    machine.write(0x1004000, owner + b"\xaa" * 20)
    assert check_cr3(machine.kernel(place=False)).passed
    for name in ("_text", "_end"):
        del machine.symbols._addresses[name]
    with pytest.raises(SymbolError, match=r"no kernel symbols; load them with: file vmlinux"):
        check_cr3(machine.kernel(place=False))


def test_the_screen_and_the_document() -> None:
    machine = Booting()
    machine.cr3 = EARLY_PGD
    report = check_cr3(machine.kernel())
    assert str(view.text(report)).split("\n") == [
        "CPU 0  0x0000000001210000  -",
        "  address  0x01210000  = __pa(early_top_pgt)"
        "                                                             ok",
        "  C-bit    clear       the C-bit is missing"
        " (__early_make_pgtable strips the mask and would not notice)  FAIL",
        "CR3 != __sme_pa(early_top_pgt): the C-bit is missing"
        " (__early_make_pgtable strips the mask and would not notice)",
    ]
    document = view.payload(report)
    assert document["passed"] is False
    assert document["sme_me_mask"] == "0x0000800000000000"
    assert document["cpus"] == [
        {
            "cpu": 0,
            "cr3": "0x0000000001210000",
            "pa": "0x1210000",
            "c_bit": False,
            "table": "early_top_pgt",
            "detail": None,
            "expected": "early_top_pgt",
            "passed": False,
            "address": {
                "verdict": "ok",
                "expected": "0x1210000",
                "actual": "0x1210000",
                "reason": "= __pa(early_top_pgt)",
            },
            "c_bit_check": {
                "verdict": "FAIL",
                "expected": "0x800000000000",
                "actual": "0x0",
                "reason": "the C-bit is missing"
                " (__early_make_pgtable strips the mask and would not notice)",
            },
            "conclusion": "CR3 != __sme_pa(early_top_pgt): the C-bit is missing"
            " (__early_make_pgtable strips the mask and would not notice)",
        }
    ]


def test_a_target_without_cr3() -> None:
    machine = Booting()
    found = machine.kernel()
    blind = Kernel(machine, machine.symbols, tuple(replace(c, cr3=None) for c in found.cpus))
    blind.image = found.image
    (check,) = check_cr3(blind).cpus
    assert check.cr3 is None
    assert "this target gives no CR3" in check.conclusion
    with pytest.raises(TargetError, match="this target gives no CR3"):
        check_cr3(blind, "early")

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme cr3` on real kernels: at each stage, on each CPU, and with CR3 broken by the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions

C47 = 1 << 47


def cr3(session: Session, *options: str) -> dict[str, Any]:
    """The document, also of a check that fails."""
    result = session.gdb.run(" ".join(["sme cr3 --json", *options]))
    return dict(json.loads(result.output), error=result.error)


def verdicts(check: dict[str, Any]) -> tuple[str, str]:
    return check["address"]["verdict"], check["c_bit_check"]["verdict"]


def pa_of(session: Session, symbol: str) -> int:
    """By the link address: no KASLR, and loaded where linked."""
    return session.gdb.evaluate(f"(unsigned long)&{symbol} - 0xffffffff80000000")


@contextmanager
def broken(session: Session, expression: str) -> Iterator[None]:
    """CR3 set to ``expression``; put back afterwards."""
    before = session.gdb.evaluate("$cr3 & ~0")
    session.gdb.execute(f"set $cr3 = {expression}")
    try:
        yield
    finally:
        session.gdb.execute(f"set $cr3 = ($cr3 & 0) | {before:#x}")


@pytest.fixture(scope="module", params=["debian-6.1", "debian-6.12"])
def early(request: pytest.FixtureRequest, booted: SharedSessions) -> Session:
    return booted(request.param, "sme", until="start_kernel")


@pytest.fixture
def running(booted: SharedSessions) -> Session:
    """User space on two CPUs."""
    return booted("debian-6.12", "sme", until="shell", smp=2)


def test_early_boot_is_on_early_top_pgt(early: Session) -> None:
    report = cr3(early)
    (check,) = report["cpus"]
    assert report["passed"]
    assert verdicts(check) == ("ok", "ok")
    assert check["table"] == check["expected"] == "early_top_pgt"
    assert int(check["cr3"], 16) == pa_of(early, "early_top_pgt") | C47
    assert check["conclusion"] == "CR3 == __sme_pa(early_top_pgt)"


def test_a_cr3_that_lost_its_c_bit_fails(early: Session) -> None:
    with broken(early, "$cr3 & ~(1ull << 47)"):
        report = cr3(early)
        (check,) = report["cpus"]
        assert not report["passed"]
        assert verdicts(check) == ("ok", "FAIL")
        assert check["c_bit_check"]["expected"] == hex(C47)
        assert check["c_bit_check"]["actual"] == "0x0"
        assert "the C-bit is missing" in check["conclusion"]
        assert "__early_make_pgtable strips the mask" in check["conclusion"]
        # Without --expect a script reads "passed"; with it the command fails.
        assert report["error"] is None
        assert cr3(early, "--expect early")["error"] == (
            "sme cr3: CR3 is not __sme_pa of the expected table (early) on CPU 0"
        )
    assert cr3(early)["passed"]


def test_a_cr3_that_points_nowhere_known_fails(early: Session) -> None:
    with broken(early, f"($cr3 & 0) | {C47 | 0x5000:#x}"):
        (check,) = cr3(early)["cpus"]
        assert verdicts(check) == ("FAIL", "ok")
        assert check["table"] is None
        assert "0x5000 is no known table, expected early_top_pgt" in check["conclusion"]


def test_init_top_pgt_before_its_turn_fails(early: Session) -> None:
    with broken(early, f"($cr3 & 0) | {C47 | pa_of(early, 'init_top_pgt'):#x}"):
        (check,) = cr3(early)["cpus"]
        assert verdicts(check) == ("FAIL", "ok")
        assert check["table"] == "init_top_pgt"
        assert "that of init_top_pgt, not of early_top_pgt" in check["conclusion"]


def test_expect(early: Session) -> None:
    assert cr3(early, "--expect early")["error"] is None
    assert cr3(early, "--expect early_level4_pgt")["error"] is None  # its name before 4.13
    for other in ("init", "init_top_pgt", "init_level4_pgt", "level3_kernel_pgt"):
        report = cr3(early, f"--expect {other}")
        assert report["error"] is not None, other
        assert report["cpus"][0]["address"]["verdict"] == "FAIL"
    unknown = early.gdb.run("sme cr3 --expect no_such_pgt")
    assert unknown.output == ""
    assert unknown.error == (
        "sme cr3: no symbol no_such_pgt in the kernel's symbol file; expect another table"
    )


def test_on_the_way_to_early_top_pgt(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="reset")
    gdb = session.gdb

    def run_to(location: str) -> dict[str, Any]:
        gdb.execute(f"thbreak {location}")
        gdb.execute("continue")
        return dict(cr3(session)["cpus"][0])

    reset = cr3(session)["cpus"][0]
    assert reset["conclusion"] == "paging is off (real mode); CR3 is not in use"

    decompressor = run_to("*0x100200")
    assert decompressor["table"] == "identity map"
    assert decompressor["passed"]

    entry = run_to(f"*{pa_of(session, 'startup_64'):#x}")
    assert (entry["table"], entry["passed"]) == ("identity map", True)
    assert entry["c_bit_check"]["verdict"] == "ok"  # no mask is known yet

    encrypting = run_to(f"*{pa_of(session, 'sme_encrypt_kernel'):#x}")
    assert encrypting["table"] == "identity map"
    assert encrypting["c_bit_check"]["verdict"] == "by design"

    run_to(f"*{pa_of(session, 'sme_encrypt_execute'):#x}")
    # RCX: the workarea, where a copy of __enc_copy lies behind a page of stack; 16 bytes on, past
    # the load of CR3 with the workarea's tables (arch/x86/mm/mem_encrypt_boot.S).
    copy, pgd = gdb.evaluate("$rcx") + 0x1000 + 16, gdb.evaluate("$r8")
    workarea = run_to(f"*{copy:#x}")
    assert workarea["table"] == "sme_workarea"
    assert verdicts(workarea) == ("ok", "by design")
    assert int(workarea["cr3"], 16) == pgd == gdb.evaluate("$cr3 & ~0")

    start = run_to("x86_64_start_kernel")
    assert (start["table"], start["passed"]) == ("early_top_pgt", True)
    assert start["c_bit"] is True

    gdb.execute("thbreak init_mem_mapping")
    gdb.execute("continue")
    before = cr3(session)["cpus"][0]
    assert (before["table"], before["passed"]) == ("early_top_pgt", True)
    gdb.execute("finish")
    after = cr3(session)["cpus"][0]
    assert (after["table"], after["passed"]) == ("init_top_pgt", True)
    with broken(session, f"($cr3 & 0) | {C47 | pa_of(session, 'early_top_pgt'):#x}"):
        late = cr3(session)["cpus"][0]
        assert late["address"]["verdict"] == "FAIL"
        assert "that of early_top_pgt, not of init_top_pgt" in late["conclusion"]


def test_the_trampoline_has_no_c_bit_by_design(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="reset", smp=2)
    gdb = session.gdb
    gdb.execute("thbreak do_boot_cpu")
    gdb.execute("continue")
    # The AP comes out of the trampoline at a kernel address, on the trampoline's tables.
    gdb.execute("thbreak secondary_startup_64")
    gdb.execute("continue")
    assert gdb.evaluate("$_thread") == 2
    report = cr3(session)
    first, second = report["cpus"]
    assert (first["table"], first["passed"]) == ("init_top_pgt", True)
    assert second["table"] == "trampoline_pgd"
    assert second["c_bit"] is False
    assert second["c_bit_check"]["verdict"] == "by design"
    assert report["passed"]
    gdb.execute("thbreak start_secondary")
    gdb.execute("continue")
    second = cr3(session)["cpus"][1]
    assert (second["table"], second["c_bit"], second["passed"]) == ("init_top_pgt", True, True)
    assert cr3(session, "--expect init")["error"] is None
    # On CPU 1 alone:
    assert gdb.evaluate("$_thread") == 2
    with broken(session, "$cr3 & ~(1ull << 47)"):
        report = cr3(session, "--expect init")
        assert [check["passed"] for check in report["cpus"]] == [True, False]
        assert report["error"] is not None
        assert report["error"].endswith("on CPU 1")


def test_user_space_on_every_cpu(running: Session) -> None:
    report = cr3(running)
    assert report["passed"]
    assert len(report["cpus"]) == 2
    for check in report["cpus"]:
        assert verdicts(check) == ("ok", "ok")
        assert check["table"] in ("loaded_mm->pgd", "init_top_pgt")
        assert check["c_bit"] is True


@pytest.mark.parametrize("cpu", [0, 1])
def test_a_lost_c_bit_is_found_on_either_cpu(running: Session, cpu: int) -> None:
    running.gdb.execute(f"thread {cpu + 1}")
    try:
        with broken(running, "$cr3 & ~(1ull << 47)"):
            checks = cr3(running)["cpus"]
            assert [check["passed"] for check in checks] == [cpu != 0, cpu != 1]
            assert verdicts(checks[cpu]) == ("ok", "FAIL")
        with broken(running, f"($cr3 & 0) | {C47 | 0x7000:#x}"):
            checks = cr3(running)["cpus"]
            assert verdicts(checks[cpu]) == ("FAIL", "ok")
        assert cr3(running)["passed"]
    finally:
        running.gdb.execute("thread 1")


def test_early_top_pgt_is_not_compared_after_boot(running: Session) -> None:
    # A CR3 that holds the freed table's address is no known table any more.
    early_pa = pa_of(running, "early_top_pgt")
    with broken(running, f"($cr3 & 0) | {C47 | early_pa:#x}"):
        check = cr3(running)["cpus"][0]
        assert check["table"] is None
        assert check["address"]["verdict"] == "FAIL"
    for name in ("early", "early_top_pgt", "early_level4_pgt"):
        result = running.gdb.run(f"sme cr3 --expect {name}")
        assert result.output == ""
        assert result.error is not None
        assert "freed with the rest of .init memory after boot" in result.error


def test_encryption_off_wants_no_c_bit(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "none", until="start_kernel")
    (check,) = cr3(session)["cpus"]
    assert verdicts(check) == ("ok", "ok")
    assert check["conclusion"] == "CR3 == __pa(early_top_pgt)"


def test_the_patch_itself(booted: SharedSessions) -> None:
    """Today's name is found in a kernel that has yesterday's."""
    session = booted("rfc-v2", "sme", until="start_kernel")
    (check,) = cr3(session)["cpus"]
    assert check["conclusion"] == "CR3 == __sme_pa(early_level4_pgt)"
    for name in ("early", "early_top_pgt", "early_level4_pgt"):
        assert cr3(session, f"--expect {name}")["error"] is None

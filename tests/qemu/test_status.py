# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme status` at every stage of the boot, from the first instruction after reset on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions

C47 = 1 << 47


def status(session: Session) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(session.gdb.execute("sme status --json"))
    return document


def screen(session: Session) -> dict[str, str]:
    """The lines of the screen by their labels."""
    lines = session.gdb.execute("sme status").splitlines()
    return {label.strip(): text for label, text in (re.split(r"  +", a, maxsplit=1) for a in lines)}


def go(session: Session, location: str) -> None:
    session.gdb.execute(f"thbreak {location}")
    session.gdb.execute("continue")


def physical(session: Session, symbol: str) -> str:
    return f"*{session.gdb.evaluate(f'(unsigned long)&{symbol}') - 0xFFFFFFFF80000000:#x}"


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
def test_from_reset_to_init_top_pgt(image: str, boot: OwnSessions) -> None:
    session = boot(image, "sme", until="reset", c_bit=51)
    mask = 1 << 51
    seen = []

    def look() -> dict[str, Any]:
        found = status(session)
        seen.append(found["stage"])
        # The screen has the same stage, and no error at any of them.
        assert screen(session)["stage"]
        return found

    reset = look()
    assert reset["scheme"] == "none"
    assert reset["kernel"] is None
    assert "not in memory yet" in reset["no_kernel"]
    assert screen(session)["encryption"].startswith("unknown")

    go(session, "*0x100000")
    look()
    go(session, "*0x100200")
    look()

    go(session, physical(session, "startup_64"))
    entry = look()
    assert (entry["scheme"], entry["sme_me_mask"]) == ("none", "0x0")
    assert entry["early_pmd_flags"] == "0xe3"
    assert int(entry["kernel"]["pa"], 16) == 0x1000000
    assert screen(session)["encryption"] == "none  sme_me_mask is 0"

    go(session, physical(session, "__startup_64"))
    decided = look()
    assert (decided["scheme"], decided["c_bit"]) == ("sme", 51)
    assert decided["c_bit_source"] == "the kernel's variables"
    assert int(decided["sme_me_mask"], 16) == mask
    assert int(decided["physical_mask"], 16) == (1 << 52) - 1 & ~mask
    assert decided["lost_address_bits"] == 1
    assert decided["stage_detail"] == "after sme_enable"

    go(session, "x86_64_start_kernel")
    before = look()
    assert before["stage_detail"] == "before reset_early_page_tables"
    assert int(before["early_pmd_flags"], 16) == 0x80000000000000E3
    assert screen(session)["early_pmd_flags"].endswith("no ENC yet")

    go(session, "sme_early_init")
    assert look()["stage_detail"] == "after reset_early_page_tables"
    session.gdb.execute("finish")
    assert int(look()["early_pmd_flags"], 16) == 0x80000000000000E3 | mask
    assert "no ENC" not in screen(session)["early_pmd_flags"]

    go(session, "init_mem_mapping")
    look()
    session.gdb.execute("finish")
    initial = look()
    assert initial["cpus"][0]["table"] == "init_top_pgt"
    assert seen == [
        "reset", "protected_mode", "decompressor", "identity", "identity",
        "early", "early", "early", "early", "init",
    ]  # fmt: skip


def test_real_mode(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "none", until="reset")
    session.gdb.execute("stepi")
    found = status(session)
    assert found["stage"] == "real_mode"
    assert found["cpus"][0]["c_bit"] is False
    assert screen(session)["paging"] == "not in long mode"


@pytest.fixture
def running(booted: SharedSessions) -> Session:
    return booted("debian-6.12", "sme", until="shell", smp=2)


def test_the_running_system(running: Session) -> None:
    found = status(running)
    assert (found["stage"], found["scheme"], found["c_bit"], found["active"]) == (
        "running", "sme", 47, True,
    )  # fmt: skip
    assert [cpu["cpu"] for cpu in found["cpus"]] == [0, 1]
    assert all(cpu["c_bit"] for cpu in found["cpus"])
    # 52 bits that QEMU announces, less the 5 that CPUID 8000_001F says encryption costs.
    assert found["x86_phys_bits"] == 47
    assert int(found["early_pmd_flags"], 16) == 0x80000000000000E3 | C47
    assert found["levels"] == 4
    own = running.machine.config.image.build_id
    assert found["build_id"] == own
    assert screen(running)["symbols"].endswith("match the guest")
    ram = [(int(start, 16), int(end, 16)) for start, end in found["ram"]]
    assert (0x100000, 512 << 20) in [(max(start, 0x100000), end) for start, end in ram]


def test_registers_are_those_of_qemu(running: Session) -> None:
    for number, cpu in enumerate(status(running)["cpus"]):
        answer = running.machine.qmp.execute(
            "human-monitor-command",
            **{"command-line": "info registers", "cpu-index": number},
        )
        for name in ("cr0", "cr3", "cr4", "efer"):
            match = re.search(rf"{name.upper()} ?= ?([0-9a-f]+)", answer)
            assert match
            assert int(cpu[name], 16) == int(match[1], 16), name


def test_user_mode(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="shell")
    session.shell("true")  # it runs; the programs that start it have been left by execve()
    # Where user space enters the kernel, and one level up again: an address of the shell's.
    session.gdb.execute("thbreak entry_SYSCALL_64")
    pending = session.gdb.begin("continue")
    session.machine.console.send("echo")
    pending.result()
    user = session.gdb.evaluate("$rcx")
    session.gdb.execute(f"thbreak *{user:#x}")
    session.gdb.execute("continue")
    assert session.gdb.evaluate("$cs & 3") == 3
    found = status(session)
    assert (found["stage"], found["stage_detail"]) == ("running", "CPU 0 in user mode")
    (check,) = json.loads(session.gdb.execute("sme cr3 --json"))["cpus"]
    assert check["passed"]
    assert re.fullmatch(r"task \d+ \((sh|init|exe)\)", check["detail"])
    walk = json.loads(session.gdb.execute("sme pte --json $rip"))
    assert (walk["region"], walk["encrypted"], walk["symbol"]) == ("user space", True, None)
    assert walk["permissions"] == {"write": False, "user": True, "execute": True}


def test_without_encryption_it_says_none(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "none", until="shell")
    found = status(session)
    assert (found["scheme"], found["active"], found["c_bit"]) == ("none", False, None)
    assert found["lost_address_bits"] == 0
    lines = screen(session)
    assert lines["encryption"] == "none  sme_me_mask is 0"
    assert lines["physical_mask"].endswith("complete: 52 bits")
    assert " -  " in lines["CPU 0"]


def test_sev(booted: SharedSessions) -> None:
    session = booted("debian-6.12", "sev", until="start_kernel")
    found = status(session)
    assert (found["scheme"], found["sev_status"], found["c_bit"]) == ("sev", "0x1", 47)
    assert screen(session)["AMD SEV"].startswith("active  C-bit 47")


def test_kaslr(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell", kaslr=True)
    found = status(session)
    (line,) = session.shell("grep ' _text$' /proc/kallsyms").splitlines()
    assert int(found["kernel"]["va"], 16) == int(line.split()[0], 16)
    assert int(found["kernel"]["koff"], 16) > 0
    assert found["stage"] == "running"
    report = json.loads(session.gdb.execute("sme cr3 --json"))
    assert report["passed"]


def test_5_levels(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell", c_bit=51, la57=True)
    found = status(session)
    assert (found["levels"], found["c_bit"]) == (5, 51)
    assert screen(session)["paging"] == "5 levels"

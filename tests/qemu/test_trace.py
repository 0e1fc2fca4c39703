# SPDX-License-Identifier: GPL-2.0-or-later
"""The timeline of Debian's kernels, against what their source says must happen.

The order is that of arch/x86/kernel/head_64.S and head64.c, arch/x86/mm/mem_encrypt_identity.c and
mem_encrypt_amd.c, 6.1 and 6.12.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions

DEADLINE = 240.0
KM = 0xFFFFFFFF80000000
NX = 1 << 63


@dataclass
class Trace:
    """What `sme trace show --json` said."""

    said: dict[str, Any]

    @property
    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.said["events"]
        return events

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def writes(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.of("write") if event["name"] == name]

    def number(self, moment: str) -> int:
        """Number of the one moment of that name."""
        (found,) = (event for event in self.of("moment") if event["name"] == moment)
        return int(found["number"])

    @property
    def verdicts(self) -> dict[str, str]:
        return {each["rule"]: each["outcome"] for each in self.said["verdicts"]}


def shown(session: Session) -> Trace:
    return Trace(json.loads(session.gdb.execute("sme trace show --json")))


def trace(session: Session, until: str) -> Trace:
    """From reset to ``until``, where a breakpoint of the user's stands as well."""
    session.gdb.execute(f"sme trace start --quiet --until {until}")
    session.gdb.execute(f"hbreak {until}")
    session.gdb.execute("continue", DEADLINE)
    return shown(session)


def value(event: dict[str, Any], name: str) -> int:
    return int(event[name], 16)


def check(found: Trace, session: Session, mask: int, sme: bool, five_level: bool = False) -> None:
    """All that holds for both kernels, with SME and with SEV."""
    said = found.said
    assert said["passed"]
    assert said["complete"]
    assert found.verdicts == dict.fromkeys(
        ("early-pmd-flags", "cr3", "early-tables", "protection-map"), "ok"
    )
    assert session.gdb.run("sme trace check").error is None
    assert all(event["cpu"] == 0 for event in found.events)
    assert [event["number"] for event in found.events] == list(range(1, len(found.events) + 1))

    # Every write, decoded, with its function and line, once each: none while unpacking.
    (written,) = found.writes("sme_me_mask")
    assert (value(written, "old"), value(written, "new")) == (0, mask)
    assert written["function"].startswith("sme_enable+")
    assert written["source"]
    assert written["stage"].startswith("startup_64, at identity addresses")
    (physical,) = found.writes("physical_mask")
    assert (value(physical, "old"), value(physical, "new")) == (2**52 - 1, 2**52 - 1 & ~mask)
    assert physical["function"].startswith("sme_enable+")
    (cc_mask,) = found.writes("cc_mask")
    assert value(cc_mask, "new") == mask
    status = [value(event, "new") for event in found.writes("sev_status")]
    assert status == ([] if sme else [1])

    nx, enc = found.writes("early_pmd_flags")
    assert (value(nx, "old"), value(nx, "new")) == (0xE3, 0xE3 | NX)
    assert nx["function"].startswith("secondary_startup_64+")
    assert set(nx["new_flags"]) - set(nx["old_flags"]) == {"NX"}
    assert (value(enc, "old"), value(enc, "new")) == (0xE3 | NX, 0xE3 | NX | mask)
    assert enc["function"].startswith("sme_early_init+")
    assert set(enc["new_flags"]) - set(enc["old_flags"]) == {"ENC"}
    assert enc["source"].rpartition("/")[2].startswith("mem_encrypt_amd.c:")
    assert not any(event["noticed"] for event in found.of("write"))

    # The order.
    order = [
        found.number("sme_enable"),
        written["number"],
        physical["number"],
        found.number("__startup_64"),
        found.number("sme_encrypt_kernel"),
        min(event["number"] for event in found.of("fix-up")),
        nx["number"],
        found.number("x86_64_start_kernel"),
        found.number("reset_early_page_tables"),
        found.number("sme_early_init"),
        enc["number"],
        found.number("protection_map receives the mask"),
        found.number("sme_early_init returns"),
        found.number("idt_setup_early_handler"),
        found.number("start_kernel"),
        found.number("init_mem_mapping"),
        found.number("init_top_pgt takes over"),
        found.number("mem_encrypt_init"),
    ]
    assert order == sorted(order)

    # CR3: by name, without the mask on the temporary tables only.
    loads = found.of("cr3")
    assert all(load["right"] for load in loads)
    own = [load for load in loads if not load["by_design"]]
    assert all(value(load, "value") & mask for load in own)
    assert {load["target"] for load in own} == {"early_top_pgt", "init_top_pgt"}
    others = {load["target"] for load in loads if load["by_design"]}
    assert others == ({"sme_workarea"} if sme else others & {"identity map"})
    if sme:
        assert len([load for load in loads if load["by_design"]]) == 2  # the kernel and the initrd
        assert all("copied" in load["function"] for load in loads if load["by_design"])
    reset = next(load for load in own if load["number"] > found.number("reset_early_page_tables"))
    assert reset["number"] < found.number("sme_early_init")
    assert reset["target"] == "early_top_pgt"

    # The fix-ups: what was in the file, and what the kernel made of it.
    tables = {event["of"]: event for event in found.of("fix-up")}
    assert ("level4_kernel_pgt" in tables) == five_level
    assert {"early_top_pgt", "level3_kernel_pgt", "level2_kernel_pgt", "level2_fixmap_pgt"} <= set(
        tables
    )
    assert all(event["without_mask"] == [] for event in tables.values())
    (top,) = (each for each in tables["early_top_pgt"]["entries"] if each["index"] == 511)
    assert not value(top, "before") & mask
    assert value(top, "after") & mask
    decrypted = tables["level2_kernel_pgt"]["by_design"]
    by_index = {
        each["index"]: value(each, "after") for each in tables["level2_kernel_pgt"]["entries"]
    }
    assert decrypted
    assert all(by_index[index] & 1 and not by_index[index] & mask for index in decrypted)

    # Early mappings: none before sme_early_init, all with the mask but the boot parameters of SME.
    faults, by_design = found.of("fault"), found.of("mapping")
    assert faults
    assert min(e["number"] for e in (*faults, *by_design)) > found.number("idt_setup_early_handler")
    assert all(fault["c_bit"] and not fault["refused"] for fault in faults)
    assert all(value(fault, "early_pmd_flags") == 0xE3 | NX | mask for fault in faults)
    assert [event["c_bit"] for event in by_design] == ([False, False, None, None] if sme else [])
    for fault in faults:
        *upper, pmd = fault["entries"]
        assert [each["level"] for each in fault["entries"]] == (
            ["pgd", "p4d", "pud", "pmd"] if five_level else ["pgd", "pud", "pmd"]
        )
        assert all(value(each, "raw") & mask for each in (*upper, pmd))
    # All is taken back, and the session goes on.
    assert said["state"].startswith("ended at rest_init")
    session.gdb.execute("sme emulate off")  # it waits for the other CPUs
    (mine,) = (
        line
        for line in session.gdb.execute("maint info breakpoints").splitlines()
        if "breakpoint" in line and "keep" in line
    )
    assert "rest_init" in mine


@pytest.mark.parametrize(
    ("image", "encryption", "settings"),
    [
        ("debian-6.1", "sme", {}),
        ("debian-6.12", "sme", {"c_bit": 51, "la57": True}),
        ("debian-6.1", "sev", {"c_bit": 51, "la57": True}),
        ("debian-6.12", "sev", {}),
    ],
    ids=["6.1-sme-47-4", "6.12-sme-51-5", "6.1-sev-51-5", "6.12-sev-47-4"],
)
def test_timeline(boot: OwnSessions, image: str, encryption: str, settings: dict[str, Any]) -> None:
    session = boot(image, encryption, **settings)
    mask = 1 << settings.get("c_bit", 47)
    found = trace(session, "rest_init")
    check(found, session, mask, encryption == "sme", settings.get("la57", False))


def test_without_encryption_there_is_no_mask_and_no_verdict_to_fail(boot: OwnSessions) -> None:
    found = trace(boot("debian-6.1"), "start_kernel")
    assert found.said["passed"]
    assert found.writes("sme_me_mask") == []
    assert [value(event, "new") for event in found.writes("early_pmd_flags")] == [0xE3 | NX]
    assert found.verdicts == {}


def test_second_cpu(boot: OwnSessions) -> None:
    session = boot("debian-6.12", "sme", smp=2)
    found = trace(session, "sched_init_smp")
    assert found.said["passed"]
    (load,) = (event for event in found.of("cr3") if event["cpu"] == 1)
    assert load["target"] == "init_top_pgt"
    assert load["c_bit"]
    assert load["table"] == "trampoline_pgd"
    assert value(load, "cr3") & 1 << 47 == 0  # its start, by design
    assert load["function"].startswith("secondary_startup_64")


@pytest.mark.parametrize(
    ("image", "settings"),
    [("debian-6.1", {}), ("debian-6.12", {"c_bit": 51, "la57": True})],
    ids=["6.1-4", "6.12-5"],
)
def test_kaslr_from_reset_to_user_space(
    boot: OwnSessions, image: str, settings: dict[str, Any]
) -> None:
    session = boot(image, "sme", kaslr=True, **settings)
    session.gdb.execute("sme trace start --quiet")
    with session.resumed():
        deadline = time.monotonic() + DEADLINE
        while not session.machine.shell_reached():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    (line,) = session.shell("grep ' x86_64_start_kernel$' /proc/kallsyms").splitlines()
    found = shown(session)
    entered = found.events[found.number("x86_64_start_kernel") - 1]
    assert value(entered, "pc") == int(line.split()[0], 16)
    assert value(entered, "pc") != session.gdb.evaluate("x86_64_start_kernel")
    assert entered["source"].rpartition("/")[2].startswith("head64.c:")
    assert found.said["passed"]
    assert found.said["complete"]
    assert found.verdicts == dict.fromkeys(
        ("early-pmd-flags", "cr3", "early-tables", "protection-map"), "ok"
    )
    assert len(found.writes("early_pmd_flags")) == 2
    assert len([load for load in found.of("cr3") if load["target"] == "sme_workarea"]) == 2
    assert found.number("init_top_pgt takes over")
    assert (
        session.gdb.execute("maint info breakpoints")
        .strip()
        .endswith("No breakpoints or watchpoints.")
    )


def test_symbols_follow_kaslr_while_the_trace_runs(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", kaslr=True)
    session.gdb.execute("sme trace start --quiet --until start_kernel")
    session.gdb.execute(
        "python from gdb_sme.target.entry import run_to_entry;"
        "from gdb_sme.target.relocate import move_symbols_to;"
        "from gdb_sme.target.session import SESSIONS; s = SESSIONS.current();"
        "move_symbols_to(run_to_entry(s.require_stub('x'), s.symbols), s.symbols)"
    )
    session.gdb.execute("hbreak start_kernel")
    session.gdb.execute("continue")
    found = shown(session)
    assert found.said["passed"]
    first, last = found.events[0], found.events[-1]
    assert first["function"] == "sme_enable"
    assert last["function"] == "start_kernel"
    assert value(last, "pc") == session.gdb.evaluate("start_kernel")
    assert all(event["source"] for event in found.events if "copied" not in event["function"])

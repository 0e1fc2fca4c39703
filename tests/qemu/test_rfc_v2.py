# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference kernel: every bug of the review is named in its variant, and nothing in `good`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions

#: Variant: the rule and outcome of every failed verdict, and what one of the texts must say.
BUGS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "static-flags": (
        [("early-pmd-flags", "HAZARD")] * 3,
        r"mapped without the C-bit \(pmd 0x80000000000000e3\), mask already set, "
        "early_pmd_flags never received it",
    ),
    "late-flags": (
        [("early-pmd-flags", "HAZARD")],
        r"fault at 0xffff88000000\w+ mapped without the C-bit .*, mask already set, "
        "early_pmd_flags not yet",
    ),
    "plain-cr3": (
        [("cr3", "FAIL"), ("refused-fault", "FAIL"), ("boot", "FAIL")],
        r"CR3 loads early_level4_pgt without the C-bit: 0x100d000 in reset_early_page_tables\+\d+",
    ),
    "plain-compare": (
        [("refused-fault", "FAIL"), ("boot", "FAIL")],
        "is right: does it compare with __pa instead of __sme_pa?",
    ),
    "no-fixup": (
        [("early-tables", "FAIL")],
        r"early_level4_pgt\[511\] = 0x\w+ was fixed up without the mask",
    ),
    "no-enc-pgd": (
        [("early-tables", "FAIL")] * 3,
        r"early_make_pgtable wrote a pgd entry without the mask: 0x\w+63 .*_KERNPG_TABLE",
    ),
    "va-keeps-mask": (
        [("va-without-mask", "FAIL"), ("boot", "FAIL")],
        "an address went through __va with the mask in it",
    ),
    "no-protection-map": (
        [("protection-map", "FAIL")],
        "sme_early_init did not give the mask to protection_map",
    ),
}
PANIC = {"plain-cr3", "plain-compare", "va-keeps-mask"}


def trace(session: Session) -> dict[str, Any]:
    """From reset to the idle loop, or to panic."""
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("hbreak panic")
    session.gdb.execute("continue")
    said: dict[str, Any] = json.loads(session.gdb.execute("sme trace show --json"))
    return said


def failed(said: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in said["verdicts"] if each["outcome"] != "ok"]


@pytest.mark.parametrize("c_bit", [47, 51])
@pytest.mark.parametrize("variant", BUGS)
def test_bug(boot: OwnSessions, variant: str, c_bit: int) -> None:
    session = boot(f"rfc-v2:{variant}", "sme", memory="128M", c_bit=c_bit)
    said = trace(session)
    rules, text = BUGS[variant]
    found = failed(said)
    assert [(each["rule"], each["outcome"]) for each in found] == rules
    assert re.search(text, found[0]["text"])
    assert all(1 <= number <= len(said["events"]) for each in found for number in each["evidence"])
    error = session.gdb.run("sme trace check").error
    assert error is not None
    assert found[0]["text"] in error
    function = said["events"][-1]["function"]
    assert (function == "panic") == (variant in PANIC)
    # sme cr3 at the end: the bug of CR3 is its own to name.
    cr3 = session.gdb.execute("sme cr3")
    assert ("C-bit is missing" in cr3) == (variant == "plain-cr3"), cr3


@pytest.mark.parametrize("c_bit", [47, 51])
def test_good(boot: OwnSessions, c_bit: int) -> None:
    session = boot("rfc-v2:good", "sme", memory="128M", c_bit=c_bit)
    said = trace(session)
    assert failed(said) == []
    assert said["passed"]
    assert {each["rule"] for each in said["verdicts"]} == {
        "early-pmd-flags", "cr3", "early-tables", "protection-map"
    }  # fmt: skip
    assert session.gdb.run("sme trace check").error is None
    assert session.gdb.run("sme cr3 --expect init").error is None
    faults = [event for event in said["events"] if event["kind"] == "fault"]
    assert len(faults) == 3
    assert all(fault["c_bit"] for fault in faults)
    loads = [event for event in said["events"] if event["kind"] == "cr3"]
    assert [load["target"] for load in loads] == ["early_level4_pgt"] * 2 + ["init_level4_pgt"]
    fixed = {event["of"]: event for event in said["events"] if event["kind"] == "fix-up"}
    assert {"early_level4_pgt", "level3_kernel_pgt", "level2_kernel_pgt"} <= set(fixed)


def test_not_canonical_with_the_mask_is_recognized_without_cr2(boot: OwnSessions) -> None:
    session = boot("rfc-v2:va-keeps-mask", "sme", memory="128M", c_bit=51)
    said = trace(session)
    (event,) = (event for event in said["events"] if event["kind"] == "exception")
    assert event["vector"] == 13
    assert event["in"].startswith("early_ioremap_init+")
    assert int(event["address"], 16) == (0xFFFF880000000000 + (1 << 51 | 0x100D000)) % 2**64
    assert "not canonical, hence exception 13" in failed(said)[0]["text"]


def test_without_sme_all_variants_behave_alike(boot: OwnSessions) -> None:
    kinds = []
    for variant in ("good", *BUGS):
        session = boot(f"rfc-v2:{variant}", memory="128M")
        said = trace(session)
        assert said["verdicts"] == []
        assert said["state"].startswith("ended at cpu_startup_entry")
        # Sorted: late-flags takes its first fault earlier, which without a mask is no matter.
        kinds.append(sorted((event["kind"], event.get("name", "")) for event in said["events"]))
        session.close()
    assert all(each == kinds[0] for each in kinds)

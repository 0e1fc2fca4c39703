# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts on a timeline, rule by rule, over events made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import (
    Cr3Load,
    EarlyException,
    EarlyMapping,
    Event,
    FixUp,
    Moment,
    Outcome,
    Place,
    Timeline,
    Verdict,
    Write,
    through_va,
)

MASK = 1 << 47
BASE = 0xFFFF888000000000
NX_FLAGS = 0x80000000000000E3
TOP = 0x30B6000
HERE = Place(0xFFFFFFFF81000000, "f+1", None, 0, TOP | MASK, "early_top_pgt", "early boot", MASK)
NO_MASK = replace(HERE, mask=0, cr3=TOP)


def timeline(events: Iterable[Event], complete: bool = True) -> Timeline:
    """The events, numbered in their order."""
    numbered = tuple(replace(event, number=at) for at, event in enumerate(events, 1))
    return Timeline(numbered, complete, "recording")


def verdicts(*events: Event, complete: bool = True) -> list[Verdict]:
    return list(timeline(events, complete).verdicts)


def of(rule: str, *events: Event, complete: bool = True) -> list[Verdict]:
    return [each for each in verdicts(*events, complete=complete) if each.rule == rule]


def write(
    new: int, old: int = NX_FLAGS, name: str = "early_pmd_flags", place: Place = HERE
) -> Write:
    return Write(0, place, name, old, new)


def load(
    value: int = TOP | MASK,
    kind: Kind | None = Kind.EARLY,
    place: Place = HERE,
    name: str | None = "early_top_pgt",
) -> Cr3Load:
    return Cr3Load(0, place, value, name, kind)


def fault(
    pmd: int | None = NX_FLAGS | MASK,
    flags: int = NX_FLAGS | MASK,
    *,
    caller: str = "early_idt_handler_common",
    address: int = BASE + 0x413,
    place: Place = HERE,
    upper: int = 0x63 | MASK,
    refused: bool = False,
) -> EarlyMapping:
    entries = () if pmd is None else (("pgd", upper), ("pud", 0x63 | MASK), ("pmd", pmd))
    physical = (address - BASE) % 2**64
    return EarlyMapping(0, place, address, entries, flags, place.mask, caller, refused, physical)


def moment(name: str, detail: str = "", place: Place = HERE) -> Moment:
    return Moment(0, place, name, detail)


RECEIVED = write(NX_FLAGS | MASK)
RETURNS = moment("sme_early_init returns", "protection_map: 16 of 16 entries with the mask")


def test_nothing_recorded_is_no_verdict() -> None:
    assert verdicts() == []
    assert timeline(()).mask == 0


def test_without_a_mask_there_is_no_verdict() -> None:
    assert (
        verdicts(
            write(NX_FLAGS, 0xE3, place=NO_MASK),
            load(TOP, place=NO_MASK),
            fault(NX_FLAGS, NX_FLAGS, place=NO_MASK, upper=0x63),
            FixUp(0, NO_MASK, "early_top_pgt", ((511, 0, 0x1063),)),
            moment("sme_early_init returns", place=NO_MASK),
        )
        == []
    )


# -- early_pmd_flags -----------------------------------------------------------------------------


def test_flags_before_the_first_fault() -> None:
    (found,) = of("early-pmd-flags", RECEIVED, RETURNS, fault(), fault())
    assert found.outcome is Outcome.OK
    assert found.passed
    assert found.evidence == (1, 3)
    assert "(1 before 3)" in found.text


def test_flags_without_a_fault_yet() -> None:
    (found,) = of("early-pmd-flags", RECEIVED)
    assert (found.outcome, found.evidence) == (Outcome.OK, (1,))
    assert "no early fault yet" in found.text


def test_flags_not_yet() -> None:
    (found,) = of("early-pmd-flags", moment("sme_enable"))
    assert found.outcome is Outcome.OPEN
    assert found.passed


def test_flags_that_sme_early_init_forgot() -> None:
    (found,) = of("early-pmd-flags", RETURNS)
    assert (found.outcome, found.evidence) == (Outcome.HAZARD, (1,))
    assert not found.passed
    # A trace that began later did not see: the flags may have it.
    (late,) = of("early-pmd-flags", RETURNS, complete=False)
    assert late.outcome is Outcome.OPEN


@pytest.mark.parametrize(
    ("before", "flags", "text"),
    [
        ((), NX_FLAGS, "early_pmd_flags not yet"),
        ((RETURNS,), NX_FLAGS, "early_pmd_flags never received it"),
        ((RECEIVED, RETURNS), NX_FLAGS, "early_pmd_flags lost it again"),
        ((RECEIVED, RETURNS), NX_FLAGS | MASK, "although early_pmd_flags has it"),
    ],
)
def test_a_fault_without_the_mask(before: tuple[Event, ...], flags: int, text: str) -> None:
    (found,) = of("early-pmd-flags", *before, fault(NX_FLAGS, flags))
    assert (found.outcome, found.evidence) == (Outcome.HAZARD, (len(before) + 1,))
    assert found.text == (
        f"HAZARD: fault at {BASE + 0x413:#x} mapped without the C-bit (pmd {NX_FLAGS:#x}), "
        f"mask already set, {text}"
    )


def test_after_a_late_start_nobody_knows_whether_it_was_received() -> None:
    (found,) = of("early-pmd-flags", RETURNS, fault(NX_FLAGS, NX_FLAGS), complete=False)
    assert found.text.endswith("early_pmd_flags not yet")


def test_a_fault_between_is_a_hazard_although_all_is_well_later() -> None:
    found = of("early-pmd-flags", fault(NX_FLAGS, NX_FLAGS), RECEIVED, RETURNS, fault())
    assert [(each.outcome, each.evidence) for each in found] == [(Outcome.HAZARD, (1,))]


def test_flags_that_lose_the_mask() -> None:
    (found,) = of("early-pmd-flags", RECEIVED, write(NX_FLAGS, NX_FLAGS | MASK), fault())
    assert (found.outcome, found.evidence) == (Outcome.HAZARD, (2,))
    assert found.text == (
        f"HAZARD: early_pmd_flags lost the mask: {NX_FLAGS | MASK:#x} -> {NX_FLAGS:#x} at f+1"
    )


def test_a_fault_before_the_mask_is_known_is_right_without_it() -> None:
    early = fault(NX_FLAGS, NX_FLAGS, place=NO_MASK, upper=0x63)
    found = verdicts(early, write(MASK, 0, "sme_me_mask"), RECEIVED)
    assert all(each.passed for each in found)


# -- CR3 -----------------------------------------------------------------------------------------


def test_cr3_right_at_every_load() -> None:
    workarea = load(0x3C02000, Kind.WORKAREA, replace(HERE, cr3=0x4357000), "sme_workarea")
    (found,) = of("cr3", workarea, load(place=replace(HERE, cr3=0x3C02000)), load())
    assert (found.outcome, found.evidence) == (Outcome.OK, (2, 3))
    assert found.text == "CR3 carried the C-bit at every load from 2 on"


@pytest.mark.parametrize("kind", [Kind.EARLY, Kind.INIT, Kind.MM, None])
def test_cr3_loaded_without_the_mask(kind: Kind | None) -> None:
    name = "early_top_pgt" if kind else None
    (found,) = of("cr3", load(TOP, kind, name=name))
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert found.text == (
        f"CR3 loads {name or 'an unknown table'} without the C-bit: {TOP:#x} in f+1, "
        f"expected {TOP | MASK:#x}"
    )


@pytest.mark.parametrize("kind", [Kind.WORKAREA, Kind.TRAMPOLINE, Kind.IDENTITY])
def test_cr3_without_the_mask_by_design(kind: Kind) -> None:
    event = load(TOP, kind)
    assert event.by_design
    assert event.right
    assert of("cr3", event) == []


def test_cr3_that_lost_its_mask_between_loads() -> None:
    later = moment("start_kernel", place=replace(HERE, cr3=TOP))
    found = of("cr3", load(), later, later)
    assert [(each.outcome, each.evidence) for each in found] == [(Outcome.FAIL, (2,))]
    assert found[0].text.startswith(f"CR3 lost its C-bit: {TOP:#x} at f+1")


def test_cr3_lost_is_not_said_of_what_the_kernel_loads_itself() -> None:
    # sev_verify_cbit loads the identity map again; a bad load has a verdict of its own.
    identity = load(0x4357000, Kind.IDENTITY)
    back = moment("x", place=replace(HERE, cr3=0x4357000))
    assert [each.outcome for each in of("cr3", load(), identity, back, load())] == [Outcome.OK]
    plain = moment("x", place=replace(HERE, cr3=TOP))
    (found,) = of("cr3", load(TOP), plain)
    assert found.text.startswith("CR3 loads early_top_pgt without")


def test_another_cpu_begins_without_the_mask() -> None:
    other = replace(HERE, cpu=1, cr3=0x9C000)
    init = load(0x2A10000 | MASK, Kind.INIT, other, "init_top_pgt")
    (found,) = of("cr3", load(), init, moment("x"))
    assert (found.outcome, found.evidence) == (Outcome.OK, (1, 2))
    lost = moment("x", place=replace(other, cr3=0x2A10000))
    assert [each.outcome for each in of("cr3", load(), init, lost)] == [Outcome.FAIL]


# -- early tables --------------------------------------------------------------------------------


def test_tables_all_with_the_mask() -> None:
    fixed = FixUp(0, HERE, "early_top_pgt", ((0, 0, 0x1063 | MASK), (511, 0x1063, 0x1063 | MASK)))
    (found,) = of("early-tables", fixed, fault())
    assert (found.outcome, found.evidence) == (Outcome.OK, (1,))
    assert found.text == "no early table entry without the C-bit"
    assert fixed.changed == 2


def test_an_entry_fixed_up_without_the_mask() -> None:
    entries = ((0, 0, 0x1063 | MASK), (3, 0x1E3, 0x1E2), (511, 0, 0x2063))
    fixed = FixUp(0, HERE, "early_top_pgt", entries)
    assert fixed.present == (entries[0], entries[2])
    (found,) = of("early-tables", fixed)
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert found.text == "early_top_pgt[511] = 0x2063 was fixed up without the mask"


def test_bss_decrypted_lacks_it_by_design() -> None:
    fixed = FixUp(0, HERE, "level2_kernel_pgt", ((27, 0x1E3, 0x1E3),), (27,))
    assert [each.outcome for each in of("early-tables", fixed)] == [Outcome.OK]


@pytest.mark.parametrize("missing", ["upper", "pmd"])
def test_an_entry_of_a_fault_without_the_mask(missing: str) -> None:
    event = fault(upper=0x63) if missing == "upper" else fault(NX_FLAGS)
    found = of("early-tables", event)
    if missing == "pmd":  # early-pmd-flags has that
        assert [each.outcome for each in found] == [Outcome.OK]
        return
    (each,) = found
    assert (each.outcome, each.evidence) == (Outcome.FAIL, (1,))
    assert each.text.startswith("early_make_pgtable wrote a pgd entry without the mask: 0x63 for ")


def bootdata(pmd: int, caller: str = "sme_map_bootdata", address: int = BASE) -> EarlyMapping:
    return fault(pmd, caller=caller, address=address)


TAKES_OVER = load(0x2A10000 | MASK, Kind.INIT, name="init_top_pgt")


def test_boot_data_is_mapped_without_it_and_unmapped_again() -> None:
    events = (bootdata(NX_FLAGS), bootdata(0, "sme_unmap_bootdata"), TAKES_OVER)
    (found,) = of("early-tables", *events)
    assert found.outcome is Outcome.OK
    assert "but the 1 of sme_map_bootdata, unmapped again" in found.text
    assert of("early-pmd-flags", *events)[0].outcome is Outcome.OPEN  # no fault at all


def test_boot_data_mapped_once_more() -> None:
    events = (bootdata(0, "sme_unmap_bootdata"), bootdata(NX_FLAGS), TAKES_OVER)
    assert [each.evidence for each in of("early-tables", *events)] == [(2,)]


def test_an_entry_that_is_not_present_needs_no_mask() -> None:
    event = fault(None, refused=True)
    (found,) = of("early-tables", replace(event, entries=(("pgd", 0x63 | MASK), ("pud", 0))))
    assert found.outcome is Outcome.OK


@pytest.mark.parametrize("again", [(), (bootdata(0, "sme_unmap_bootdata", BASE + (4 << 20)),)])
def test_boot_data_that_stays_mapped(again: tuple[Event, ...]) -> None:
    (found,) = of("early-tables", bootdata(NX_FLAGS), *again, TAKES_OVER)
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert found.text == f"sme_map_bootdata left {BASE:#x} mapped without the C-bit"


def test_boot_data_has_time_until_init_top_pgt_takes_over() -> None:
    assert [each.outcome for each in of("early-tables", bootdata(NX_FLAGS))] == [Outcome.OK]


# -- refused, __va, protection_map, the end ------------------------------------------------------


def test_refused_because_of_cr3() -> None:
    (found,) = of("refused-fault", fault(None, refused=True, place=replace(HERE, cr3=TOP)))
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert found.text.endswith(f"CR3 {TOP:#x} is not __sme_pa of the early table")


def test_refused_although_cr3_is_right() -> None:
    (found,) = of("refused-fault", fault(None, refused=True))
    assert found.text.endswith("does it compare with __pa instead of __sme_pa?")


@pytest.mark.parametrize("refused", [True, False])
def test_an_address_with_the_mask_in_it(refused: bool) -> None:
    address = (BASE + (TOP | MASK)) % 2**64
    event = fault(None if refused else NX_FLAGS | MASK, refused=refused, address=address)
    (found,) = of("va-without-mask", event)
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert f"{address:#x} is the direct map of {TOP | MASK:#x}, mask {MASK:#x}" in found.text
    assert of("refused-fault", event) == []


def test_an_address_that_is_not_canonical() -> None:
    event = EarlyException(0, HERE, 13, "early_ioremap_init+17", "si", 0x788000000000, TOP | MASK)
    (found,) = of("va-without-mask", event)
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (1,))
    assert "register si, in early_ioremap_init+17" in found.text
    assert found.text.endswith("not canonical, hence exception 13")
    assert of("va-without-mask", EarlyException(0, HERE, 13, "native_read_msr_safe")) == []


@pytest.mark.parametrize(
    ("value", "mask", "expected"),
    [
        (BASE + (TOP | 1 << 51), 1 << 51, True),
        (BASE + TOP, 1 << 51, False),
        (BASE + (1 << 51 | 1 << 40), 1 << 51, False),  # no RAM there
        (BASE + (TOP | 1 << 51), 0, False),
    ],
)
def test_through_va(value: int, mask: int, expected: bool) -> None:
    assert through_va(value % 2**64, BASE, mask, 512 << 20) is expected


def test_protection_map() -> None:
    (found,) = of("protection-map", RETURNS)
    assert (found.outcome, found.evidence) == (Outcome.OK, (1,))
    forgot = moment("sme_early_init returns", "protection_map: 4 of 16 entries without the mask")
    (bad,) = of("protection-map", forgot)
    assert (bad.outcome, bad.evidence) == (Outcome.FAIL, (1,))
    assert "4 of 16 entries without the mask" in bad.text
    assert of("protection-map", moment("sme_early_init returns")) == []  # a kernel without it


def test_panic() -> None:
    (found,) = of("boot", moment("panic", "early exception"))
    assert (found.outcome, found.text) == (Outcome.FAIL, "the kernel gave up: early exception")
    assert of("boot", moment("panic"))[0].text == "the kernel gave up: panic"

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme trace` on the screen and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import (
    Begin,
    Cr3Load,
    EarlyException,
    EarlyMapping,
    Event,
    FixUp,
    Moment,
    Place,
    TableChange,
    Timeline,
    Write,
)
from gdb_sme.render import terminal
from gdb_sme.render import trace as view

MASK = 1 << 47
E3 = 0x80000000000000E3
HERE = Place(
    0xFFFFFFFF81000010, "f+16", "arch/x86/kernel/head64.c:12", 0, 0x1000 | MASK, "early_top_pgt",
    "early boot", MASK,
)  # fmt: skip
BARE = replace(HERE, source=None, cr3=0x1000, mask=0, stage="startup_64")


def screen(*events: Event, **settings: object) -> list[str]:
    line = Timeline(events, True, "recording", **settings)  # type: ignore[arg-type]
    return terminal.render(view.text(line), colour=False).split("\n")


def last(event: Event) -> str:
    """The event's column of its line."""
    return screen(event)[2].split("  C  " if event.place.mask else "  -  ", 1)[1]


def mapping(pmd: int, **settings: object) -> EarlyMapping:
    made = EarlyMapping(
        1, HERE, 0xFFFF888000000413, (("pgd", 0x63 | MASK), ("pmd", pmd)), E3, MASK, "handler",
        False, 0x413,
    )  # fmt: skip
    return replace(made, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Write(1, HERE, "early_pmd_flags", E3, E3 | MASK),
         "early_pmd_flags  0x80000000000000e3 -> 0x80008000000000e3  +ENC  "
         "(PRESENT RW ACCESSED DIRTY PSE NX ENC)"),
        (Write(1, HERE, "early_pmd_flags", E3 | MASK, E3, True),
         "early_pmd_flags  0x80008000000000e3 -> 0x80000000000000e3  -ENC  "
         "(PRESENT RW ACCESSED DIRTY PSE NX)  noticed here"),
        (Write(1, BARE, "early_pmd_flags", 0xE3, E3),
         "early_pmd_flags  0xe3 -> 0x80000000000000e3  +NX  (PRESENT RW ACCESSED DIRTY PSE NX)"),
        (Write(1, HERE, "sme_me_mask", 0, MASK), "sme_me_mask  0x0 -> 0x800000000000  bit 47"),
        (Write(1, HERE, "physical_mask", 2**52 - 1, 2**52 - 1 & ~MASK),
         "physical_mask  0xfffffffffffff -> 0xf7fffffffffff  loses bit 47"),
        (Write(1, HERE, "cc_mask", 0, MASK), "cc_mask  0x0 -> 0x800000000000"),
        (Cr3Load(1, HERE, 0x1000 | MASK, "early_top_pgt", Kind.EARLY),
         "CR3 loads early_top_pgt 0x0000800000001000  C"),
        (Cr3Load(1, HERE, 0x1000, "early_top_pgt", Kind.EARLY),
         "CR3 loads early_top_pgt 0x0000000000001000  no C-bit"),
        (Cr3Load(1, HERE, 0x1000, "sme_workarea", Kind.WORKAREA),
         "CR3 loads sme_workarea 0x0000000000001000  no C-bit: by design"),
        (Cr3Load(1, BARE, 0x1000, None, None), "CR3 loads unknown table 0x0000000000001000"),
        (mapping(E3 | MASK), "early fault 0xffff888000000413 -> pmd 0x80008000000000e3  C"),
        (mapping(E3), "early fault 0xffff888000000413 -> pmd 0x80000000000000e3  no C-bit"),
        (mapping(E3, caller="sme_map_bootdata"),
         "sme_map_bootdata 0xffff888000000413 -> pmd 0x80000000000000e3  no C-bit: by design"),
        (mapping(0, caller="sme_unmap_bootdata"),
         "sme_unmap_bootdata 0xffff888000000413  unmapped"),
        (mapping(0, refused=True), "early fault 0xffff888000000413  refused"),
        (mapping(E3, mask=0), "early fault 0xffff888000000413 -> pmd 0x80000000000000e3"),
        (FixUp(1, HERE, "early_top_pgt", ((511, 0x1063, 0x1063 | MASK),)),
         "fix-up early_top_pgt[511]  0x1063 -> 0x800000001063  C"),
        (FixUp(1, HERE, "level2_kernel_pgt", ((1, 0, 1), (2, 0, 1 | MASK)), (7,)),
         "fix-up level2_kernel_pgt  2 entries changed, 2 present  1 without the mask"
         "  (.bss..decrypted without it: by design)"),
        (FixUp(1, BARE, "early_top_pgt", ((1, 0, 1), (2, 0, 1))),
         "fix-up early_top_pgt  2 entries changed, 2 present"),
        (EarlyException(1, HERE, 13, "g+3", "si", 0x7888, 0x88),
         "early exception 13 in g+3  si = 0x7888: mask in the address"),
        (EarlyException(1, HERE, 6, "g+3"), "early exception 6 in g+3"),
        (Moment(1, HERE, "panic", "no init found"), "panic  no init found"),
        (Moment(1, HERE, "sme_enable"), "sme_enable"),
    ],
)  # fmt: skip
def test_events(event: Event, text: str) -> None:
    assert last(event) == text
    live = terminal.render(view.live(event), colour=False)
    assert live.startswith("f+16")
    assert live.endswith(text)


def test_columns_stages_notes_and_verdicts() -> None:
    early = Write(1, BARE, "sme_me_mask", 0, MASK)
    bad = mapping(E3, number=2)
    lines = screen(early, bad, replace(bad, number=3), notes=("no cc_mask",))
    assert lines[0].split() == ["#", "where", "CPU", "CR3", "C", "event"]
    assert [line for line in lines if line.startswith("--")] == ["-- startup_64", "-- early boot"]
    assert lines[1] == "-- startup_64"
    assert lines[4].split()[:6] == ["2", "f+16", "head64.c:12", "0", "0x0000800000001000", "C"]
    assert "note: no cc_mask" in lines
    assert "trace recording" in lines
    assert lines[-1] == "ok  no early table entry without the C-bit"
    hazards = [line for line in lines if line.startswith("HAZARD  fault at")]
    assert [line.rpartition("  ")[2] for line in hazards] == ["[#2]", "[#3]"]


def over_kgdb(event: Event) -> str:
    """The event's column where the target has no CR3."""
    place = replace(event.place, cr3=None)
    return screen(replace(event, place=place))[2].split("early_top_pgt  ", 1)[1].strip()


TABLE = TableChange(3, HERE, "init_top_pgt", ((273, 0, 0x67 | MASK),), since=2)
BEGIN = Begin(1, HERE, (("sme_me_mask", MASK),), (MASK, MASK))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (BEGIN, "the trace begins  sme_me_mask 0x800000000000  protection_map C"),
        (replace(BEGIN, protection_map=(MASK, 1)),
         "the trace begins  sme_me_mask 0x800000000000  protection_map 1 of 2 without the mask"),
        (replace(BEGIN, protection_map=()), "the trace begins  sme_me_mask 0x800000000000"),
        (TABLE, "table init_top_pgt[273]  0x0 -> 0x800000000067, changed since #2  C"),
        (replace(TABLE, entries=((273, 0, 0x67), (274, 1, 0))),
         "table init_top_pgt  2 entries changed, 1 of them present, changed since #2"
         "  1 without the C-bit"),
        (replace(TABLE, entries=((9, 1, 1), (10, MASK | 1, MASK | 1)), since=0, by_design=(9,)),
         "table init_top_pgt  2 entries present  C  (.bss..decrypted without it: by design)"),
        (Write(4, HERE, "cc_mask", MASK, 0, noticed=True, since=3),
         "cc_mask  0x800000000000 -> 0x0  noticed here, changed since #3"),
    ],
)  # fmt: skip
def test_events_over_kgdb(event: Event, text: str) -> None:
    assert over_kgdb(event) == text


def test_columns_without_cr3() -> None:
    lines = screen(Moment(1, replace(HERE, cr3=None), "rest_init"), rules=())
    assert lines[0].split() == ["#", "where", "CPU", "table,", "by", "the", "kernel", "event"]
    assert lines[2].split() == ["1", "f+16", "head64.c:12", "0", "early_top_pgt", "rest_init"]


MEMBERS = {
    "begin": {"values", "protection_map"},
    "table": {"of", "changed", "present", "without_mask", "by_design", "entries", "since"},
    "write": {"name", "old", "new", "noticed", "since"},
    "cr3": {"value", "target", "c_bit", "by_design", "right"},
    "fault": {"address", "caller", "early_pmd_flags", "refused", "entries", "c_bit"},
    "mapping": {"address", "caller", "early_pmd_flags", "refused", "entries", "c_bit"},
    "fix-up": {"of", "changed", "present", "without_mask", "by_design", "entries"},
    "exception": {"vector", "in", "register", "address"},
    "moment": {"name", "detail"},
}
PLACE = {
    "number", "kind", "pc", "function", "source", "cpu", "cr3", "table", "stage", "sme_me_mask"
}  # fmt: skip


def test_json() -> None:
    events: tuple[Event, ...] = (
        Write(1, BARE, "sme_me_mask", 0, MASK),
        Cr3Load(2, HERE, 0x1000, "early_top_pgt", Kind.EARLY),
        mapping(E3 | MASK, number=3),
        mapping(0, number=4, caller="sme_unmap_bootdata"),
        FixUp(5, HERE, "early_top_pgt", ((510, 0, 1), (511, 0x1063, 0x1063 | MASK)), (3,)),
        EarlyException(6, HERE, 13, "g"),
        Moment(7, HERE, "panic", "x"),
        EarlyException(8, HERE, 13, "g", "si", 0x7888, 0x88),
        replace(BEGIN, number=9),
        replace(TABLE, number=10, place=replace(HERE, cr3=None)),
    )
    said = json.loads(json.dumps(view.payload(Timeline(events, True, "ended", ("n",)))))
    assert set(said) == {"passed", "state", "complete", "notes", "events", "verdicts"}
    assert (said["passed"], said["state"], said["complete"]) == (False, "ended", True)
    assert said["notes"] == ["n"]
    for event in said["events"]:
        assert set(event) == PLACE | MEMBERS[event["kind"]]
    kinds = [event["kind"] for event in said["events"]]
    assert kinds == [
        "write", "cr3", "fault", "mapping", "fix-up", "exception", "moment", "exception",
        "begin", "table",
    ]  # fmt: skip
    write, cr3, fault, unmapped, fix, exception, _, with_address, begin, change = said["events"]
    assert (write["old"], write["new"]) == ("0x0000000000000000", "0x0000800000000000")
    assert (cr3["c_bit"], cr3["right"], cr3["by_design"]) == (False, False, False)
    assert (fault["c_bit"], unmapped["c_bit"]) == (True, None)
    assert fault["entries"][-1] == {"level": "pmd", "raw": "0x80008000000000e3"}
    assert (fix["without_mask"], fix["changed"], fix["present"]) == ([510], 2, 2)
    assert (exception["register"], exception["address"]) == (None, None)
    assert with_address["address"] == "0x0000000000007888"
    assert begin["values"] == {"sme_me_mask": "0x0000800000000000"}
    assert begin["protection_map"] == ["0x0000800000000000"] * 2
    assert (change["cr3"], change["since"], write["since"]) == (None, 2, None)
    assert {each["outcome"] for each in said["verdicts"]} == {"FAIL", "open"}
    assert set(said["verdicts"][0]) == {"rule", "outcome", "text", "evidence"}


def test_json_has_the_flags_of_early_pmd_flags_by_name() -> None:
    event = Write(1, HERE, "early_pmd_flags", E3, E3 | MASK)
    said = view.payload(Timeline((event,), True, "recording"))
    (shown,) = said["events"]  # type: ignore[misc]
    assert shown["old_flags"] == ["PRESENT", "RW", "ACCESSED", "DIRTY", "PSE", "NX"]
    assert shown["new_flags"] == [*shown["old_flags"], "ENC"]

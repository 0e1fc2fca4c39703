# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts on a trace over kgdb: failures are those of any trace, the rest is left open."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import (
    Begin,
    Cr3Load,
    Event,
    Moment,
    Outcome,
    Place,
    TableChange,
    Timeline,
    Verdict,
    Write,
)
from gdb_sme.linux.trace_kgdb import RULES

MASK = 1 << 47
FLAGS = 0x80000000000000E3
HERE = Place(0xFFFFFFFF81000000, "f", None, 0, None, "early_top_pgt", "early boot", MASK)
NO_MASK = replace(HERE, mask=0)
BEGIN = Begin(0, HERE, (("sme_me_mask", MASK), ("early_pmd_flags", FLAGS | MASK)), (MASK | 1,) * 16)
TABLE = TableChange(0, HERE, "level2_kernel_pgt", ((8, 0x1063 | MASK, 0x1063 | MASK),))


def verdicts(*events: Event) -> dict[str, Verdict]:
    numbered = tuple(replace(event, number=at) for at, event in enumerate(events, 1))
    line = Timeline(numbered, False, "recording", rules=RULES)
    return {each.rule: each for each in line.verdicts}


def outcomes(*events: Event) -> dict[str, Outcome]:
    return {rule: each.outcome for rule, each in verdicts(*events).items()}


def test_what_was_not_seen_is_left_open() -> None:
    found = verdicts(BEGIN, TABLE, Moment(0, HERE, "rest_init"))
    assert found.pop("protection-map").outcome is Outcome.OK
    assert set(found) == {"early-pmd-flags", "cr3", "early-tables", "refused-fault"}
    for each in found.values():
        assert (each.outcome, each.passed) == (Outcome.OPEN, True)
        assert "not seen over kgdb" in each.text
    assert "the loads before" not in found["cr3"].text


def test_without_a_mask_there_is_nothing_to_ask() -> None:
    begin = replace(BEGIN, place=NO_MASK, protection_map=(1,) * 16)
    assert verdicts(begin, replace(TABLE, place=NO_MASK)) == {}


def test_a_load_that_was_seen_is_no_proof_of_the_others() -> None:
    load = Cr3Load(0, HERE, 0x1000 | MASK, "init_top_pgt", Kind.INIT)
    found = verdicts(BEGIN, load)["cr3"]
    assert found.outcome is Outcome.OPEN
    assert found.text.startswith("the value that was loaded had the C-bit (#2); the loads before")
    assert verdicts(BEGIN, replace(load, value=0x1000))["cr3"].outcome is Outcome.FAIL


def test_the_mask_is_lost() -> None:
    lost = Write(0, NO_MASK, "sme_me_mask", MASK, 0, noticed=True, since=1)
    found = verdicts(BEGIN, lost)
    assert found["sme-me-mask"].outcome is Outcome.FAIL
    assert found["sme-me-mask"].text.endswith("between #1 and #2")
    assert found["early-pmd-flags"].outcome is Outcome.OPEN  # there was a mask to ask for
    set_late = Write(0, HERE, "sme_me_mask", 0, MASK, noticed=True, since=1)
    assert "sme-me-mask" not in outcomes(BEGIN, set_late)


@pytest.mark.parametrize("since", [0, 1])
def test_early_pmd_flags_without_the_mask(since: int) -> None:
    if since:
        write = Write(0, HERE, "early_pmd_flags", FLAGS | MASK, FLAGS, noticed=True, since=since)
        found = verdicts(BEGIN, write)["early-pmd-flags"]
        assert "lost the mask" in found.text
        assert found.text.endswith("between #1 and #2")
    else:
        found = verdicts(replace(BEGIN, values=(("early_pmd_flags", FLAGS),)))["early-pmd-flags"]
        assert "did not have the mask when the trace began" in found.text
    assert found.outcome is Outcome.HAZARD


@pytest.mark.parametrize(
    ("before", "since", "text"),
    [
        (0x1063, 0, "had no C-bit when the trace began (#2)"),
        (0x1063 | MASK, 1, "lost its C-bit between #1 and #2"),
        (0, 1, "was written without the C-bit between #1 and #2"),
    ],
)
def test_an_entry_without_the_c_bit(before: int, since: int, text: str) -> None:
    table = replace(TABLE, entries=((8, before, 0x1063),), since=since)
    found = verdicts(BEGIN, table)["early-tables"]
    assert found.outcome is Outcome.FAIL
    assert found.text == f"level2_kernel_pgt[8] = 0x1063 {text}"
    assert outcomes(BEGIN, replace(table, by_design=(8,)))["early-tables"] is Outcome.OPEN
    gone = replace(TABLE, entries=((8, before, 0),), since=1)
    assert outcomes(BEGIN, gone)["early-tables"] is Outcome.OPEN


def test_no_table_was_looked_at() -> None:
    assert verdicts(BEGIN)["early-tables"].text == "the early tables: not seen over kgdb"


def test_protection_map() -> None:
    lacking = replace(BEGIN, protection_map=(1, *BEGIN.protection_map[1:]))
    found = verdicts(lacking)["protection-map"]
    assert found.outcome is Outcome.FAIL
    assert found.text.startswith("1 of 16 entries of protection_map did not have the mask")
    lost = Write(0, HERE, "protection_map[3]", MASK | 1, 1, noticed=True, since=1)
    found = verdicts(BEGIN, lost)["protection-map"]
    assert (found.outcome, found.evidence) == (Outcome.FAIL, (2,))
    assert "protection-map" not in outcomes(replace(BEGIN, protection_map=()))
    other = replace(lost, new=MASK | 2)
    assert outcomes(BEGIN, other)["protection-map"] is Outcome.OK


def test_a_panic() -> None:
    assert outcomes(BEGIN, Moment(0, HERE, "panic", "why"))["boot"] is Outcome.FAIL

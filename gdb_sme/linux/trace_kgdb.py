# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts on a trace over kgdb: what was seen to be wrong is, what was not seen is left open.

kgdb begins after much of what the rules ask for, gives no CR3, and between two stops nothing is
seen. A rule that finds a failure there is right; that nothing failed is known of the stops alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gdb_sme.linux import trace
from gdb_sme.linux.trace import (
    Begin,
    Cr3Load,
    Outcome,
    Rule,
    TableChange,
    Timeline,
    Verdict,
    Write,
)

_UNSEEN = "not seen over kgdb"


def _encrypts(line: Timeline) -> bool:
    """Whether there was a mask at any time, without which there is nothing to ask for."""
    return any(event.place.mask for event in line.events)


def _left_open(name: str, rule: Rule, says: Callable[[Timeline], str]) -> Rule:
    """The failures that ``rule`` finds; without one, what ``says`` tells of what was not seen."""

    def asked(line: Timeline) -> Iterator[Verdict]:
        failed = [verdict for verdict in rule(line) if not verdict.passed]
        yield from failed
        if not failed and _encrypts(line):
            yield Verdict(name, Outcome.OPEN, says(line))

    return asked


def _flags_kept(line: Timeline) -> Iterator[Verdict]:
    """Has early_pmd_flags the mask from the beginning on? sme_early_init() has given it before."""
    for begin in _begins(line):
        flags = dict(begin.values).get("early_pmd_flags")
        if flags is not None and begin.place.mask & ~flags:
            yield Verdict(
                "early-pmd-flags",
                Outcome.HAZARD,
                f"HAZARD: early_pmd_flags did not have the mask when the trace began: {flags:#x}, "
                "although sme_early_init() has returned",
                (begin.number,),
            )
    yield from trace.flags_before_first_fault(line)


def _begins(line: Timeline) -> Iterator[Begin]:
    return (event for event in line.events if isinstance(event, Begin))


def _flags(_line: Timeline) -> str:
    return (
        "early_pmd_flags had the mask at every stop; whether it received it before the first early "
        f"fault: {_UNSEEN}, which begins later"
    )


def _cr3(line: Timeline) -> str:
    loads = [event for event in line.events if isinstance(event, Cr3Load)]
    seen = ", ".join(f"#{event.number}" for event in loads)
    had = f"the value that was loaded had the C-bit ({seen}); " if loads else ""
    return f"{had}{'the loads before, and ' if loads else ''}CR3 itself: {_UNSEEN}"


def _tables(line: Timeline) -> str:
    looked = any(isinstance(event, TableChange) for event in line.events)
    if not looked:
        return f"the early tables: {_UNSEEN}"
    return (
        "at no stop had an early table an entry without the C-bit that should have it; "
        f"between the stops, and before: {_UNSEEN}"
    )


def _faults(_line: Timeline) -> str:
    return f"early page faults and exceptions: {_UNSEEN}, which needs their handlers itself"


def _protection_map(line: Timeline) -> Iterator[Verdict]:
    """Has protection_map the mask at every stop?"""
    rule = "protection-map"
    lost = [
        event
        for event in line.events
        if isinstance(event, Write)
        and event.name.startswith("protection_map[")
        and event.old & event.place.mask & ~event.new
    ]
    for write in lost:
        text = f"{write.name} lost the mask: {write.old:#x} -> {write.new:#x} {write.when}"
        yield Verdict(rule, Outcome.FAIL, text, (write.number,))
    for begin in _begins(line):
        held, without = len(begin.protection_map), len(begin.unencrypted)
        if without and begin.place.mask:
            text = (
                f"{without} of {held} entries of protection_map did not have the mask when the "
                "trace began: user pages will be mapped unencrypted"
            )
            yield Verdict(rule, Outcome.FAIL, text, (begin.number,))
        elif held and not lost and begin.place.mask:
            text = "protection_map had the mask when the trace began, and at every stop"
            yield Verdict(rule, Outcome.OK, text, (begin.number,))


RULES: tuple[Rule, ...] = (
    trace.mask_kept,
    _left_open("early-pmd-flags", _flags_kept, _flags),
    _left_open("cr3", trace.cr3_right, _cr3),
    _left_open("early-tables", trace.early_tables, _tables),
    _left_open("refused-fault", trace.refused, _faults),
    _protection_map,
    trace.fatal,
)

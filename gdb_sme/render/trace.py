# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme trace`: the timeline, one event a line, and the verdicts last."""

from __future__ import annotations

from collections.abc import Iterator

from gdb_sme.core.address import hex_va
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import PMD
from gdb_sme.linux.trace import (
    Begin,
    Cr3Load,
    EarlyException,
    EarlyMapping,
    Event,
    FixUp,
    Moment,
    TableChange,
    Timeline,
    Verdict,
    Write,
)
from gdb_sme.render.document import (
    Document,
    Line,
    Span,
    bad,
    comment,
    good,
    keyword,
    name,
    number,
    plain,
    table,
    verdict,
)
from gdb_sme.render.json import hexadecimal

_HEAD = ("#", "where", "CPU", "CR3", "C", "event")
#: Without CR3 the table is the one that the kernel's variables name.
_HEAD_WITHOUT_CR3 = ("#", "where", "CPU", "table, by the kernel", "", "event")


def text(timeline: Timeline) -> Document:
    """The timeline, a line for each stage above its events, and the verdicts."""
    without_cr3 = timeline.events and all(e.place.cr3 is None for e in timeline.events)
    heading = tuple((comment(each),) for each in (_HEAD_WITHOUT_CR3 if without_cr3 else _HEAD))
    rows = [heading, *(_row(event) for event in timeline.events)]
    head, *shown = table(rows, right=frozenset({0, 2}))
    lines = [head, *_with_stages(timeline, shown)]
    lines += [(comment(f"note: {note}"),) for note in timeline.notes]
    lines.append((comment(f"trace {timeline.state}"),))
    lines += [_verdict(each) for each in timeline.verdicts]
    return Document(tuple(lines))


def _with_stages(timeline: Timeline, shown: list[Line]) -> Iterator[Line]:
    stage = None
    for event, line in zip(timeline.events, shown, strict=True):
        if event.place.stage != stage:
            stage = event.place.stage
            yield (comment(f"-- {stage}"),)
        yield line


def live(event: Event) -> Document:
    """One event, as it happens."""
    row = _row(event)
    return Document(((*row[1], plain("  "), *row[5]),))


def _row(event: Event) -> tuple[Line, ...]:
    place = event.place
    cr3: Line = (comment(place.table or "not known"),)
    bit = plain("")
    if place.cr3 is not None:
        cr3 = (number(hex_va(place.cr3)),)
        bit = good("C") if place.mask and place.cr3 & place.mask else plain("-")
    return (
        (plain(str(event.number)),),
        (name(place.function), *_source(place.source)),
        (plain(str(place.cpu)),),
        cr3,
        (bit,),
        _event(event),
    )


def _source(source: str | None) -> Line:
    """File without its directory, and line: the whole path is in the JSON."""
    return (comment(f"  {source.rpartition('/')[2]}"),) if source else ()


def _event(event: Event) -> Line:
    if isinstance(event, Write):
        return (
            keyword(event.name),
            plain("  "),
            number(f"{event.old:#x}"),
            plain(" -> "),
            number(f"{event.new:#x}"),
            *_mask_note(event),
            *((comment(f"  noticed here{_since(event.since)}"),) if event.noticed else ()),
        )
    if isinstance(event, EarlyException):
        spans = [keyword("early exception"), plain(f" {event.vector} in "), name(event.where)]
        if event.address is not None:
            spans.append(bad(f"  {event.register} = {event.address:#x}: mask in the address"))
        return tuple(spans)
    if isinstance(event, Cr3Load):
        target = event.target or "unknown table"
        spans = [keyword("CR3"), plain(" loads "), name(target), plain(" ")]
        spans.append(number(hex_va(event.value)))
        if event.by_design:
            return (*spans, comment("  no C-bit: by design"))
        if not event.place.mask:
            return tuple(spans)
        return (*spans, plain("  "), good("C") if event.right else bad("no C-bit"))
    if isinstance(event, EarlyMapping):
        return _mapping(event)
    if isinstance(event, TableChange):
        return _table_change(event)
    if isinstance(event, FixUp):
        return _fix_up(event)
    if isinstance(event, Begin):
        return _begin(event)
    assert isinstance(event, Moment)
    detail: tuple[Span, ...] = (plain(f"  {event.detail}"),) if event.detail else ()
    return (keyword(event.name), *detail)


def _mask_note(event: Write) -> tuple[Span, ...]:
    if event.name == "sme_me_mask" and event.new:
        return (comment(f"  bit {event.new.bit_length() - 1}"),)
    if event.name == "early_pmd_flags":
        return _flags_note(event)
    if event.name == "physical_mask" and event.old & ~event.new:
        return (comment(f"  loses bit {(event.old & ~event.new).bit_length() - 1}"),)
    return ()


def flag_names(raw: int, mask: int) -> tuple[str, ...]:
    """Names of the flags in early_pmd_flags, ENC for the mask."""
    return Entry(raw, PMD, EncryptionBit(mask)).flags


def _flags_note(event: Write) -> tuple[Span, ...]:
    """What came and what went, then all flags."""
    mask = event.place.mask
    before, after = flag_names(event.old, mask), flag_names(event.new, mask)
    changes = [f"+{flag}" for flag in after if flag not in before]
    changes += [f"-{flag}" for flag in before if flag not in after]
    text_of = "  " + " ".join(changes)
    if "+ENC" in changes:
        change = good(text_of)
    else:
        change = bad(text_of) if "-ENC" in changes else comment(text_of)
    return (change, comment(f"  ({' '.join(after)})"))


def _mapping(event: EarlyMapping) -> Line:
    what = event.caller if event.bootdata else "early fault"
    spans = [keyword(what), plain(" "), number(f"{event.address:#x}")]
    if event.refused:
        return (*spans, plain("  "), bad("refused"))
    pmd = event.pmd
    if not pmd:
        return (*spans, comment("  unmapped"))
    spans += [plain(" -> pmd "), number(hex_va(pmd))]
    if not event.mask:
        return tuple(spans)
    if pmd & event.mask:
        return (*spans, good("  C"))
    return (*spans, comment("  no C-bit: by design") if event.bootdata else bad("  no C-bit"))


def _fix_up(event: FixUp) -> Line:
    present = event.present
    spans = [keyword("fix-up"), plain(" "), name(event.table)]
    if len(present) == 1:
        index, before, after = present[0]
        spans += [plain(f"[{index}]  "), number(f"{before:#x}"), plain(" -> ")]
        spans.append(number(f"{after:#x}"))
    else:
        spans.append(plain(f"  {event.changed} entries changed, {len(present)} present"))
    if event.place.mask and present:
        missing = len(event.unencrypted)
        spans.append(bad(f"  {missing} without the mask") if missing else good("  C"))
        if event.by_design:
            spans.append(comment("  (.bss..decrypted without it: by design)"))
    return tuple(spans)


def _since(since: int) -> str:
    return f", changed since #{since}" if since else ""


def _begin(event: Begin) -> Line:
    values = "  ".join(f"{known} {value:#x}" for known, value in event.values)
    spans = [keyword("the trace begins"), plain(f"  {values}")]
    held, without = len(event.protection_map), len(event.unencrypted)
    if held and event.place.mask:
        spans.append(plain("  protection_map "))
        spans.append(bad(f"{without} of {held} without the mask") if without else good("C"))
    return tuple(spans)


def _table_change(event: TableChange) -> Line:
    present = event.present
    spans = [keyword("table"), plain(" "), name(event.table)]
    if len(event.entries) == 1 and event.since:
        index, before, after = event.entries[0]
        spans += [plain(f"[{index}]  "), number(f"{before:#x}"), plain(" -> ")]
        spans.append(number(f"{after:#x}"))
    elif event.since:
        spans.append(plain(f"  {event.changed} entries changed, {len(present)} of them present"))
    else:
        spans.append(plain(f"  {len(present)} entries present"))
    spans.append(comment(_since(event.since)))
    if event.place.mask and present:
        missing = len(event.unencrypted)
        spans.append(bad(f"  {missing} without the C-bit") if missing else good("  C"))
        if any(index in event.by_design for index, _, _ in present):
            spans.append(comment("  (.bss..decrypted without it: by design)"))
    return tuple(spans)


def _verdict(each: Verdict) -> Line:
    word = each.outcome.value
    spans = [bad(word) if not each.passed else verdict(word), plain("  ")]
    text_of = each.text.removeprefix("HAZARD: ")
    evidence = ", ".join(f"#{number_}" for number_ in each.evidence[:6])
    spans.append(plain(text_of))
    return (*spans, comment(f"  [{evidence}]")) if evidence else tuple(spans)


def payload(timeline: Timeline) -> dict[str, object]:
    """Members: events, verdicts, passed, state, complete, notes."""
    return {
        "passed": all(each.passed for each in timeline.verdicts),
        "state": timeline.state,
        "complete": timeline.complete,
        "notes": list(timeline.notes),
        "events": [_payload(event) for event in timeline.events],
        "verdicts": [
            {
                "rule": each.rule,
                "outcome": each.outcome.value,
                "text": each.text,
                "evidence": list(each.evidence),
            }
            for each in timeline.verdicts
        ],
    }


def _payload(event: Event) -> dict[str, object]:
    place = event.place
    common: dict[str, object] = {
        "number": event.number,
        "pc": hex_va(place.pc),
        "function": place.function,
        "source": place.source,
        "cpu": place.cpu,
        "cr3": None if place.cr3 is None else hex_va(place.cr3),
        "table": place.table,
        "stage": place.stage,
        "sme_me_mask": hexadecimal(place.mask),
    }
    if isinstance(event, Write):
        own: dict[str, object] = {
            "kind": "write",
            "name": event.name,
            "old": hex_va(event.old),
            "new": hex_va(event.new),
            "noticed": event.noticed,
            "since": event.since or None,
        }
        if event.name == "early_pmd_flags":
            own["old_flags"] = list(flag_names(event.old, place.mask))
            own["new_flags"] = list(flag_names(event.new, place.mask))
    elif isinstance(event, Cr3Load):
        own = {
            "kind": "cr3",
            "value": hex_va(event.value),
            "target": event.target,
            "c_bit": bool(place.mask and event.value & place.mask),
            "by_design": event.by_design,
            "right": event.right,
        }
    elif isinstance(event, EarlyMapping):
        own = {
            "kind": "mapping" if event.bootdata else "fault",
            "address": hex_va(event.address),
            "caller": event.caller,
            "early_pmd_flags": hex_va(event.flags),
            "refused": event.refused,
            "entries": [{"level": level, "raw": hex_va(raw)} for level, raw in event.entries],
            "c_bit": bool(event.pmd & event.mask) if event.pmd and event.mask else None,
        }
    elif isinstance(event, FixUp):
        own = {
            "kind": "table" if isinstance(event, TableChange) else "fix-up",
            "of": event.table,
            "changed": event.changed,
            "present": len(event.present),
            "without_mask": [index for index, _, _ in event.unencrypted] if place.mask else [],
            "by_design": list(event.by_design),
            "entries": [
                {"index": index, "before": hex_va(before), "after": hex_va(after)}
                for index, before, after in event.entries
            ],
        }
        if isinstance(event, TableChange):
            own["since"] = event.since or None
    elif isinstance(event, Begin):
        own = {
            "kind": "begin",
            "values": {known: hex_va(value) for known, value in event.values},
            "protection_map": [hex_va(entry) for entry in event.protection_map],
        }
    elif isinstance(event, EarlyException):
        own = {
            "kind": "exception",
            "vector": event.vector,
            "in": event.where,
            "register": event.register or None,
            "address": None if event.address is None else hex_va(event.address),
        }
    else:
        assert isinstance(event, Moment)
        own = {"kind": "moment", "name": event.name, "detail": event.detail}
    return {**common, **own}

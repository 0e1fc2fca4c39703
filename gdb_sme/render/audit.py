# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme audit`: a verdict a line, the places of a fault below, the count last."""

from __future__ import annotations

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.linux.audit.model import Audit, Place, Result, Rule, Verdict
from gdb_sme.render.document import (
    Document,
    Line,
    bad,
    comment,
    good,
    name,
    number,
    plain,
    table,
    verdict,
)
from gdb_sme.render.json import hexadecimal

#: Places of one rule that the screen shows; JSON has them all.
SHOWN = 16

_INDENT = plain("      ")


def text(audit: Audit) -> Document:
    """The verdict table."""
    heads = table([_row(each) for each in audit.results])
    lines: list[Line] = []
    for head, result in zip(heads, audit.results, strict=True):
        lines += [head, *_details(result)]
    return Document((*lines, *_summary(audit)))


def _row(result: Result) -> list[Line]:
    outcome = result.outcome
    says = comment if outcome.verdict is Verdict.NOT_APPLICABLE else plain
    return [(verdict(outcome.verdict.value),), (name(result.rule.name),), (says(outcome.text),)]


def _details(result: Result) -> tuple[Line, ...]:
    places = result.outcome.places
    if not places:
        return ()
    lines = [place_line(each) for each in places[:SHOWN]]
    if len(places) > SHOWN:
        lines.append((comment(f"and {len(places) - SHOWN} more"),))
    rule = result.rule
    lines += [(comment(f"must hold: {rule.what}"),), (comment(f"otherwise: {rule.why}"),)]
    lines.append((comment(f"source: {rule.source}"),))
    return tuple((_INDENT, *line) for line in lines)


def place_line(place: Place) -> Line:
    """``0xffff888010000000-0xffff8880101fffff -> 0x10000000 (2 MiB pmd at 0x03a01400): no C-bit``.

    The end is the last address that is meant.
    """
    spans: list[tuple[str, str]] = []
    if place.va is not None:
        spans.append(number(f"{hex_va(place.va)}-{hex_va(place.va + place.size - 1)}"))
    if place.pa is not None:
        arrow = " -> " if spans else ""
        spans += [plain(arrow), number(hex_pa(place.pa))] if arrow else [number(hex_pa(place.pa))]
    if place.entry_pa is not None:
        size = f"{size_text(place.page_size)} " if place.page_size else ""
        raw = "" if place.raw is None else f" = {hex_va(place.raw)}"
        spans += [plain(f" ({size}{place.level} at "), number(hex_pa(place.entry_pa))]
        spans += [number(raw)] if raw else []
        spans.append(plain(")"))
    return (*spans, plain(": " if spans else ""), bad(place.detail))


def _summary(audit: Audit) -> tuple[Line, ...]:
    bit = "" if audit.c_bit is None else f", bit {audit.c_bit}"
    passed, skipped = audit.count(Verdict.PASS), audit.count(Verdict.NOT_APPLICABLE)
    failed = len(audit.failed)
    words = f"{passed} pass, {failed} fail, {skipped} not applicable"
    return (
        (comment(f"{audit.scheme}{bit}; {audit.root}; {audit.stage}"),),
        (bad(words) if failed else good(words),),
    )


def explained(rules: tuple[Rule, ...]) -> Document:
    """The rules themselves: `sme audit --rules`."""
    lines: list[Line] = []
    for rule in rules:
        lines.append((name(rule.name), plain(f"  {rule.what}")))
        lines += [(_INDENT, comment(rule.why)), (_INDENT, comment(rule.source))]
    return Document(tuple(lines))


def rules_payload(rules: tuple[Rule, ...]) -> dict[str, object]:
    """Member rules: each with name, what, why and source."""
    return {"rules": [_rule(rule) for rule in rules]}


def _rule(rule: Rule) -> dict[str, object]:
    return {"name": rule.name, "what": rule.what, "why": rule.why, "source": rule.source}


def payload(audit: Audit) -> dict[str, object]:
    """Members: passed, scheme, c_bit, root, stage, rules.

    A rule has name, verdict (``"pass"``, ``"fail"``, ``"n/a"``), text, what, why, source, places:
    each with va, end (not included), pa, size, page_size, level, entry_pa, raw, detail.
    """
    return {
        "passed": not audit.failed,
        "scheme": audit.scheme,
        "c_bit": audit.c_bit,
        "root": audit.root,
        "stage": audit.stage,
        "rules": [_result(each) for each in audit.results],
    }


def _result(result: Result) -> dict[str, object]:
    outcome = result.outcome
    return {
        "verdict": outcome.verdict.value.lower(),
        "text": outcome.text,
        **_rule(result.rule),
        "places": [_place(each) for each in outcome.places],
    }


def _place(place: Place) -> dict[str, object]:
    return {
        "va": hexadecimal(place.va),
        "end": None if place.va is None else hexadecimal(place.va + place.size),
        "pa": hexadecimal(place.pa),
        "size": place.size,
        "page_size": place.page_size or None,
        "level": place.level or None,
        "entry_pa": hexadecimal(place.entry_pa),
        "raw": None if place.raw is None else hex_va(place.raw),
        "detail": place.detail,
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme decode`: a value and each of its readings."""

from __future__ import annotations

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.linux.decode import Decoded, Reading
from gdb_sme.linux.macros import MacroMatch
from gdb_sme.render import nonpresent
from gdb_sme.render.document import (
    GAP,
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
    spaced,
    table,
)
from gdb_sme.render.json import hexadecimal

_TITLES = {"cr3": "CR3", "table": "pgd, p4d, pud or pmd"}


def text(decoded: Decoded) -> Document:
    """The value, then a block a reading."""
    head: list[Span] = [number(hex_va(decoded.value))]
    if decoded.assumed:
        head += [plain(GAP), comment(decoded.assumed)]
    document = Document((tuple(head),))
    for reading in decoded.readings:
        document += _reading(reading, decoded.enc)
    if decoded.hint:
        document += Document(((comment(decoded.hint),),))
    return document


def _reading(reading: Reading, enc: EncryptionBit) -> Document:
    rows: list[tuple[Line, Line]] = []

    def row(label: str, *spans: Span) -> None:
        rows.append(((keyword(f"  {label}"),), spans))

    if reading.nonpresent is not None:
        row("holds", plain(nonpresent.words(reading.nonpresent, reading.level)))
    if reading.pa is not None:
        pfn = f"pfn {reading.pa >> 12:#x}"
        size = f", {size_text(reading.page_size)} page" if reading.page_size else ""
        row("address", number(hex_pa(reading.pa)), plain(f"{GAP}{pfn}{size}"))
    if reading.nonpresent is None or reading.nonpresent.kind != "none":
        row("C-bit" if enc.set_is_encrypted else "shared", *_bit(reading, enc))
        row("flags", *(spaced(name(flag) for flag in reading.flags) or (plain("none"),)))
    if reading.pcid is not None:
        row("PCID", number(f"{reading.pcid:#x}"))
    if reading.reserved:
        row("reserved", bad(f"{reading.reserved:#x} must be zero: the CPU would fault"))
    if reading.macro is not None or (reading.kind != "cr3" and reading.nonpresent is None):
        row("macro", *_macro(reading.macro))
    title = keyword(_TITLES.get(reading.level, reading.level))
    return Document(((title,), *table(rows)))


def _bit(reading: Reading, enc: EncryptionBit) -> Line:
    if enc.position is None:
        return (comment("no encryption bit in force"),)
    if reading.c_bit is None:
        return (comment("none: its place belongs to what the entry holds"),)
    state = "set" if reading.c_bit else "clear"
    meaning = "encrypted" if reading.encrypted else "NOT encrypted"
    return (
        (good if reading.c_bit else plain)(state),
        plain(f"{GAP}bit {enc.position}: {meaning}"),
    )


def _macro(match: MacroMatch | None) -> Line:
    if match is None:
        return (comment("none is near"),)
    line = [name(str(match))]
    if match.macro.definition:
        subject = "" if match.exact else f"{match.macro.name} "
        line += [plain(f"{GAP}{subject}= "), name(match.macro.definition)]
    if match.aliases:
        line += [plain(GAP), comment("also " + ", ".join(match.aliases))]
    return tuple(line)


def payload(decoded: Decoded) -> dict[str, object]:
    """Members: value, c_bit, set_is_encrypted, assumed, hint, readings."""
    return {
        "value": hex_va(decoded.value),
        "c_bit": decoded.enc.position,
        "set_is_encrypted": decoded.enc.set_is_encrypted,
        "assumed": decoded.assumed or None,
        "hint": decoded.hint or None,
        "readings": [_reading_payload(reading) for reading in decoded.readings],
    }


def _reading_payload(reading: Reading) -> dict[str, object]:
    macro = reading.macro
    return {
        "kind": reading.kind,
        "level": reading.level,
        "c_bit": reading.c_bit,
        "encrypted": reading.encrypted,
        "flags": list(reading.flags),
        "pa": hexadecimal(reading.pa),
        "page_size": reading.page_size,
        "reserved": hexadecimal(reading.reserved or None),
        "cache_index": reading.cache_index,
        "pcid": reading.pcid,
        "macro": None
        if macro is None
        else {
            "text": str(macro),
            "name": macro.macro.name,
            "exact": macro.exact,
            "plus": list(macro.plus),
            "minus": list(macro.minus),
            "aliases": list(macro.aliases),
        },
        "nonpresent": None
        if reading.nonpresent is None
        else nonpresent.payload(reading.nonpresent),
    }

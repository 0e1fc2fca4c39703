# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme pte`: a walk level by level, and where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdb_sme.core.address import align_down, hex_pa, hex_va, size_text
from gdb_sme.core.cbit import LOWEST_C_BIT
from gdb_sme.core.entry import Entry
from gdb_sme.core.walk import Mapping, Step
from gdb_sme.linux.nonpresent import NonPresent
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

if TYPE_CHECKING:
    from gdb_sme.linux.translate import Root, Translation

_INDEX = 2  # the column that is aligned to the right


def text(result: Translation) -> Document:
    """The address, a line a level, and the end: a mapping, a hole, or the trouble."""
    walk, held = result.walk, result.nonpresent
    letter = "C" if all(step.entry.enc.set_is_encrypted for step in walk.steps) else "S"
    rows = [_head(letter), _root(result.root, letter)]
    rows += [_step(step, letter, held) for step in walk.steps]
    lines = [_title(result), *table(rows, right=frozenset({_INDEX}))]
    lines += [(comment(_repeated(step)),) for step in walk.steps if step.repeated]
    lines.append(_end(result))
    if result.moved is not None:
        lines.append(_moved(*result.moved))
    return Document(tuple(lines))


def _title(result: Translation) -> Line:
    spans = [number(hex_va(result.walk.va))]
    where: list[Span] = []
    if result.symbol is not None:
        where.append(name(result.symbol))
    if result.region is not None:
        where.append(plain(result.region))
    return (*spans, plain(GAP), *spaced(where, ", ")) if where else tuple(spans)


def _head(letter: str) -> list[Line]:
    titles = ("", "entry at", "index", "raw", letter, "to", "flags")
    return [(comment(title),) if title else () for title in titles]


def _bit(bit: bool | None, letter: str) -> Line:
    if bit is None:
        return ()
    return (good(letter),) if bit else (plain("-"),)


def _root(root: Root, letter: str) -> list[Line]:
    label = "CR3" if root.source.startswith("CR3") else "root"
    return [
        (keyword(label),),
        (),
        (),
        (number(hex_va(root.raw)),),
        _bit(root.c_bit, letter),
        (number(hex_pa(root.pa)),),
        (name(root.table),) if root.table is not None else (),
    ]


def _step(step: Step, letter: str, held: NonPresent | None) -> list[Line]:
    entry = step.entry
    row: list[Line] = [
        (keyword(entry.level.name),),
        (number(hex_pa(step.entry_pa)),),
        (plain(str(step.index)),),
        (number(hex_va(entry.raw)),),
    ]
    if not entry.present and held is not None:
        row += [_bit(held.c_bit, letter), (), spaced(name(flag) for flag in held.flags)]
        return row
    flags = (flag for flag in entry.flags if flag != "PRESENT")
    row += [
        _bit(entry.c_bit, letter),
        (number(hex_pa(entry.pa)),),
        spaced(name(flag) for flag in flags),
    ]
    if entry.leaf:
        row.append((plain(size_text(entry.level.span)),))
    return row


def _repeated(step: Step) -> str:
    return (
        f"the table at {hex_pa(step.table_pa)} was passed before: "
        f"as a {step.entry.level.name} table it points to itself"
    )


def _end(result: Translation) -> Line:
    """The last line."""
    walk, held = result.walk, result.nonpresent
    if walk.mapping is not None:
        return _mapping(result, walk.mapping, walk.steps[-1].entry)
    if walk.unreadable is not None:
        level = walk.mode.levels[len(walk.steps)].name
        where = hex_pa(walk.unreadable.address)
        reason = walk.unreadable.reason + _forgotten_c_bit(result, walk.unreadable.address)
        return (bad(f"cannot read the {level} at {where}: {reason}"),)
    entry = walk.steps[-1].entry
    if held is None:
        return (
            bad(f"reserved bits {walk.reserved:#x} are set in the {entry.level.name}"),
            plain(": the CPU would fault here"),
        )
    start = align_down(walk.va, entry.level.span)
    covers = f"{hex_va(start)}-{hex_va(start + entry.level.span - 1)}"
    return (
        bad("not mapped"),
        plain(f": the {entry.level.name} for {covers} is "),
        plain(nonpresent.words(held, entry.level.name)),
    )


def _moved(symbol: str, va: int) -> Line:
    return (
        comment("KASLR has moved what gdb has here, "),
        name(symbol),
        comment(", to "),
        number(hex_va(va)),
        comment("; its symbols follow with: sme kaslr"),
    )


def _forgotten_c_bit(result: Translation, pa: int) -> str:
    """A question, when a table lies so high that the C-bit may be what put it there."""
    steps = result.walk.steps
    bit = pa.bit_length() - 1
    if not steps or steps[-1].entry.enc.mask or bit < LOWEST_C_BIT:
        return ""
    return f"; is bit {bit} the C-bit?"


def _mapping(result: Translation, mapping: Mapping, leaf: Entry) -> Line:
    permissions = mapping.permissions
    words = f"{permissions} {'user' if permissions.user else 'kernel'}"
    if result.memory_type is not None:
        words += f", {result.memory_type}"
    line = [number(hex_pa(mapping.pa)), plain(f"{GAP}{words}, ")]
    if not leaf.enc.mask:
        line.append(comment("no encryption bit in force"))
    elif mapping.encrypted:
        line.append(good("encrypted"))
    else:
        line.append(plain("NOT encrypted") if result.note else bad("NOT encrypted"))
        if result.note:
            line += [plain(" "), comment(f"({result.note})")]
    return tuple(line)


def payload(result: Translation) -> dict[str, object]:
    """The walk as JSON.

    Members: va, pa, encrypted, page_size (the last three null when nothing is mapped), permissions,
    global, memory_type, region, symbol, note, moved_to, outcome (``"mapped"``, ``"not-present"``,
    ``"reserved"``, ``"unreadable"``), reserved, error, nonpresent, root, levels.
    """
    walk, mapping, root = result.walk, result.walk.mapping, result.root
    held = result.nonpresent
    rights = mapping.permissions if mapping else None
    return {
        "va": hex_va(walk.va),
        "pa": hexadecimal(mapping.pa) if mapping else None,
        "encrypted": mapping.encrypted if mapping else None,
        "page_size": mapping.page_size if mapping else None,
        "permissions": None
        if rights is None
        else {"write": rights.write, "user": rights.user, "execute": rights.execute},
        "global": mapping.global_ if mapping else None,
        "memory_type": result.memory_type,
        "region": result.region,
        "symbol": result.symbol,
        "note": result.note,
        "moved_to": hex_va(result.moved[1]) if result.moved else None,
        "outcome": _outcome(result),
        "reserved": hexadecimal(walk.reserved or None),
        "error": str(walk.unreadable) if walk.unreadable else None,
        "nonpresent": nonpresent.payload(held) if held else None,
        "root": {
            "pa": hexadecimal(root.pa),
            "raw": hex_va(root.raw),
            "c_bit": root.c_bit,
            "source": root.source,
            "table": root.table,
        },
        "levels": [_level(step, held) for step in walk.steps],
    }


def _outcome(result: Translation) -> str:
    if result.walk.mapping is not None:
        return "mapped"
    if result.walk.unreadable is not None:
        return "unreadable"
    return "not-present" if result.walk.hole is not None else "reserved"


def _level(step: Step, held: NonPresent | None) -> dict[str, object]:
    entry = step.entry
    shown: dict[str, object]
    if not entry.present and held is not None:
        encrypted = entry.encrypted if held.c_bit is not None else None
        shown = {"pa": None, "pfn": hexadecimal(held.pfn), "flags": list(held.flags)}
        shown |= {"c_bit": held.c_bit, "encrypted": encrypted, "leaf": None}
    else:
        shown = {"pa": hexadecimal(entry.pa), "pfn": hexadecimal(entry.pfn)}
        shown |= {"flags": list(entry.flags), "c_bit": entry.c_bit}
        shown |= {"encrypted": entry.encrypted, "leaf": entry.leaf}
    return {
        "level": entry.level.name,
        "table_pa": hexadecimal(step.table_pa),
        "index": step.index,
        "entry_pa": hexadecimal(step.entry_pa),
        "raw": hex_va(entry.raw),
        **shown,
        "repeated": step.repeated,
    }

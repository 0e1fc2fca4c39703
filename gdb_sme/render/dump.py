# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme dump`: ranges or tables, a line each, then the sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.core.ranges import Attributes, MappedRange
from gdb_sme.linux.translate import LINUX_PAT
from gdb_sme.render.document import (
    Document,
    Line,
    bad,
    comment,
    good,
    keyword,
    name,
    number,
    plain,
    table,
)
from gdb_sme.render.json import hexadecimal

if TYPE_CHECKING:
    from gdb_sme.core.scan import Scan, TableUse, Trouble
    from gdb_sme.linux.dump import Dump, Place

_COUNT = 3  # the column that is aligned to the right


def text(result: Dump) -> Document:
    """The table of ranges (or of table pages), the troubles, and the sums."""
    letter = result.c_bit
    if result.tables is None:
        rows = [_titles(f"virtual|to|physical|pages|of|rights|type|G|{letter}|region")]
        alike: dict[int, list[Line]] = {}  # most ranges share the objects that say how
        for each, place in result.ranges:
            how = each.attributes
            if id(how) not in alike:
                alike[id(how)] = _attributes(how, letter)
            rows.append(_range(each, place, alike[id(how)]))
        sums = _sums(tuple(each for each, _ in result.ranges), result.scan)
    else:
        rows = [_titles(f"virtual|table of|at|entry at|raw|{letter}|region")]
        rows += [_table(use, place, letter) for use, place in result.tables]
        sums = _table_sums(tuple(use for use, _ in result.tables))
    right = frozenset({_COUNT}) if result.tables is None else frozenset[int]()
    lines = table(rows, right) if len(rows) > 1 else ()
    return Document((*lines, *troubles(result.scan), (plain(sums),)))


def _titles(text: str) -> list[Line]:
    return [(comment(title),) for title in text.split("|")]


def rights(how: Attributes) -> str:
    """``rw- kernel``."""
    return f"{how.permissions} {'user' if how.permissions.user else 'kernel'}"


def bit(is_set: bool | None, letter: str) -> Line:
    """The encryption bit's column; empty where there is none to show."""
    if is_set is None:
        return ()
    return (good(letter),) if is_set else (plain("-"),)


def place_line(place: Place) -> Line:
    """``kernel image, _text+0x8``."""
    spans = [plain(place.region)] if place.region is not None else []
    if place.symbol is not None:
        spans += [plain(", "), name(place.symbol)] if spans else [name(place.symbol)]
    return tuple(spans)


def troubles(scan: Scan) -> tuple[Line, ...]:
    """What is wrong with the tables, a line each, and where the scan gave up."""
    lines = [_trouble(each) for each in scan.troubles[:_MOST_TROUBLES]]
    if len(scan.troubles) > _MOST_TROUBLES:
        lines.append((bad(f"... and {len(scan.troubles) - _MOST_TROUBLES} more like these"),))
    if scan.stopped_at is not None:
        what = f"stopped at {hex_va(scan.stopped_at)}: too much for one answer; give START and END"
        lines.append((bad(what),))
    return tuple(lines)


_MOST_TROUBLES = 100


def _trouble(each: Trouble) -> Line:
    if each.entry_pa is None:
        return (bad(f"cannot read the root at {hex_pa(each.raw)}: {each.detail}"),)
    where = f"{each.level} at {hex_pa(each.entry_pa)} ({hex_va(each.raw)})"
    return bad(f"{hex_va(each.va)}: the {where} {_SAYS[each.kind]}{each.detail}"), plain("")


_SAYS = {"unreadable": "", "loop": "", "reserved": "faults: "}


def _range(each: MappedRange, place: Place, attributes: list[Line]) -> list[Line]:
    va, size, pa, how = each
    return [
        (number(hex_va(va)),),
        (number(hex_va(va + size - 1)),),
        (number(hex_pa(pa)), comment(" repeated")) if how.repeated else (number(hex_pa(pa)),),
        (plain(f"{size // how.page_size}"),),
        *attributes,
        place_line(place),
    ]


def _attributes(how: Attributes, letter: str) -> list[Line]:
    return [
        (plain(size_text(how.page_size)),),
        (plain(rights(how)),),
        (plain(LINUX_PAT[how.cache_index]),),
        (plain("G" if how.global_ else "-"),),
        bit(_ENCRYPTED[letter] == how.encrypted, letter),
    ]


#: Whether the letter in the column says "encrypted": the C-bit does, a shared bit the contrary.
_ENCRYPTED = {"C": True, "S": False}


def _table(use: TableUse, place: Place, letter: str) -> list[Line]:
    shown = None if use.encrypted is None else use.encrypted == _ENCRYPTED[letter]
    more = [f"{use.places} places"] if use.places > 1 else []
    more += ["empty"] if use.empty else []
    note = ((comment(f"  ({', '.join(more)})"),)) if more else ()
    return [
        (number(hex_va(use.va)),),
        (keyword(use.level),),
        (number(hex_pa(use.pa)),),
        (number(hex_pa(use.entry_pa)),) if use.entry_pa is not None else (plain("root"),),
        (number(hex_va(use.raw)),) if use.entry_pa is not None else (),
        bit(shown, letter),
        place_line(place) + note,
    ]


def _sums(ranges: tuple[MappedRange, ...], scan: Scan) -> str:
    encrypted = sum(each.page_count for each in ranges if each.attributes.encrypted)
    pages = sum(each.page_count for each in ranges)
    size = sum(each.size for each in ranges)
    return (
        f"{_plural(len(ranges), 'range')}, {_plural(pages, 'page')} ({_rounded(size)}): "
        f"{encrypted} encrypted, {pages - encrypted} not; "
        f"{_plural(scan.tables_read, 'table page')} read"
    )


def _table_sums(uses: tuple[TableUse, ...]) -> str:
    encrypted = sum(use.encrypted is True for use in uses)
    clear = sum(use.encrypted is False for use in uses)
    empty = sum(use.empty for use in uses)
    return (
        f"{_plural(len(uses), 'table')}: {encrypted} encrypted, {clear} not; "
        f"{empty} without an entry"
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _rounded(size: int) -> str:
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size >> 10} KiB"


def payload(result: Dump) -> dict[str, object]:
    """The dump as JSON.

    Members: root, ranges (start, end, pa, encrypted, page_size, permissions, memory_type, global,
    region, symbol, repeated), tables (null, or va, level, pa, entry_pa, raw, encrypted, places,
    empty, region), troubles (kind, va, size, level, entry_pa, raw, detail), tables_read,
    stopped_at. ``end`` is the first address after the range.
    """
    return {
        "root": {
            "pa": hexadecimal(result.root.pa),
            "c_bit": result.root.c_bit,
            "source": result.root.source,
            "table": result.root.table,
        },
        "ranges": [range_payload(each, place) for each, place in result.ranges],
        "tables": None
        if result.tables is None
        else [_table_payload(use, place) for use, place in result.tables],
        "troubles": [
            {
                "kind": each.kind,
                "va": hex_va(each.va),
                "size": each.size,
                "level": each.level,
                "entry_pa": hexadecimal(each.entry_pa),
                "raw": hex_va(each.raw),
                "detail": each.detail,
            }
            for each in result.scan.troubles
        ],
        "tables_read": result.scan.tables_read,
        "stopped_at": hexadecimal(result.scan.stopped_at),
    }


def range_payload(each: MappedRange, place: Place) -> dict[str, object]:
    """A range as JSON."""
    how = each.attributes
    allowed = how.permissions
    return {
        "start": hex_va(each.va),
        "end": hexadecimal(each.end),
        "pa": hexadecimal(each.pa),
        "encrypted": how.encrypted,
        "page_size": how.page_size,
        "permissions": {
            "write": allowed.write, "user": allowed.user, "execute": allowed.execute,
        },
        "memory_type": LINUX_PAT[how.cache_index],
        "global": how.global_,
        "repeated": how.repeated,
        "region": place.region,
        "symbol": place.symbol,
    }  # fmt: skip


def _table_payload(use: TableUse, place: Place) -> dict[str, object]:
    return {
        "va": hex_va(use.va),
        "level": use.level,
        "pa": hexadecimal(use.pa),
        "entry_pa": hexadecimal(use.entry_pa),
        "raw": hex_va(use.raw),
        "encrypted": use.encrypted,
        "places": use.places,
        "empty": use.empty,
        "region": place.region,
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme find`: physical memory, and every address at which it is mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.linux.translate import LINUX_PAT
from gdb_sme.render.document import Document, Line, bad, comment, number, plain, table
from gdb_sme.render.dump import bit, place_line, range_payload, rights, troubles
from gdb_sme.render.json import hexadecimal

if TYPE_CHECKING:
    from gdb_sme.linux.find import Finding, Found, View


def text(result: Finding) -> Document:
    """Each piece of physical memory with its views; conflicts are told in words, last the sums."""
    lines: list[Line] = []
    for found in result.found:
        lines.append(_title(found))
        lines += table([_view(view, result.c_bit) for view in found.views])
        if found.conflict:
            lines.append(_conflict(found))
    lines += troubles(result.scan)
    lines.append((plain(_sums(result)),))
    return Document(tuple(lines))


def _title(found: Found) -> Line:
    physical = found.physical
    count = len(found.views)
    times = "not mapped" if not count else "mapped once" if count == 1 else f"mapped {count} times"
    spans = [number(hex_pa(physical.start))]
    if physical.size > 1:
        spans += [plain("-"), number(hex_pa(physical.end - 1))]
    return (*spans, plain("  "), plain(times))


def _view(view: View, letter: str) -> list[Line]:
    how = view.mapped.attributes
    return [
        (plain("  "), number(hex_va(view.va))),
        (plain(size_text(how.page_size)),),
        (plain(rights(how)),),
        (plain(LINUX_PAT[how.cache_index]),),
        bit(how.encrypted if letter == "C" else not how.encrypted, letter),
        place_line(view.place) + (((comment(f"  ({view.note})")),) if view.note else ()),
    ]


def _conflict(found: Found) -> Line:
    encrypted = sum(view.encrypted for view in found.views)
    what = f"encrypted at {encrypted}, not encrypted at {len(found.views) - encrypted}"
    if found.by_design is not None:
        return plain(f"  both ways: {what}  "), comment(f"({found.by_design})")
    return (bad(f"  CONFLICT: {what}"),)


def _sums(result: Finding) -> str:
    count = len(result.found)
    conflicts = [found for found in result.found if found.conflict]
    explained = sum(found.by_design is not None for found in conflicts)
    parts = [f"{result.what}: {count} {'place' if count == 1 else 'places'}"]
    if result.more:
        parts.append("there are more")
    if conflicts:
        parts.append(f"{len(conflicts)} mapped both ways, {explained} of them by design")
    return "; ".join(parts)


def payload(result: Finding) -> dict[str, object]:
    """The finding as JSON.

    Members: what, root, found (start, end, conflict, by_design, views), more, troubles (their
    number), stopped_at. A view is a range as in `sme dump`, with va and note.
    """
    return {
        "what": result.what,
        "root": {"pa": hexadecimal(result.root.pa), "source": result.root.source},
        "found": [
            {
                "start": hexadecimal(found.physical.start),
                "end": hexadecimal(found.physical.end),
                "conflict": found.conflict,
                "by_design": found.by_design,
                "views": [
                    {
                        "va": hex_va(view.va),
                        "note": view.note,
                        **range_payload(view.mapped, view.place),
                    }
                    for view in found.views
                ],
            }
            for found in result.found
        ],
        "more": result.more,
        "troubles": len(result.scan.troubles),
        "stopped_at": hexadecimal(result.scan.stopped_at),
    }

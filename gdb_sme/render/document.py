# SPDX-License-Identifier: GPL-2.0-or-later
"""What a view writes: lines of named tokens, the same stream for every output.

The token names are those of Pygments below ``Token``, as text, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

#: A token's name and its text, without a newline.
Span = tuple[str, str]
Line = tuple[Span, ...]

GAP = "  "


@dataclass(frozen=True, slots=True)
class Document:
    """Lines of spans, from the top."""

    lines: tuple[Line, ...]

    def __add__(self, other: Document) -> Document:
        return Document(self.lines + other.lines)

    def __str__(self) -> str:
        """The plain text, lines joined by newlines, none at the end."""
        return "\n".join("".join(text for _, text in line) for line in self.lines)


def plain(text: str) -> Span:
    """Ordinary words."""
    return "Text", text


def number(text: str) -> Span:
    """An address or raw value."""
    return "Number.Hex", text


def keyword(text: str) -> Span:
    """A level, a field's label: the leftmost word of a line."""
    return "Keyword", text


def name(text: str) -> Span:
    """A kernel identifier: a symbol, a flag, a macro."""
    return "Name.Function", text


def good(text: str) -> Span:
    """A verdict that all is well, or the C-bit where it is set."""
    return "Generic.Inserted", text


def bad(text: str) -> Span:
    """A verdict that something is wrong."""
    return "Generic.Error", text


def comment(text: str) -> Span:
    """A remark, an assumption, what is by design."""
    return "Comment", text


def verdict(word: str) -> Span:
    """A verdict's word: ``ok`` and ``pass`` good, ``FAIL`` bad, all others remarks."""
    if word in ("ok", "pass"):
        return good(word)
    return bad(word) if word == "FAIL" else comment(word)


def spaced(spans: Iterable[Span], separator: str = " ") -> Line:
    """``spans`` with ``separator`` between them."""
    line: list[Span] = []
    for span in spans:
        if line:
            line.append(plain(separator))
        line.append(span)
    return tuple(line)


def width(line: Line) -> int:
    """Characters in ``line``."""
    return sum([len(text) for _, text in line])


def table(rows: Sequence[Sequence[Line]], right: frozenset[int] = frozenset()) -> tuple[Line, ...]:
    """``rows`` of cells as lines with aligned columns, `GAP` between them, nothing trailing.

    Args:
        rows: rows may be shorter than others; an empty cell is ``()``.
        right: indexes of columns that are aligned to the right.
    """
    # Most cells are one span: a call for each is a third of the time of a large table.
    sizes = [[len(c[0][1]) if len(c) == 1 else width(c) for c in row] for row in rows]
    widths = [max(column) for column in zip_longest(*sizes, fillvalue=0)]
    padding = [
        [" " * (most - size) for most, size in zip(widths, row, strict=False)] for row in sizes
    ]
    return tuple(_row(*each, right) for each in zip(rows, padding, strict=True))


def _row(row: Sequence[Line], padding: Sequence[str], right: frozenset[int]) -> Line:
    line: list[Span] = []
    pending = ""
    for column, cell in enumerate(row):
        if not cell:
            pending += padding[column] + GAP
            continue
        if column in right:
            before, after = pending + padding[column], GAP
        else:
            before, after = pending, padding[column] + GAP
        if before:
            line.append(("Text", before))
        line += cell
        pending = after
    return tuple(line)

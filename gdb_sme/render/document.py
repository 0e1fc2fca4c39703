# SPDX-License-Identifier: GPL-2.0-or-later
"""What a view writes: lines of named tokens, the same stream for every output.

The token names are those of Pygments below ``Token``, as text, so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    return sum(len(text) for _, text in line)


def table(rows: Sequence[Sequence[Line]], right: frozenset[int] = frozenset()) -> tuple[Line, ...]:
    """``rows`` of cells as lines with aligned columns, `GAP` between them, nothing trailing.

    Args:
        rows: rows may be shorter than others; an empty cell is ``()``.
        right: indexes of columns that are aligned to the right.
    """
    widths = [0] * max((len(row) for row in rows), default=0)
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], width(cell))
    return tuple(_row(row, widths, right) for row in rows)


def _row(row: Sequence[Line], widths: Sequence[int], right: frozenset[int]) -> Line:
    line: list[Span] = []
    pending = ""
    for column, cell in enumerate(row):
        padding = " " * (widths[column] - width(cell))
        before, after = (padding, "") if column in right else ("", padding)
        if cell:
            if pending + before:
                line.append(plain(pending + before))
            line.extend(cell)
            pending = after + GAP
        else:
            pending += padding + GAP
    return tuple(line)

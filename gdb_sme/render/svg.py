# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of the address space as SVG: a bar a region, in it the pieces in address order.

The width of a piece grows with the logarithm of its size, so that one page stays visible beside
gigabytes. Encryption is shown by height as well as by colour: encrypted pieces are full bars, those
that are not are half as high, faults stand out above. The band below tells the permissions.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from gdb_sme.core.address import PAGE_SIZE, hex_va, size_text
from gdb_sme.linux.addressmap import Piece, Row, State

#: Width of a bar in its own units.
BAR_WIDTH = 1000.0
#: Height of a bar with its band, likewise.
BAR_HEIGHT = 34.0

_BAND = (28.0, 6.0)  # top and height of the band of permissions
#: Top and height of a piece by its state.
_SHAPES = {
    State.ENCRYPTED: (6.0, 20.0),
    State.OPEN: (16.0, 10.0),
    State.PLAIN: (16.0, 10.0),
    State.FAULT: (0.0, 26.0),
}
_CLASSES = {
    State.ENCRYPTED: "enc",
    State.OPEN: "open",
    State.PLAIN: "open",
    State.FAULT: "fault",
}
_RIGHTS = {"r--": "r", "rw-": "rw", "r-x": "rx", "rwx": "rwx"}
#: The legend: class, words.
LEGEND = (
    ("enc", "encrypted"),
    ("open", "not encrypted"),
    ("fault", "a rule of the audit fails"),
)
RIGHTS_LEGEND = (
    ("r", "read"),
    ("rw", "read, write"),
    ("rx", "read, execute"),
    ("rwx", "write and execute"),
)

#: Colours by class, for a light and for a dark page.
LIGHT = {
    "enc": "#2a6f97", "open": "#d9902f", "fault": "#c1121f",
    "r": "#b8c0c8", "rw": "#6c7a89", "rx": "#5b9a4a", "rwx": "#7b2d8e",
    "page": "#ffffff", "ink": "#1d2329", "dim": "#5a6570", "line": "#d5dbe1",
}  # fmt: skip
DARK = {
    "enc": "#5fa8d3", "open": "#f0b35a", "fault": "#ff6b6b",
    "r": "#4a545e", "rw": "#9aa7b4", "rx": "#86c56f", "rwx": "#d79bea",
    "page": "#14181c", "ink": "#e4e8ec", "dim": "#9aa5b1", "line": "#313941",
}  # fmt: skip

_CLASSES_FILLED = ("enc", "open", "fault", "r", "rw", "rx", "rwx")


def fills() -> str:
    """The style rules that fill the pieces, by the variables of `variables`."""
    return "".join(f".{name}{{fill:var(--{name})}}" for name in _CLASSES_FILLED)


def variables() -> str:
    """The style rules that define the colours, light and dark."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece with its place in the bar."""

    piece: Piece
    x: float
    width: float


def layout(row: Row) -> tuple[Drawn, ...]:
    """The pieces of ``row`` over the whole width, a small gap where addresses are left out."""
    weights: list[tuple[Piece, float, float]] = []
    last = None
    for piece in row.pieces:
        gap = 0.0 if last is None or last == piece.va else 0.6
        # bit_length is the logarithm, exact for every size.
        weights.append((piece, gap, float((piece.mapped // PAGE_SIZE).bit_length())))
        last = piece.end
    unit = BAR_WIDTH / sum(gap + width for _, gap, width in weights)
    drawn, x = [], 0.0
    for piece, gap, width in weights:
        x += gap * unit
        drawn.append(Drawn(piece, x, width * unit))
        x += width * unit
    return tuple(drawn)


def describe(piece: Piece) -> str:
    """A piece in one line: ``0xffff...-0xffff...  2 MiB  rw- kernel  encrypted``."""
    words = f"{hex_va(piece.va)}-{hex_va(piece.end - 1)}  {size_text(piece.mapped)}  {piece.rights}"
    words += f" {'user' if piece.user else 'kernel'}  {piece.state.value}"
    return f"{words}  ({piece.note})" if piece.note else words


def bar(row: Row) -> str:
    """The drawing of a row without its frame: a group a piece, with its description as title."""
    return "".join(_group(each) for each in layout(row))


def _group(drawn: Drawn) -> str:
    piece = drawn.piece
    shapes = (
        (_CLASSES[piece.state], *_SHAPES[piece.state]),
        (_RIGHTS.get(piece.rights, "rwx"), *_BAND),
    )
    rects = "".join(
        f'<rect class="{name}" x="{drawn.x:.2f}" y="{top:g}" width="{drawn.width:.2f}" '
        f'height="{height:g}"/>'
        for name, top, height in shapes
    )
    return f"<g><title>{escape(describe(piece))}</title>{rects}</g>"


def summary(row: Row) -> str:
    """A row in words: what is mapped in it."""
    parts = [
        f"{size_text(row.mapped(state))} {state.value}" for state in State if row.mapped(state)
    ]
    return f"{row.region.name}: {', '.join(parts)}"


_LABEL, _ROW, _TOP = 210.0, 52.0, 78.0


def document(rows: tuple[Row, ...], title: str, subtitle: str) -> str:
    """The map as a file of its own."""
    width, height = _LABEL + BAR_WIDTH + 24, _TOP + _ROW * len(rows) + 8
    style = (
        f"{variables()}{fills()}svg{{background:var(--page)}}"
        "text{fill:var(--ink);font:13px ui-monospace,monospace}"
        "text.dim{fill:var(--dim);font-size:11px}text.title{font-weight:600;font-size:15px}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title><style>{style}</style>",
        f'<rect width="{width:g}" height="{height:g}" style="fill:var(--page)"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="dim" x="12" y="42">{escape(subtitle)}</text>',
        _legend(),
    ]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        parts += [
            f'<text x="12" y="{y + 18:g}">{escape(row.region.name)}</text>',
            f'<text class="dim" x="12" y="{y + 32:g}">{hex_va(row.pieces[0].va)}</text>',
            f'<g transform="translate({_LABEL:g} {y:g})">{bar(row)}</g>',
        ]
    return "".join([*parts, "</svg>\n"])


def _legend() -> str:
    parts, x = [], 12.0
    for name, words in (*LEGEND, *RIGHTS_LEGEND):
        parts.append(f'<rect class="{name}" x="{x:g}" y="54" width="12" height="10"/>')
        parts.append(f'<text class="dim" x="{x + 17:g}" y="63">{escape(words)}</text>')
        x += 36 + 6.7 * len(words)
    return "".join(parts)

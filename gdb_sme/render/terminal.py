# SPDX-License-Identifier: GPL-2.0-or-later
"""A document as text for a terminal, with Pygments' colours when they are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdb_sme.render.document import Document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pygments.token import _TokenType


def render(document: Document, *, colour: bool = False) -> str:
    """The text of ``document``, lines joined by newlines, none at the end.

    Without Pygments the text is the same, uncoloured.
    """
    if not colour:
        return str(document)
    try:
        # Imported only here: most of the time to load the extension would be Pygments otherwise.
        from pygments import format as format_tokens
        from pygments.formatters.terminal import TerminalFormatter
    except ImportError:
        return str(document)
    coloured: str = format_tokens(_tokens(document), TerminalFormatter(bg="dark"))
    return coloured


def _tokens(document: Document) -> Iterator[tuple[_TokenType, str]]:
    """The stream as Pygments wants it."""
    import pygments.token

    for index, line in enumerate(document.lines):
        if index:
            yield pygments.token.Text, "\n"
        for token_name, text in line:
            first, *rest = token_name.split(".")
            token = getattr(pygments.token, first)  # Number is Literal.Number there
            for part in rest:
                token = getattr(token, part)
            yield token, text

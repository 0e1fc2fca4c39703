# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme kaslr`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand

if TYPE_CHECKING:
    from argparse import Namespace


class Kaslr(SmeCommand):
    """Move gdb's symbols to where KASLR has put the running kernel.

    The sme commands find the kernel by themselves and do not need it; breakpoints, x, print and
    backtrace do. The place comes from the page tables of a CPU, and is believed when the build-id
    there is that of the symbol file. Does nothing where the symbols are right already.

    Example:
      (gdb) sme kaslr
      symbols moved by 0x37000000: _text is at 0xffffffffb8000000
    """

    name = "kaslr"

    def arguments(self, parser: Arguments) -> None:
        """None."""

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.target.relocate import move_symbols
        from gdb_sme.target.session import SESSIONS

        del args
        image = SESSIONS.current().kernel.image
        moved = move_symbols(SESSIONS.current())
        assert image is not None
        where = f"_text is at {image.va:#x}"
        gdb.write(
            f"symbols moved by {moved:#x}: {where}\n" if moved else f"nothing moved: {where}\n"
        )

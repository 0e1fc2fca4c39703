# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme decode`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand, evaluate
from gdb_sme.errors import TargetError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.core.cbit import EncryptionBit
    from gdb_sme.core.paging import PagingMode


class Decode(SmeCommand):
    """Decode a raw entry, CR3 or pgprot value; no target is needed.

    Names the kernel's macro that the value equals, or is nearest to. Without --c-bit the C-bit is
    that of the target, when there is one, or of `set sme c-bit`.

    Example:
      (gdb) sme decode 0x8000800002a001e3 --c-bit 47
    """

    name = "decode"
    complete_with = gdb.COMPLETE_EXPRESSION

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument(
            "--level",
            choices=("pgd", "p4d", "pud", "pmd", "pte", "cr3", "pgprot"),
            help="What the value is; otherwise every reading that makes sense.",
        )
        parser.add_argument(
            "--c-bit", metavar="N", type=int, help="Position of the C-bit, 32 to 51."
        )
        parser.add_argument("value", metavar="VALUE", nargs="+", help="Any expression of gdb's.")

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.encryption import registry
        from gdb_sme.linux.decode import decode
        from gdb_sme.linux.nonpresent import swap_layout
        from gdb_sme.render import decode as view
        from gdb_sme.target.symbols import GdbSymbols

        enc, mode = in_force()
        if args.c_bit is not None:
            enc = registry.by_name("sme", args.c_bit).bit
        layout = swap_layout(GdbSymbols())
        result = decode(evaluate(args.value), args.level, enc, mode, layout)
        self.show(args, result, view.text, view.payload)


def in_force() -> tuple[EncryptionBit, PagingMode]:
    """The encryption bit and paging mode to decode with; works without a target too."""
    from gdb_sme.core.cbit import NO_ENCRYPTION
    from gdb_sme.core.paging import LEVEL4
    from gdb_sme.encryption import registry
    from gdb_sme.target.session import SESSIONS
    from gdb_sme.target.settings import SETTINGS

    try:
        session = SESSIONS.current()
    except TargetError:
        if SETTINGS.c_bit is not None:
            return registry.by_name("sme", SETTINGS.c_bit).bit, LEVEL4
        return NO_ENCRYPTION, LEVEL4
    return session.kernel.table_enc, session.cpu.mode

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdb_sme.commands.base import SmeCommand

if TYPE_CHECKING:
    from argparse import Namespace


class Status(SmeCommand):
    """Show the encryption state of the kernel on one screen.

    The scheme in force and the C-bit, the kernel's masks, the boot stage, the control registers
    of every CPU, the target, and whether the symbols are the running kernel's. Answers at every
    stage, from the first instruction after reset on.

    Example:
      (gdb) sme status
      SME active    C-bit 47, sme_me_mask 0x0000800000000000 (the kernel's variables)
    """

    name = "status"

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.status import status
        from gdb_sme.render import status as view
        from gdb_sme.target.session import SESSIONS

        session = SESSIONS.current()
        result = status(session.kernel, session.target.title, session.symbols.file)
        self.show(args, result, view.text, view.payload)

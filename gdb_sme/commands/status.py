# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme status`."""

from __future__ import annotations

import argparse

from gdb_sme.commands.base import SmeCommand
from gdb_sme.linux.status import status
from gdb_sme.render import status as view
from gdb_sme.target.session import SESSIONS


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

    def run(self, args: argparse.Namespace) -> None:
        """Answer."""
        session = SESSIONS.current()
        result = status(session.kernel, session.target, session.symbols.file)
        self.show(args, result, view.text, view.payload)

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme cr3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand
from gdb_sme.errors import CheckFailed

if TYPE_CHECKING:
    from argparse import Namespace


class Cr3(SmeCommand):
    """Check CR3 of every CPU: is it __sme_pa(early_level4_pgt), or what it should be now?

    Address and C-bit are judged apart. In today's kernels early_level4_pgt is early_top_pgt and
    init_level4_pgt is init_top_pgt; whichever the kernel has is used. With --expect a mismatch is
    an error, for scripts. The kernel's own comparison strips the mask: a CR3 that lost its C-bit
    passes there and fails here.

    Example:
      (gdb) sme cr3 --expect early
      CPU 0  0x00008000030b6000  C
        address  0x030b6000  = __pa(early_top_pgt)                    ok
        C-bit    set         sme_me_mask 0x0000800000000000           ok
      CR3 == __sme_pa(early_top_pgt)
    """

    name = "cr3"
    complete_with = gdb.COMPLETE_SYMBOL

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument(
            "--expect",
            metavar="early|init|SYMBOL",
            help="The table that CR3 must hold: a mismatch is an error.",
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.cr3check import check_cr3
        from gdb_sme.render import cr3 as view
        from gdb_sme.target.session import SESSIONS

        report = check_cr3(SESSIONS.current().kernel, args.expect)
        self.show(args, report, view.text, view.payload)
        if args.expect and not report.passed:
            failed = ", ".join(str(check.cpu) for check in report.cpus if not check.passed)
            raise CheckFailed(
                f"CR3 is not __sme_pa of the expected table ({args.expect}) on CPU {failed}"
            )

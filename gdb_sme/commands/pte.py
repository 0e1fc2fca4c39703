# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme pte`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand, evaluate
from gdb_sme.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.linux.translate import Root
    from gdb_sme.target.session import Session


class Pte(SmeCommand):
    """Walk the live page tables for an address and show every entry with its C-bit.

    For each level: the entry's physical address, index, raw value, the C-bit, where it points and
    the flags by the kernel's names; then the page, its combined permissions, its memory type and
    whether it is encrypted. Entries that are not present are decoded, not called invalid.

    Example:
      (gdb) sme pte &init_top_pgt
      0xffffffff82a10000  init_top_pgt, kernel image
            entry at    index  raw                 C  to          flags
      CR3                      0x0000800002a10000  C  0x02a10000  init_top_pgt
      pgd   0x02a10ff8    511  0x0000800002a15067  C  0x02a15000  RW USER ACCESSED DIRTY ENC
      pud   0x02a15ff0    510  0x0000800002a16063  C  0x02a16000  RW ACCESSED DIRTY ENC
      pmd   0x02a160a8     21  0x8000800002a001e3  C  0x02a00000  RW ACCESSED DIRTY PSE ...
      0x02a10000  rw- kernel, write-back, encrypted
    """

    name = "pte"
    complete_with = gdb.COMPLETE_EXPRESSION

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        add_root_option(parser)
        parser.add_argument(
            "address", metavar="ADDRESS", nargs="+", help="Any expression of gdb's."
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.translate import translate
        from gdb_sme.render import walk as view
        from gdb_sme.target.session import SESSIONS

        session = SESSIONS.current()
        va = evaluate(args.address)
        root = choose_root(session, args.root)
        result = translate(session.kernel, va, session.cpu, root)
        self.show(args, result, view.text, view.payload)


def add_root_option(parser: Arguments) -> None:
    """``--root``: see `choose_root`."""
    parser.add_argument(
        "--root",
        metavar="ROOT",
        help="Start from a CPU's number, a symbol such as init_top_pgt or efi_mm, or a CR3 value.",
    )


def choose_root(session: Session, text: str | None) -> Root:
    """The root that the person names: none (the selected CPU's), a CPU, a symbol or a value."""
    from gdb_sme.linux.translate import root_of_cpu, root_of_symbol, root_of_value

    kernel = session.kernel
    if text is None:
        return root_of_cpu(kernel, session.cpu)
    if text.isdecimal() and int(text) < 4096:
        # No top-level table is in the first page: a small number is a CPU's.
        number = int(text)
        if number >= len(kernel.cpus):
            raise UsageError(f"--root {text}: there are CPUs 0 to {len(kernel.cpus) - 1}")
        return root_of_cpu(kernel, kernel.cpus[number])
    return root_of_symbol(kernel, text) or root_of_value(kernel, evaluate(text), session.cpu)

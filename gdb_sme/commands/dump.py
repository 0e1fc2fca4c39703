# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme dump`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand, evaluate
from gdb_sme.commands.progress import Progress
from gdb_sme.commands.pte import add_root_option, choose_root
from gdb_sme.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.linux.dump import Filter
    from gdb_sme.linux.translate import Root
    from gdb_sme.target.session import Session

_SIZES = {"4K": 1 << 12, "2M": 1 << 21, "1G": 1 << 30}
_LEVELS = ("pgd", "p4d", "pud", "pmd", "pte")


class Dump(SmeCommand):
    """Show everything that the live page tables map, as merged ranges with their C-bit.

    Pages that follow one another virtually and physically and are mapped alike are one range:
    virtual addresses (first and last), physical address, pages, rights combined over all levels,
    memory type, GLOBAL, the C-bit, region and nearest symbol. A range that is the same physical
    page over and over is marked "repeated".

    Example:
      (gdb) sme dump --unencrypted
      virtual             to                  physical    pages  of     rights      type ...
      0xffff888000098000  0xffff888000098fff  0x00098000      1  4 KiB  r-- kernel  write-back
      0xffffffff83600000  0xffffffff83602fff  0x03600000      3  4 KiB  rw- kernel  write-back
    """

    name = "dump"
    complete_with = gdb.COMPLETE_EXPRESSION

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        switch = {"action": "store_true"}
        parser.add_argument("--encrypted", help="Only what is encrypted.", **switch)
        parser.add_argument("--unencrypted", help="Only what is not encrypted.", **switch)
        parser.add_argument("--wx", help="Only what is writable and executable.", **switch)
        parser.add_argument("--user-pages", help="Only what user mode can reach.", **switch)
        parser.add_argument("--size", choices=tuple(_SIZES), help="Only pages of this size.")
        parser.add_argument(
            "--level", choices=_LEVELS, help="Only what an entry of this level maps, or its tables."
        )
        parser.add_argument(
            "--region", metavar="REGION", help="Only a region of the layout, such as direct-map."
        )
        parser.add_argument("--tables", help="The table pages, and the bit on each.", **switch)
        add_root_option(parser)
        parser.add_argument(
            "--user", metavar="PID", type=int, help="A task's own tables: its user half."
        )
        parser.add_argument(
            "range",
            metavar="START [END]",
            nargs="*",
            help="From START on, and below END: words without blanks.",
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.dump import dump, scan_root
        from gdb_sme.render import dump as view
        from gdb_sme.target.session import SESSIONS

        only = _filter(args)
        session = SESSIONS.current()
        start, end = _bounds(args.range, session, own_half=args.user is not None)
        root = _root(args, session)
        with Progress("sme dump: at") as progress:
            found = scan_root(
                session.kernel, session.cpu, root,
                start=start, end=end, with_tables=args.tables, progress=progress,
            )  # fmt: skip
        result = dump(session.kernel, session.cpu, root, found, only, with_tables=args.tables)
        self.show(args, result, view.text, view.payload)


def _filter(args: Namespace) -> Filter:
    from gdb_sme.linux.dump import Filter

    if args.encrypted and args.unencrypted:
        raise UsageError("--encrypted and --unencrypted exclude one another; leave both out")
    return Filter(
        encrypted=True if args.encrypted else False if args.unencrypted else None,
        write_execute=args.wx,
        user=args.user_pages,
        level=args.level,
        page_size=_SIZES[args.size] if args.size else None,
        region=args.region.strip("\"'") if args.region else None,
    )


def _bounds(words: list[str], session: Session, *, own_half: bool) -> tuple[int, int]:
    if len(words) > 2:
        raise UsageError(f"{' '.join(words)}: give START and END only; see: help sme dump")
    half = 1 << (session.cpu.mode.va_bits - 1)
    start = evaluate(words[0]) if words else 0
    end = evaluate(words[1]) if len(words) > 1 else half if own_half and start < half else 1 << 64
    if start >= end:
        raise UsageError(f"END {end:#x} is not above START {start:#x}")
    return start, end


def _root(args: Namespace, session: Session) -> Root:
    if args.user is None:
        return choose_root(session, args.root)
    if args.root is not None:
        raise UsageError("--root and --user exclude one another; give one")
    from gdb_sme.linux.tasks import root_of_task

    return root_of_task(session.kernel, args.user)

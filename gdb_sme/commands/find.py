# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme find`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand, evaluate
from gdb_sme.commands.progress import Progress
from gdb_sme.commands.pte import add_root_option, choose_root
from gdb_sme.errors import SymbolError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.target.session import Session

_MOST = 64


class Find(SmeCommand):
    """Find every virtual address that maps a physical page, with its C-bit.

    Memory that is mapped both with and without the C-bit stands out as CONFLICT, unless it is so
    by design. --bytes searches all of RAM: hexadecimal digits, or text in quotes.

    Example:
      (gdb) sme find --symbol boot_ghcb_page
      0x03600000-0x03600fff  mapped 2 times
        0xffff888003600000  2 MiB  rw- kernel  write-back  C  direct map
        0xffffffff83600000  4 KiB  rw- kernel  write-back  -  kernel image, ... (by design)
        both ways: encrypted at 1, not encrypted at 1  (.bss..decrypted: by design)
    """

    name = "find"
    complete_with = gdb.COMPLETE_EXPRESSION

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument("--symbol", metavar="SYMBOL", help="Memory of a kernel symbol.")
        parser.add_argument("--bytes", metavar="BYTES", help="Memory that holds these bytes.")
        parser.add_argument(
            "--conflicts", action="store_true", help="All memory that is mapped both ways."
        )
        add_root_option(parser)
        parser.add_argument(
            "physical", metavar="PHYSICAL", nargs="*", help="A physical address, any expression."
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux import find
        from gdb_sme.linux.dump import scan_root
        from gdb_sme.render import find as view
        from gdb_sme.target.session import SESSIONS

        ways = (bool(args.physical), bool(args.symbol), bool(args.bytes), args.conflicts)
        if sum(ways) != 1:
            raise UsageError("give one of PHYSICAL, --symbol, --bytes and --conflicts")
        pattern = parse_bytes(args.bytes) if args.bytes else b""
        session = SESSIONS.current()
        kernel, cpu = session.kernel, session.cpu
        root = choose_root(session, args.root)
        with Progress("sme find: at") as progress:
            scanned = scan_root(kernel, cpu, root, progress=progress)
            if args.conflicts:
                what, found = "conflicts", find.find_conflicts(kernel, cpu, scanned)
                more = False
            else:
                if args.bytes:
                    places = find.search(kernel, pattern, _MOST + 1, progress)
                    what, size = f"bytes {pattern.hex()}", len(pattern)
                else:
                    what, place, size = _place(args, session)
                    places = (place,)
                more = len(places) > _MOST
                wanted = (find.page_of(place, size) for place in places[:_MOST])
                found = find.find_physical(kernel, cpu, scanned, wanted)
        letter = "C" if kernel.table_enc.set_is_encrypted else "S"
        result = find.Finding(what, root, scanned, found, letter, more)
        self.show(args, result, view.text, view.payload)


def _place(args: Namespace, session: Session) -> tuple[str, int, int]:
    """What is looked for, its physical address, and its size in bytes."""
    from gdb_sme.core.address import PHYSICAL_BITS

    kernel = session.kernel
    if args.symbol:
        pa = kernel.pa_of(args.symbol)
        if pa is None:
            raise SymbolError(
                f"{args.symbol} is no symbol of the kernel image, or the image is not found; "
                "give its physical address"
            )
        return args.symbol, pa, kernel.symbols.size(args.symbol) or 1
    pa = evaluate(args.physical) & ~kernel.table_enc.mask
    if pa >> PHYSICAL_BITS:
        raise UsageError(
            f"{pa:#x} is no physical address: those have {PHYSICAL_BITS} bits; for a virtual one "
            "see: sme pte, or give a symbol with --symbol"
        )
    return f"physical {pa:#x}", pa, 1


def parse_bytes(text: str) -> bytes:
    """``dead beef`` or ``0xdeadbeef`` as bytes in that order, ``"text"`` as ASCII.

    Raises:
        UsageError: neither.
    """
    if text[0] in "\"'" and text[-1] == text[0] and len(text) > 2:
        try:
            return text[1:-1].encode("ascii")
        except UnicodeEncodeError as error:
            raise UsageError(f"{text} is not ASCII; give the bytes in hexadecimal") from error
    try:
        found = bytes.fromhex(text.removeprefix("0x").strip("\"'"))
    except ValueError as error:
        raise UsageError(
            f'{text} is neither hexadecimal digits in pairs nor text in quotes: "Linux"'
        ) from error
    if not found:
        raise UsageError("there is nothing to search for; give at least one byte")
    return found

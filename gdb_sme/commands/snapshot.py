# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme snapshot` and `sme diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand
from gdb_sme.commands.progress import Progress
from gdb_sme.commands.pte import choose_root
from gdb_sme.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from gdb_sme.linux.snapshot import Snapshot as Taken

#: The kinds of change, as `gdb_sme.linux.diff.Kind` has them.
_KINDS = (
    "c-bit",
    "permissions",
    "mapped",
    "unmapped",
    "moved",
    "memory-type",
    "page-size",
    "global",
)  # fmt: skip


class Snapshots:
    """The snapshots of this gdb session, by name; they outlive their target."""

    def __init__(self) -> None:
        self.taken: dict[str, Taken] = {}

    def find(self, name: str) -> Taken:
        """The snapshot of that name, or in the file of that name.

        Raises:
            UsageError: there is neither.
        """
        from gdb_sme.linux.snapshot import load

        if name in self.taken:
            return self.taken[name]
        path = _path(name)
        if path.is_file():
            return load(path)
        known = f"; there are {', '.join(self.taken)}" if self.taken else ""
        raise UsageError(f"no snapshot and no file {name!r}{known}; take one: sme snapshot NAME")


SNAPSHOTS = Snapshots()


class Snapshot(SmeCommand):
    """Keep what the live page tables map now, to compare it later with `sme diff`.

    Without a name, show the snapshots of this session. A saved snapshot can be loaded in another
    session, or given to `sme diff` by its file name; it is JSON, compressed with gzip.

    Example:
      (gdb) sme snapshot before
      (gdb) sme snapshot before --save /tmp/before.json.gz
      (gdb) sme snapshot old --load /tmp/before.json.gz
    """

    name = "snapshot"

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument("--save", metavar="FILE", help="Write it to a file as well.")
        parser.add_argument("--load", metavar="FILE", help="Take it from a file instead.")
        parser.add_argument(
            "--root",
            metavar="ROOT",
            help="Start from a CPU's number, a symbol such as init_top_pgt, or a CR3 value.",
        )
        parser.add_argument("name", metavar="NAME", nargs="?", help="What to call it.")

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.render import diff as view

        if args.name is None:
            if args.save or args.load:
                raise UsageError("give the snapshot a name: sme snapshot NAME --save FILE")
            shown = tuple(SNAPSHOTS.taken.values())
        else:
            shown = (self._obtain(args),)
        self.show(args, shown, view.head, view.heads_payload)

    def _obtain(self, args: Namespace) -> Taken:
        from dataclasses import replace

        from gdb_sme.linux.snapshot import load, save

        if args.load:
            if args.save or args.root:
                raise UsageError("--load goes with neither --save nor --root")
            taken = replace(load(_path(args.load)), name=args.name)
        elif args.save and not args.root and args.name in SNAPSHOTS.taken:
            # To save what was taken at an earlier stop.
            taken = SNAPSHOTS.taken[args.name]
        else:
            taken = take_now(args.name, args.root)
        if args.save:
            save(taken, _path(args.save))
        SNAPSHOTS.taken[args.name] = taken
        return taken


class Diff(SmeCommand):
    """Show what changed between two snapshots, or between a snapshot and now.

    Each is a name given to `sme snapshot`, or a file that it saved. Mapped, unmapped, moved to
    other physical memory, other permissions, the C-bit flipped (set_memory_decrypted at work),
    other memory type, other page size. A change that goes on over many pages is one line.

    Example:
      (gdb) sme snapshot before
      (gdb) continue
      (gdb) sme diff before --only c-bit
      0xffff88801b400000  0xffff88801f3fffff  64 MiB  0x1b400000  c-bit C -> -  direct map
    """

    name = "diff"

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument(
            "--only", choices=_KINDS, action="append", help="Only changes of this kind."
        )
        parser.add_argument("a", metavar="A", help="The earlier snapshot, or its file.")
        parser.add_argument("b", metavar="B", nargs="?", help="The later one; now, if left out.")

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.diff import Kind, diff
        from gdb_sme.render import diff as view

        before = SNAPSHOTS.find(_unquoted(args.a))
        after = take_now("now") if args.b is None else SNAPSHOTS.find(_unquoted(args.b))
        only = frozenset(Kind(each) for each in args.only) if args.only else None
        self.show(args, diff(before, after, only), view.text, view.payload)

    def complete(self, text: str, word: str) -> list[str] | int:
        """Complete the names of snapshots too."""
        last = text.rpartition(" ")[2]
        found = [name for name in SNAPSHOTS.taken if name.startswith(last)]
        if last.startswith("-") or text.endswith("--only ") or not found:
            known = super().complete(text, word)
            return known if known != gdb.COMPLETE_NONE else gdb.COMPLETE_FILENAME
        return [name[len(last) - len(word) :] for name in found]


def take_now(name: str, root: str | None = None) -> Taken:
    """A snapshot of this stop under ``name``; ``root`` as `sme pte --root` takes it."""
    from gdb_sme.linux.snapshot import take
    from gdb_sme.target.session import SESSIONS

    session = SESSIONS.current()
    with Progress("sme snapshot: at") as progress:
        return take(name, session.kernel, session.cpu, choose_root(session, root), progress)


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(_unquoted(text)).expanduser()


def _unquoted(text: str) -> str:
    """A word without the quotes that the command line keeps around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text

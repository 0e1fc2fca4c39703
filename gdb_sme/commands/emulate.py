# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme emulate`: the one command of this file's kind that changes the guest, as its name says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand
from gdb_sme.errors import EmulationError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.target.emulate import Emulation

_DEFAULT_C_BIT = 47


class Emulate(SmeCommand):
    """Make the kernel find SME or SEV on stock QEMU, as on an AMD machine.

    Answers CPUID and RDMSR in sme_enable and where the kernel identifies its CPUs, by invisible
    breakpoints that are removed when all CPUs are identified; then the kernel's own code turns
    encryption on. Give it at reset, then continue. QEMU must show its RAM a second time at
    1 << C-bit: scripts/sme-debug starts it so, and docs/emulation.md tells how to by hand.
    Page tables, CR3, masks, code and order are real; no byte is encrypted.

    Example:
      (gdb) target remote qemu-gdb.sock
      (gdb) sme emulate sme
      (gdb) hbreak start_kernel
      (gdb) continue
    """

    name = "emulate"

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        parser.add_argument(
            "scheme",
            choices=("sme", "sev", "off"),
            nargs="?",
            help="What to announce; off takes the breakpoints back; none shows the state.",
        )
        parser.add_argument(
            "--c-bit",
            metavar="N",
            type=int,
            help="Position of the C-bit, 43 to 51; else where QEMU shows its RAM again.",
        )
        parser.add_argument(
            "--reduction",
            metavar="N",
            type=int,
            default=5,
            help="Physical address bits that encryption costs, 0 to 15; 5 as on EPYC.",
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        if args.scheme is None:
            _write(EMULATIONS.describe())
        elif args.scheme == "off":
            EMULATIONS.cancel()
            _write("emulation off")
        else:
            EMULATIONS.start(args.scheme, args.c_bit, args.reduction)
            _write(EMULATIONS.describe())


class Emulations:
    """The emulation of this gdb session, at most one."""

    def __init__(self) -> None:
        self._emulation: Emulation | None = None

    def describe(self) -> str:
        """Its state in one line."""
        if self._emulation is None:
            return "no emulation; at reset, start it with: sme emulate sme"
        machine = self._emulation.machine
        return (
            f"{machine.scheme.upper()} with C-bit {machine.c_bit} {self._emulation.state} "
            f"({self._emulation.answers} answers given)"
        )

    def start(self, scheme: str, c_bit: int | None, reduction: int) -> None:
        """Arm it.

        Raises:
            UsageError, EmulationError: why not.
        """
        from gdb_sme.target.emulate import Emulation, Machine
        from gdb_sme.target.session import SESSIONS

        session = SESSIONS.current()
        stub = session.require_stub("emulation")
        if c_bit is None:
            views = tuple(stub.map.second_views)
            c_bit = views[0] if len(views) == 1 else _DEFAULT_C_BIT
        if not 43 <= c_bit <= 51:
            raise UsageError(f"--c-bit {c_bit}: give a bit from 43 to 51")
        if not 0 <= reduction <= 15:
            raise UsageError(f"--reduction {reduction}: give 0 to 15 bits")
        if self._emulation is not None and self._emulation.active:
            raise EmulationError("an emulation is armed already; take it back: sme emulate off")
        self._emulation = Emulation(
            Machine(scheme, c_bit, reduction), stub, session.kernel, session.symbols
        )

    def cancel(self, _event: object = None) -> None:
        """Take it back, also when the target is gone."""
        if self._emulation is not None:
            self._emulation.cancel()
            self._emulation = None


EMULATIONS = Emulations()


def _write(text: str) -> None:
    gdb.write(f"{text}\n")

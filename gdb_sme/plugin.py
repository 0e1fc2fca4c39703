# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension: `source gdb_sme/plugin.py` in gdb registers everything; twice is harmless."""

import os
import sys

if __name__ == "__main__":
    # gdb runs a sourced file as __main__, outside its package: import it as what it is.
    _ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if _ROOT not in sys.path:
        sys.path.insert(0, _ROOT)
    import importlib

    importlib.import_module("gdb_sme.plugin").register()
else:
    import gdb
    import gdb.printing

    from gdb_sme.commands import functions, parameters, printers
    from gdb_sme.commands.audit import Audit
    from gdb_sme.commands.cr3 import Cr3
    from gdb_sme.commands.decode import Decode
    from gdb_sme.commands.dump import Dump
    from gdb_sme.commands.emulate import EMULATIONS, Emulate
    from gdb_sme.commands.find import Find
    from gdb_sme.commands.kaslr import Kaslr
    from gdb_sme.commands.pte import Pte
    from gdb_sme.commands.report import Report
    from gdb_sme.commands.snapshot import Diff, Snapshot
    from gdb_sme.commands.status import Status
    from gdb_sme.commands.trace import TRACES, Trace
    from gdb_sme.target.hardware import WARNING
    from gdb_sme.target.probe import Silent

    COMMANDS = (
        Status,
        Pte,
        Dump,
        Find,
        Cr3,
        Decode,
        Emulate,
        Trace,
        Kaslr,
        Audit,
        Snapshot,
        Diff,
        Report,
    )

    class _Prefix(gdb.Command):
        """Memory encryption (AMD SME and SEV) in the page tables of a live kernel.

        Connect to a stopped x86-64 kernel, load its vmlinux, then:
          sme status    what is in force, and how far the boot has come
          sme pte       one address, level by level
          sme cr3       is CR3 what __sme_pa() of its table would be?
        """

        def __init__(self, name: str, kind: int) -> None:
            super().__init__(name, kind, prefix=True)
            self._name = name

        def invoke(self, argument: str, from_tty: bool) -> None:
            """Called by gdb when no command of this prefix follows."""
            if argument:
                word = argument.split(maxsplit=1)[0]
                raise gdb.GdbError(
                    f'Undefined {self._name} command: "{word}".  Try "help {self._name}".'
                )
            self.alone(from_tty)

        def alone(self, from_tty: bool) -> None:
            """The prefix by itself: what can follow."""
            gdb.execute(f"help {self._name}", from_tty)

    class _Set(_Prefix):
        """Settings of gdb_sme."""

    class _Show(_Prefix):
        """Settings of gdb_sme."""

        def alone(self, from_tty: bool) -> None:
            """All of them with their values."""
            for parameter in parameters.PARAMETERS:
                gdb.execute(f"show {parameter.name}", from_tty)

    _registered = False

    def register() -> None:
        """Register commands, functions, parameters and printers with gdb, once a session."""
        global _registered  # noqa: PLW0603 - gdb keeps what is registered until it ends
        if _registered:
            return
        _registered = True
        _Prefix("sme", gdb.COMMAND_DATA)
        _Set("set sme", gdb.COMMAND_NONE)
        _Show("show sme", gdb.COMMAND_NONE)
        for command in COMMANDS:
            command()
        for function in functions.FUNCTIONS:
            function()
        for parameter in parameters.PARAMETERS:
            parameter()
        gdb.printing.register_pretty_printer(None, printers.collection(), replace=True)
        gdb.events.stop.connect(Silent.delete_retired)
        for event in (gdb.events.exited, gdb.events.connection_removed):
            event.connect(Silent.delete_retired)
            event.connect(EMULATIONS.cancel)
            event.connect(TRACES.disconnected)
            event.connect(WARNING.disconnected)
        gdb.events.breakpoint_created.connect(WARNING.created)

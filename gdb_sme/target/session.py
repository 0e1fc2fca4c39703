# SPDX-License-Identifier: GPL-2.0-or-later
"""The target at its present stop, made anew when it has run or changed."""

from __future__ import annotations

from dataclasses import dataclass

import gdb

from gdb_sme.core.cr3 import CpuState
from gdb_sme.errors import TargetError
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.target.connection import require_stopped
from gdb_sme.target.kallsyms import KernelSymbols, SymbolChoice, given_symbols
from gdb_sme.target.kinds import Target, find_target
from gdb_sme.target.qemu import QemuPhysMemory
from gdb_sme.target.settings import SETTINGS


@dataclass(frozen=True, slots=True)
class Session:
    """One stop of one target.

    Attributes:
        target: the target.
        symbols: the symbol file, or what stands in for it.
        kernel: the kernel as it stands now.
    """

    target: Target
    symbols: KernelSymbols
    kernel: Kernel

    @property
    def cpu(self) -> CpuState:
        """The CPU that is selected in gdb."""
        return self.kernel.cpus[self.target.registers.current]

    def require_stub(self, what: str) -> QemuPhysMemory:
        """QEMU's stub, for a command that changes the guest.

        Raises:
            TargetError: the target is of another kind.
        """
        if self.target.kind == "kgdb":
            raise TargetError(
                f"{what} cannot be had over kgdb, which begins in setup_arch() at the earliest "
                "(kgdboc_earlycon): sme_me_mask, early_pmd_flags and the first CR3 are written "
                "before; it needs QEMU's gdb stub"
            )
        if self.target.stub is None:
            raise TargetError(
                f"{what} needs QEMU's gdb stub, and this is {self.target.title}; "
                "connect to QEMU with: target remote /path/of/qemu-gdb.sock"
            )
        return self.target.stub


#: gdb's events after which what was read at a stop may be false, and after which all is gone.
_CHANGES = (
    "cont",
    "stop",
    "inferior_call",
    "memory_changed",
    "register_changed",
    "new_objfile",
    "clear_objfiles",
)
_ENDS = ("exited", "connection_removed")


class Sessions:
    """Gives the session of the present stop; forgets it on every event that could change it."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._target: tuple[object, Target] | None = None
        self._images: dict[object, KernelImage] = {}
        self._symbols = SymbolChoice()
        self._watching = False

    def _watch(self) -> None:
        """Follow gdb's events from the first session on."""
        if self._watching:
            return
        self._watching = True
        events = gdb.events
        for registry in _CHANGES:
            getattr(events, registry).connect(self.forget)
        for registry in _ENDS:
            getattr(events, registry).connect(self.disconnected)

    def forget(self, _event: object = None) -> None:
        """Drop what was read at this stop."""
        self._session = None

    def disconnected(self, _event: object = None) -> None:
        """Drop what belongs to the target that is gone."""
        self._session = None
        self._target = None
        self._images.clear()
        self._symbols.forget()

    def current(self) -> Session:
        """The session of the present stop.

        Raises:
            TargetError: no target, a running one, or one of the wrong kind.
        """
        require_stopped()
        self._watch()
        if self._session is None:
            self._session = self._open()
        return self._session

    def _open(self) -> Session:
        target = self._find_target()
        virtual = target.virtual
        if virtual is not None:
            virtual.new_stop(given_symbols())
        cpus = target.registers.cpus()
        symbols = self._symbols.choose(target.memory, cpus, target.vmcoreinfo)
        key = gdb.selected_inferior().num
        known = self._images.get(key)
        if virtual is not None:
            known = virtual.image
        kernel = Kernel(
            target.memory,
            symbols,
            cpus,
            c_bit=SETTINGS.c_bit,
            hints=(known,) if known else (),
            vmcoreinfo=target.vmcoreinfo,
            virtual=virtual.read_virtual if virtual is not None else None,
        )
        if kernel.image is not None:
            self._images[key] = kernel.image
        return Session(target, symbols, kernel)

    def _find_target(self) -> Target:
        connection = gdb.selected_inferior().connection
        if self._target is None or self._target[0] is not connection:
            self._target = (connection, find_target(SETTINGS.target))
        return self._target[1]


SESSIONS = Sessions()

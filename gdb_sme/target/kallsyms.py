# SPDX-License-Identifier: GPL-2.0-or-later
"""Which symbols to use: gdb's, those of a System.map, or the kernel's own out of its memory."""

from __future__ import annotations

from pathlib import Path

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import PhysMemory
from gdb_sme.errors import SymbolError
from gdb_sme.linux.image import guest_build_id, mapped_image
from gdb_sme.linux.kallsyms import read_kallsyms
from gdb_sme.linux.untyped import UntypedSymbols, parse_system_map
from gdb_sme.linux.vmcoreinfo import Vmcoreinfo
from gdb_sme.target.settings import SETTINGS
from gdb_sme.target.symbols import GdbSymbols

#: What `SymbolChoice` chooses among.
KernelSymbols = GdbSymbols | UntypedSymbols


def read_system_map(path: str) -> UntypedSymbols:
    """The symbols of a System.map.

    Raises:
        SymbolError: it cannot be read, or is none.
    """
    try:
        return parse_system_map(Path(path).expanduser().read_text("ascii", "replace"), path)
    except OSError as error:
        raise SymbolError(f"cannot read {path}: {error.strerror}") from error


def given_symbols() -> KernelSymbols:
    """The symbols that the person gave: `set sme system-map` first, else gdb's, if it has any."""
    return GdbSymbols() if SETTINGS.system_map is None else SETTINGS.system_map


class SymbolChoice:
    """Chooses at every stop; keeps what was read from the guest as long as the target lasts."""

    def __init__(self) -> None:
        self._found: tuple[tuple[int, int], UntypedSymbols] | None = None

    def forget(self) -> None:
        """Drop what was read from a target that is gone."""
        self._found = None

    def choose(
        self, memory: PhysMemory, cpus: tuple[CpuState, ...], vmcoreinfo: Vmcoreinfo | None
    ) -> KernelSymbols:
        """`set sme system-map` first; gdb's if they are a kernel's; else the guest's kallsyms.

        gdb's, though they are of no use, when there is no kernel to read any from.
        """
        symbols = given_symbols()
        if isinstance(symbols, UntypedSymbols) or symbols.address("_text") is not None:
            return symbols
        place = mapped_image(memory, cpus)
        if place is None and vmcoreinfo is not None and vmcoreinfo.image is not None:
            place = vmcoreinfo.image.va, vmcoreinfo.image.pa
        if place is not None and (self._found is None or self._found[0] != place):
            self._found = (place, _read(memory, *place))
        return self._found[1] if self._found is not None and len(self._found[1]) else symbols


def _read(memory: PhysMemory, va: int, pa: int) -> UntypedSymbols:
    symbols = read_kallsyms(memory, va, pa)
    table = UntypedSymbols(symbols, "kallsyms in the kernel's memory")
    table.build_id = guest_build_id(memory, table, va - pa)
    return table

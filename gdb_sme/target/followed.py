# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel while it runs from event to event: what does not change is looked up once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from gdb_sme.core.address import U64
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Field, PhysMemory
from gdb_sme.linux.image import START_KERNEL_MAP, KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.symtab import NO_SYMBOLS, SymbolTable
from gdb_sme.target.symbols import GdbSymbols

_Answer = TypeVar("_Answer")


class RememberedSymbols(GdbSymbols):
    """The symbol file, asked once for each thing, and by its symbol table where that can tell:
    for a name, gdb reads the debug information of a whole compilation unit.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], object] = {}

    def forget(self) -> None:
        """The symbol file changed, or moved."""
        self._known.clear()

    def _once(self, key: tuple[str, ...], ask: Callable[[], _Answer]) -> _Answer:
        if key not in self._known:
            self._known[key] = ask()
        return self._known[key]  # type: ignore[return-value]

    def address(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.address`."""
        return self._once(("address", name), lambda: self._address(name))

    def _address(self, name: str) -> int | None:
        if self._table.empty:
            return GdbSymbols.address(self, name)
        found = self._table.find(name)
        if len(found) > 1:
            return GdbSymbols.address(self, name)  # it knows which one is meant
        if not found:
            return None
        linked = found[0].address
        # Per-CPU symbols count from 0 up to 6.14, and stay where they are.
        return (linked + self._moved) & U64 if linked >= START_KERNEL_MAP else linked

    def size(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.size`."""
        return self._once(("size", name), lambda: self._size(name))

    def _size(self, name: str) -> int | None:
        found = self._table.find(name)
        alone = len(found) == 1 and found[0].size
        return alone or GdbSymbols.size(self, name)

    @property
    def _table(self) -> SymbolTable:
        return self._once(("table",), self._read_table)

    def _read_table(self) -> SymbolTable:
        try:
            return SymbolTable.of(Path(self.file or ""))
        except (OSError, ValueError):
            return NO_SYMBOLS  # gdb has it from elsewhere, and is asked for each name

    @property
    def _moved(self) -> int:
        """Bytes by which gdb has the symbols above their link addresses."""
        return self._once(("moved",), self._ask_moved)

    def _ask_moved(self) -> int:
        linked, here = self._table.find("_text"), GdbSymbols.address(self, "_text")
        return 0 if not linked or here is None else here - linked[0].address

    def field(self, struct: str, path: str) -> Field | None:
        """See `gdb_sme.core.ports.Symbols.field`."""
        return self._once(("field", struct, path), lambda: GdbSymbols.field(self, struct, path))

    def type_size(self, struct: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.type_size`."""
        return self._once(("type_size", struct), lambda: GdbSymbols.type_size(self, struct))

    def enumerator(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.enumerator`."""
        return self._once(("enumerator", name), lambda: GdbSymbols.enumerator(self, name))


class FollowedKernel(Kernel):
    """A kernel at one stop whose place is known: it is not searched for again.

    Args:
        memory: guest physical memory.
        symbols: the kernel's symbols.
        cpu: the CPU that stopped.
        image: the kernel's place.
        virtual: reads kernel memory by virtual address, where the target knows no other way.
    """

    def __init__(
        self,
        memory: PhysMemory,
        symbols: RememberedSymbols,
        cpu: CpuState,
        image: KernelImage,
        virtual: Callable[[int, int], bytes] | None = None,
    ) -> None:
        super().__init__(memory, symbols, (cpu,), virtual=virtual)
        self._place = image
        self._read: dict[str, int | None] = {}

    def read_symbol(self, name: str, size: int | None = None) -> int | None:
        """Unsigned value of variable ``name``, read once at this stop."""
        if name not in self._read:
            self._read[name] = super().read_symbol(name, size)
        return self._read[name]

    @cached_property
    def image(self) -> KernelImage | None:
        """Where the kernel lies."""
        return self._place


def with_symbols_at(image: KernelImage, text: int) -> KernelImage:
    """The same place of the kernel, for symbols that have _text at ``text`` now."""
    return (
        image
        if text == image.text
        else replace(image, text=text, end=image.end - image.text + text)
    )


def symbol_address(image: KernelImage, pc: int) -> int:
    """The debugger's address for RIP, at an identity or a virtual address."""
    at_identity = image.symbol_va(pc)
    return (pc - image.koff) & U64 if at_identity is None else at_identity

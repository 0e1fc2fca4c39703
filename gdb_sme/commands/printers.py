# SPDX-License-Identifier: GPL-2.0-or-later
"""Pretty-printers for pgd_t, p4d_t, pud_t, pmd_t, pte_t and pgprot_t."""

from __future__ import annotations

import gdb
import gdb.printing

from gdb_sme.commands.decode import in_force
from gdb_sme.core.address import hex_pa, hex_va
from gdb_sme.core.entry import Entry, flag_bits
from gdb_sme.core.paging import P4D, PMD, PTE, PUD, Level, PagingMode

_ENTRIES = {"p4d_t": P4D, "pud_t": PUD, "pmd_t": PMD, "pte_t": PTE}


def _raw(value: gdb.Value) -> int:
    """The number inside, through the structures of one member that Linux wraps it in."""
    while value.type.strip_typedefs().code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        value = value[value.type.strip_typedefs().fields()[0]]
    return int(value) & ((1 << 64) - 1)


class EntryPrinter:
    """An entry: its raw value, where it points, the C-bit and the flags."""

    def __init__(self, value: gdb.Value) -> None:
        self._value = value

    def to_string(self) -> str:
        """Called by gdb."""
        raw = _raw(self._value)
        enc, mode = in_force()
        entry = Entry(raw, _level(str(self._value.type.unqualified()), mode), enc)
        if not entry.present:
            return f"{hex_va(raw)} not present" if raw else f"{hex_va(raw)} none"
        flags = " ".join(flag for flag in entry.flags if flag != "PRESENT")
        letter = "C" if entry.c_bit else "-"
        return f"{hex_va(raw)} {letter} -> {hex_pa(entry.pa)} {flags}"


def _level(type_name: str, mode: PagingMode) -> Level:
    return _ENTRIES.get(type_name, mode.levels[0])


class ProtectionPrinter:
    """A pgprot_t: its raw value and the flags."""

    def __init__(self, value: gdb.Value) -> None:
        self._value = value

    def to_string(self) -> str:
        """Called by gdb."""
        raw = _raw(self._value)
        entry = Entry(raw, PTE, in_force()[0])
        names = " ".join(name for mask, name in flag_bits(entry) if raw & mask)
        return f"{hex_va(raw)} {names}".rstrip()


def collection() -> gdb.printing.PrettyPrinter:
    """All printers, under the name `sme` for `info pretty-printer`."""
    printers = gdb.printing.RegexpCollectionPrettyPrinter("sme")
    for name in ("pgd_t", *_ENTRIES):
        printers.add_printer(name, f"^{name}$", EntryPrinter)
    printers.add_printer("pgprot_t", "^pgprot_t$", ProtectionPrinter)
    return printers

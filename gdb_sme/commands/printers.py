# SPDX-License-Identifier: GPL-2.0-or-later
"""Pretty-printers for pgd_t, p4d_t, pud_t, pmd_t, pte_t and pgprot_t."""

from __future__ import annotations

import gdb
import gdb.printing

from gdb_sme.commands.decode import in_force
from gdb_sme.errors import SmeError

_ENTRIES = ("pgd_t", "p4d_t", "pud_t", "pmd_t", "pte_t")


class _Printer:
    """Base: the raw value, and in words what it holds."""

    def __init__(self, value: gdb.Value) -> None:
        self._value = value

    def to_string(self) -> str:
        """Called by gdb."""
        raw = _raw(self._value)
        try:
            return f"{raw:#018x} {self.words(raw)}".rstrip()
        except SmeError as error:
            # A value is worth its number at least: there is no way to raise in the middle of it.
            return f"{raw:#018x} ({error})"

    def words(self, raw: int) -> str:
        """What ``raw`` holds."""
        raise NotImplementedError


class EntryPrinter(_Printer):
    """An entry: its raw value, where it points, the C-bit and the flags."""

    def words(self, raw: int) -> str:
        """See `_Printer.words`."""
        from gdb_sme.core.address import hex_pa
        from gdb_sme.core.entry import Entry
        from gdb_sme.core.paging import LEVEL5
        from gdb_sme.linux.nonpresent import decode_nonpresent, swap_layout
        from gdb_sme.render import nonpresent
        from gdb_sme.target.symbols import GdbSymbols

        enc, mode = in_force()
        name = str(self._value.type.unqualified()).removesuffix("_t")
        level = mode.level(name) or LEVEL5.level(name)
        assert level is not None, name
        entry = Entry(raw, level, enc)
        if not entry.present:
            layout = swap_layout(GdbSymbols()) if raw else None
            return nonpresent.words(decode_nonpresent(entry, mode, layout), name)
        flags = " ".join(flag for flag in entry.flags if flag != "PRESENT")
        return f"{'C' if entry.c_bit else '-'} -> {hex_pa(entry.pa)} {flags}"


class ProtectionPrinter(_Printer):
    """A pgprot_t: its raw value, the kernel's macro for it, and the flags."""

    def words(self, raw: int) -> str:
        """See `_Printer.words`."""
        from gdb_sme.linux.decode import decode

        reading = decode(raw, "pgprot", *in_force()).readings[0]
        flags = " ".join(reading.flags)
        exact = reading.macro is not None and reading.macro.exact
        return f"{reading.macro}: {flags}" if exact else flags


def _raw(value: gdb.Value) -> int:
    """The number inside, through the structures of one member that Linux wraps it in."""
    while value.type.strip_typedefs().code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        value = value[value.type.strip_typedefs().fields()[0]]
    return int(value) & ((1 << 64) - 1)


def collection() -> gdb.printing.PrettyPrinter:
    """All printers, under the name `sme` for `info pretty-printer`."""
    printers = gdb.printing.RegexpCollectionPrettyPrinter("sme")
    for name in _ENTRIES:
        printers.add_printer(name, f"^{name}$", EntryPrinter)
    # gdb goes by the tag where a structure has one: struct pgprot.
    printers.add_printer("pgprot_t", "^pgprot$", ProtectionPrinter)
    return printers

# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols and types of the kernel, from the symbol file that gdb has loaded."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

import gdb

from gdb_sme.core.ports import Field

_NEAREST = re.compile(r"^(\S+)(?: \+ (\d+))? in section ")


class GdbSymbols:
    """`gdb_sme.core.ports.Symbols` over gdb's main symbol file."""

    @property
    def build_id(self) -> str | None:
        """Build-id of the main symbol file, None without a file or a build-id."""
        objfile = self._objfile()
        return objfile.build_id if objfile is not None else None

    @property
    def file(self) -> str | None:
        """Name of the main symbol file, None when there is none."""
        objfile = self._objfile()
        return str(objfile.filename) if objfile is not None else None

    @staticmethod
    def _objfile() -> gdb.Objfile | None:
        space = gdb.current_progspace()
        filename = space.filename if space is not None else None
        if filename is not None:
            for objfile in gdb.objfiles():
                if objfile.filename == filename:
                    return objfile
        return next(iter(gdb.objfiles()), None)

    def address(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.address`."""
        try:
            return int(gdb.parse_and_eval(f"(unsigned long)&{name}"))
        except gdb.error:
            return None

    def size(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.size`."""
        try:
            value = gdb.parse_and_eval(f"*&{name}")
        except gdb.error:
            return None
        known = value.type.code not in (gdb.TYPE_CODE_ERROR, gdb.TYPE_CODE_FUNC)
        return int(value.type.sizeof) if known else None

    def nearest(self, va: int) -> tuple[str, int] | None:
        """See `gdb_sme.core.ports.Symbols.nearest`."""
        return _nearest(va, self._place)

    @property
    def _place(self) -> tuple[object, ...]:
        """Tells one set of symbols, at its addresses, from another."""
        return self._text, *gdb.objfiles()

    @cached_property
    def _text(self) -> int | None:
        return self.address("_text")

    def field(self, struct: str, path: str) -> Field | None:
        """See `gdb_sme.core.ports.Symbols.field`."""
        return _field(struct, path, self._place)

    def type_size(self, struct: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.type_size`."""
        try:
            return int(_struct(struct).sizeof)
        except gdb.error:
            return None

    def enumerator(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.enumerator`."""
        try:
            return int(gdb.parse_and_eval(name))
        except gdb.error:
            return None


@lru_cache(maxsize=4096)
def _nearest(va: int, place: tuple[object, ...]) -> tuple[str, int] | None:
    """As `GdbSymbols.nearest`. Kept: gdb takes half a millisecond where a section has few symbols,
    and dumps ask for the same addresses again and again."""
    del place
    match = _NEAREST.match(gdb.execute(f"info symbol {va:#x}", to_string=True))
    return (match[1], int(match[2] or 0)) if match else None


@lru_cache(maxsize=1024)
def _field(struct: str, path: str, place: tuple[object, ...]) -> Field | None:
    """As `GdbSymbols.field`. Kept: gdb makes an object of each of task_struct's 250 members."""
    del place
    try:
        current = _struct(struct)
        offset = 0
        for name in path.split("."):
            found = _find(current, name)
            if found is None:
                return None
            offset += found[0]
            current = found[1].strip_typedefs()
    except gdb.error:
        return None
    return Field(offset, int(current.sizeof))


def _struct(name: str) -> gdb.Type:
    """The type ``struct NAME``.

    Looked up among the types alone: where a variable has the same name, as pcpu_hot in 6.12,
    gdb.lookup_type() reads the debug information of every file that declares it, ten seconds of
    work.

    Raises:
        gdb.error: there is no such type.
    """
    symbol = gdb.lookup_static_symbol(name, gdb.SYMBOL_STRUCT_DOMAIN)
    found = symbol.type if symbol is not None else None
    return (found or gdb.lookup_type(f"struct {name}")).strip_typedefs()


def _find(struct: gdb.Type, name: str) -> tuple[int, gdb.Type] | None:
    """Offset in bytes and type of member ``name``, looked for in anonymous members too."""
    for field in struct.fields():
        if field.type is None or field.bitpos is None:
            continue
        offset = field.bitpos // 8
        if field.name == name:
            return offset, field.type
        inner = field.type.strip_typedefs()
        if not field.name and inner.code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
            found = _find(inner, name)
            if found is not None:
                return offset + found[0], found[1]
    return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses and sizes from the symbol table of an ELF file, read directly.

A debugger that is asked for a name reads the debug information of the whole compilation unit first,
tens of milliseconds for a kernel's; the symbol table tells the same in microseconds. ELF gABI,
"Symbol Table": 64-bit, little endian.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<I2BH2Q")
_SHT_SYMTAB, _SHT_RELA = 2, 4
_MAGIC = b"\x7fELF\x02\x01"


@dataclass(frozen=True, slots=True)
class ElfSymbol:
    """A symbol: its link address, and its size in bytes, 0 when not given."""

    address: int
    size: int


class SymbolTable:
    """The symbols of a file.

    Args:
        symbols: the bytes of its symbol table.
        strings: the bytes of the string table that goes with it.
    """

    def __init__(self, symbols: bytes, strings: bytes) -> None:
        usable = len(symbols) // _SYMBOL.size * _SYMBOL.size
        self._symbols, self._strings = symbols, strings
        # st_name is the first of the six 32-bit words of a symbol.
        names = array("I", symbols[:usable])[::6]
        self._names = names.tobytes()
        self._named = frozenset(names)

    @classmethod
    def of(cls, path: Path) -> SymbolTable:
        """The symbol table of a 64-bit little-endian ELF file, empty when it has none.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no such file, or a damaged one.
        """
        try:
            with path.open("rb") as file:
                sections = _sections(file, path)
                for section in sections:
                    if section[1] == _SHT_SYMTAB:
                        strings = sections[section[6]]
                        return cls(_content(file, section), _content(file, strings))
        except (struct.error, IndexError) as error:
            raise ValueError(f"{path} is a damaged ELF file: {error}") from error
        return NO_SYMBOLS

    @property
    def empty(self) -> bool:
        """Whether the file has no symbol table."""
        return not self._names

    def find(self, name: str) -> tuple[ElfSymbol, ...]:
        """The symbols called ``name``: static ones may share it."""
        for offset in self._offsets(name.encode() + b"\0"):
            found = {
                ElfSymbol(value, size)
                for index in self._indexes(offset.to_bytes(4, "little"))
                for _, _, _, section, value, size in [
                    _SYMBOL.unpack_from(self._symbols, index * _SYMBOL.size)
                ]
                if section
            }
            if found:  # a linker keeps one copy of a string
                return tuple(found)
        return ()

    def _offsets(self, wanted: bytes) -> Iterator[int]:
        """Where the string is: by itself, or, linkers save space, as the end of a longer one."""
        at = self._strings.find(wanted)
        while at >= 0:
            if at in self._named:
                yield at
            at = self._strings.find(wanted, at + 1)

    def _indexes(self, offset: bytes) -> Iterator[int]:
        """Symbols whose name is at ``offset``."""
        at = self._names.find(offset)
        while at >= 0:
            if at % len(offset) == 0:
                yield at // len(offset)
            at = self._names.find(offset, at + 1)


def has_relocations(path: Path) -> bool:
    """Whether a 64-bit little-endian ELF file has sections of relocations.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            return any(section[1] == _SHT_RELA for section in _sections(file, path))
    except struct.error as error:
        raise ValueError(f"{path} is a damaged ELF file: {error}") from error


def _sections(file: BinaryIO, path: Path) -> list[tuple[int, ...]]:
    header = _HEADER.unpack(file.read(_HEADER.size))
    if not header[0].startswith(_MAGIC):
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    at, size, count = header[6], header[11], header[12]
    file.seek(at)
    raw = file.read(size * count)
    return [_SECTION.unpack_from(raw, size * index) for index in range(count)]


def _content(file: BinaryIO, section: tuple[int, ...]) -> bytes:
    file.seek(section[4])
    return file.read(section[5])


NO_SYMBOLS = SymbolTable(b"", b"")

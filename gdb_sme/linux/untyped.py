# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel symbols without debug information: names and addresses, no types."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property

from gdb_sme.core.ports import Field
from gdb_sme.errors import SymbolError

_LINE = re.compile(r"^([0-9a-f]{8,16}) ([a-zA-Z?]) (\S+)(?:\t\[\w+\])?$")


class UntypedSymbols:
    """`gdb_sme.core.ports.Symbols` of which no types are known.

    Args:
        symbols: name and address; where a name comes twice, the first counts.
        file: where they come from, for the screen.
        build_id: of the kernel that they belong to, hexadecimal; None when it is not known.
    """

    def __init__(
        self, symbols: Iterable[tuple[str, int]], file: str, build_id: str | None = None
    ) -> None:
        self.file = file
        self.build_id = build_id
        self._addresses: dict[str, int] = {}
        for name, address in symbols:
            self._addresses.setdefault(name, address)

    def __len__(self) -> int:
        return len(self._addresses)

    def address(self, name: str) -> int | None:
        """See `gdb_sme.core.ports.Symbols.address`."""
        return self._addresses.get(name)

    def size(self, name: str) -> int | None:
        """None: sizes are not known."""
        del name
        return None

    @cached_property
    def _by_address(self) -> list[tuple[int, str]]:
        """Symbols of the image; per-CPU ones lie at offsets from 0."""
        end = self._addresses.get("_end", 0)
        high = ((at, name) for name, at in self._addresses.items() if at >> 63 and at <= end)
        return sorted(high)

    def nearest(self, va: int) -> tuple[str, int] | None:
        """See `gdb_sme.core.ports.Symbols.nearest`."""
        number = bisect_right(self._by_address, (va, "\U0010ffff")) - 1
        if number < 0 or va >= self._addresses.get("_end", 0):
            return None
        at = self._by_address[number][0]
        # Of several names for one address, nm and gdb show the first that is no section's border.
        while number and self._by_address[number - 1][0] == at:
            number -= 1
        return self._by_address[number][1], va - at

    def field(self, struct: str, path: str) -> Field | None:
        """None: types are not known."""
        del struct, path
        return None

    def type_size(self, struct: str) -> int | None:
        """None: types are not known."""
        del struct
        return None

    def enumerator(self, name: str) -> int | None:
        """None: types are not known."""
        del name
        return None


def parse_system_map(text: str, file: str) -> UntypedSymbols:
    """The symbols of a System.map, or of a copy of /proc/kallsyms.

    Raises:
        SymbolError: it is neither, or its addresses are hidden.
    """
    symbols: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None:
            raise SymbolError(f"{file}:{number} is no line of a System.map: {line[:60]!r}")
        symbols.append((match[3], int(match[1], 16)))
    table = UntypedSymbols(symbols, file)
    if table.address("_text") is None:
        raise SymbolError(f"{file} has no _text; is it the System.map of a kernel?")
    if not table.address("_text"):
        raise SymbolError(
            f"{file} has zeros for addresses, as /proc/kallsyms shows them without privilege; "
            "copy it as root with kernel.kptr_restrict=0"
        )
    return table

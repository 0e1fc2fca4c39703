# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's linked lists (struct list_head), read a structure at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gdb_sme.core.ports import Field
from gdb_sme.errors import ReadError, SymbolError
from gdb_sme.linux.kernel import Kernel

#: Members of a list after which it is taken for damaged.
_MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Members:
    """Members of a structure that are read together."""

    fields: tuple[Field, ...]

    def read(self, kernel: Kernel, va: int) -> tuple[int, ...]:
        """Their unsigned values in the structure at ``va``.

        Raises:
            ReadError: it is not mapped.
        """
        first = min(each.offset for each in self.fields)
        last = max(each.offset + each.size for each in self.fields)
        data = kernel.read_virtual(va + first, last - first)
        return tuple(
            int.from_bytes(data[each.offset - first :][: each.size], "little")
            for each in self.fields
        )


def members(kernel: Kernel, struct: str, *names: str) -> Members | None:
    """Members ``names`` of ``struct``, None when the type or one of them is missing."""
    found = tuple(kernel.symbols.field(struct, each) for each in names)
    known = tuple(each for each in found if each is not None)
    return Members(known) if len(known) == len(names) else None


def linked(
    kernel: Kernel, head: int, struct: str, node: str, wanted: Members
) -> Iterator[tuple[int, ...]]:
    """``wanted`` of every ``struct`` in the list at ``head``, up to where it cannot be followed.

    Args:
        kernel: the kernel.
        head: address of the list_head.
        struct: type of the members.
        node: the list_head in it.
        wanted: what to read of each.
    """
    link = kernel.symbols.field(struct, node)
    if link is None:
        return
    both = Members((Field(link.offset, 8), *wanted.fields))
    seen = {head}
    try:
        at = int.from_bytes(kernel.read_virtual(head, 8), "little")
        while at and at not in seen and len(seen) < _MOST:
            seen.add(at)
            at, *values = both.read(kernel, at - link.offset)
            yield tuple(values)
    except (ReadError, SymbolError):
        return

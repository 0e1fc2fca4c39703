# SPDX-License-Identifier: GPL-2.0-or-later
"""The ports as plain data, for tests without a debugger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from gdb_sme.core.ports import Field, MappedPart, Range
from gdb_sme.errors import ReadError


class FakePhys:
    """Physical memory that is ``{pa: bytes}``; everything else is no RAM.

    Attributes:
        reads: every (pa, length) that was asked for, in order.
    """

    name = "data"

    def __init__(self, blocks: Mapping[int, bytes]) -> None:
        self._blocks = dict(sorted(blocks.items()))
        self.reads: list[tuple[int, int]] = []

    @property
    def ram(self) -> tuple[Range, ...]:
        return tuple(Range(pa, pa + len(data)) for pa, data in self._blocks.items())

    def read(self, pa: int, length: int) -> bytes:
        self.reads.append((pa, length))
        for start, data in self._blocks.items():
            if start <= pa and pa + length <= start + len(data):
                return data[pa - start : pa - start + length]
        raise ReadError(pa, length, "outside guest RAM")

    def batch(self) -> AbstractContextManager[None]:
        return nullcontext()


class FakeSymbols:
    """Symbols that are two dictionaries: addresses, and sizes in bytes."""

    build_id = "00"

    def __init__(
        self, addresses: Mapping[str, int], sizes: Mapping[str, int] | None = None
    ) -> None:
        self._addresses = dict(addresses)
        self.object_sizes = dict(sizes or {})

    def address(self, name: str) -> int | None:
        return self._addresses.get(name)

    def size(self, name: str) -> int | None:
        return self.object_sizes.get(name)

    def nearest(self, va: int) -> tuple[str, int] | None:
        below = [(address, name) for name, address in self._addresses.items() if address <= va]
        return (max(below)[1], va - max(below)[0]) if below else None

    def field(self, struct: str, path: str) -> Field | None:
        return None

    def type_size(self, struct: str) -> int | None:
        return None

    def enumerator(self, name: str) -> int | None:
        return None


def entries(values: Mapping[int, int]) -> bytes:
    """A 4 KiB table with ``values``, index to raw entry, and zero elsewhere."""
    return b"".join(values.get(index, 0).to_bytes(8, "little") for index in range(512))


class MappedPhys(FakePhys):
    """Physical memory that is mapped in this process as well: ``blocks``, or some of them.

    Args:
        blocks: as `FakePhys` takes them.
        unmapped: addresses of blocks that can only be read.
    """

    def __init__(self, blocks: Mapping[int, bytes], unmapped: Iterable[int] = ()) -> None:
        super().__init__(blocks)
        hidden = set(unmapped)
        self.mapped = tuple(
            MappedPart(Range(pa, pa + len(data)), memoryview(data))
            for pa, data in self._blocks.items()
            if pa not in hidden
        )

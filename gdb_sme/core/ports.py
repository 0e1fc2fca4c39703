# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pure part needs from a debugger: a few small protocols.

``gdb_sme.target`` implements them over gdb; tests implement them with plain data.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from gdb_sme.core.cr3 import CpuState


@dataclass(frozen=True, slots=True)
class Range:
    """A range of addresses: ``start`` to ``end``, the end not included."""

    start: int
    end: int

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end

    @property
    def size(self) -> int:
        """Bytes in the range."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class MappedPart:
    """Guest memory that is mapped in this process: ``physical`` is where it is in the guest,
    ``content`` its bytes."""

    physical: Range
    content: memoryview


class PhysMemory(Protocol):
    """Guest physical memory, read only.

    A reader that has memory mapped in this process may say so: see `mapped_parts`.
    """

    @property
    def name(self) -> str:
        """How memory is read, for `sme status`."""

    @property
    def ram(self) -> tuple[Range, ...]:
        """Ranges of RAM without the second view, lowest first; empty when not known."""

    def read(self, pa: int, length: int) -> bytes:
        """``length`` bytes at physical address ``pa``, encryption bit taken out by the caller.

        Raises:
            ReadError: some of it is not RAM, or the target does not answer.
        """

    def batch(self) -> AbstractContextManager[None]:
        """Reads inside the block may share what a single read would set up and take back."""


def mapped_parts(memory: PhysMemory) -> tuple[MappedPart, ...]:
    """What ``memory`` has mapped in this process (its attribute ``mapped``), mostly nothing."""
    parts: tuple[MappedPart, ...] = getattr(memory, "mapped", ())
    return parts


@dataclass(frozen=True, slots=True)
class Field:
    """A structure member: offset and size in bytes."""

    offset: int
    size: int


class Symbols(Protocol):
    """The kernel's symbols and types, at the addresses where the debugger has them now."""

    @property
    def build_id(self) -> str | None:
        """Build-id of the file that the symbols come from, hexadecimal; None without one."""

    def address(self, name: str) -> int | None:
        """Virtual address of symbol ``name``, None when there is no such symbol."""

    def size(self, name: str) -> int | None:
        """Size in bytes of the object ``name`` from its type, None when it is not known."""

    def nearest(self, va: int) -> tuple[str, int] | None:
        """Symbol at or below ``va`` and the distance in bytes, None when there is none."""

    def field(self, struct: str, path: str) -> Field | None:
        """Member ``path`` ("pgd", "ctx.ldt") of ``struct``, None when type or member is missing."""

    def type_size(self, struct: str) -> int | None:
        """Size in bytes of ``struct``, None when there is no such type."""

    def enumerator(self, name: str) -> int | None:
        """Value of an enumerator such as SYSTEM_RUNNING, None when there is none."""


class Registers(Protocol):
    """The CPUs of a stopped target."""

    def cpus(self) -> tuple[CpuState, ...]:
        """The state of every CPU, in the target's order."""

    @property
    def current(self) -> int:
        """Index of the CPU that is selected in the debugger."""

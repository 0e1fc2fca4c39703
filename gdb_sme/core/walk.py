# SPDX-License-Identifier: GPL-2.0-or-later
"""One walk: from a root down to the page, the hole or the trouble, every step kept."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PHYSICAL_BITS, is_canonical
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import ENTRY_SIZE, PagingMode
from gdb_sme.core.ports import PhysMemory
from gdb_sme.errors import AddressError, ReadError


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk read.

    Attributes:
        table_pa: physical address of the table.
        index: index of the entry in it, 0 to 511.
        entry: the entry.
        repeated: whether the walk came through this table before (a table that points to itself).
    """

    table_pa: int
    index: int
    entry: Entry
    repeated: bool = False

    @property
    def entry_pa(self) -> int:
        """Physical address of the entry."""
        return self.table_pa + self.index * ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class Permissions:
    """Rights combined over all levels: RW and USER by and, NX by or (APM volume 2, section 5.6)."""

    write: bool
    user: bool
    execute: bool

    def __str__(self) -> str:
        return f"r{'w' if self.write else '-'}{'x' if self.execute else '-'}"


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where a walk ended in memory.

    Attributes:
        pa: physical address of the byte asked for, without encryption bit.
        page_size: 4096, 2 MiB or 1 GiB, in bytes.
        permissions: combined over the levels.
        encrypted: whether the page is reached encrypted: the leaf's bit alone decides.
        global_: GLOBAL in the leaf.
        cache_index: index of the leaf into the PAT MSR.
    """

    pa: int
    page_size: int
    permissions: Permissions
    encrypted: bool
    global_: bool
    cache_index: int


@dataclass(frozen=True, slots=True)
class Walk:
    """The result of a walk.

    Attributes:
        va: the address asked for.
        mode: the paging mode.
        steps: the entries read, from the root down.
        mapping: where it ends, None when it does not end in memory.
        hole: level name at which an entry is not present, None when there is none.
        reserved: bits of the last entry that must be zero and are not, as a mask.
        unreadable: why the next entry could not be read, None when all could.
    """

    va: int
    mode: PagingMode
    steps: tuple[Step, ...]
    mapping: Mapping | None = None
    hole: str | None = None
    reserved: int = 0
    unreadable: ReadError | None = None


def walk(
    memory: PhysMemory,
    va: int,
    root_pa: int,
    mode: PagingMode,
    enc: EncryptionBit,
    *,
    physical_bits: int = PHYSICAL_BITS,
    nx_enabled: bool = True,
) -> Walk:
    """Translate ``va`` as the hardware would, reading 8 bytes a level.

    Args:
        memory: physical memory.
        va: virtual address, 0 to 2**64-1.
        root_pa: physical address of the top table, without flags and encryption bit.
        mode: 4 or 5 levels.
        enc: the encryption bit in force.
        physical_bits: physical address width of the CPU; higher address bits are reserved.
        nx_enabled: EFER.NXE.

    Raises:
        AddressError: ``va`` is not canonical. Everything else is told in the result.
    """
    if not is_canonical(va, mode.va_bits):
        raise AddressError(
            f"{va:#x} is not canonical ({mode.name} paging: bits 63-{mode.va_bits - 1} "
            "must be equal)"
        )
    steps: list[Step] = []
    seen: set[int] = set()
    table_pa = root_pa
    write = user = execute = True
    for level in mode.levels:
        index = level.index(va)
        try:
            data = memory.read(table_pa + index * ENTRY_SIZE, ENTRY_SIZE)
        except ReadError as error:
            return Walk(va, mode, tuple(steps), unreadable=error)
        entry = Entry(int.from_bytes(data, "little"), level, enc)
        steps.append(Step(table_pa, index, entry, table_pa in seen))
        seen.add(table_pa)
        if not entry.present:
            return Walk(va, mode, tuple(steps), hole=level.name)
        reserved = entry.reserved(physical_bits, nx_enabled)
        if reserved:
            return Walk(va, mode, tuple(steps), reserved=reserved)
        write &= bool(entry.raw & bits.RW)
        user &= bool(entry.raw & bits.USER)
        execute &= not entry.raw & bits.NX
        if entry.leaf:
            mapping = Mapping(
                pa=entry.pa + (va & (level.span - 1)),
                page_size=level.span,
                permissions=Permissions(write, user, execute),
                encrypted=entry.encrypted,
                global_=bool(entry.raw & bits.GLOBAL),
                cache_index=entry.cache_index,
            )
            return Walk(va, mode, tuple(steps), mapping=mapping)
        table_pa = entry.pa
    raise AssertionError("the last level is always a leaf")

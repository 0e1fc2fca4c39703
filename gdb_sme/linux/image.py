# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the kernel image lies, in virtual and in physical memory.

KASLR moves the two independently. Every candidate is checked against the build-id in the image's
own notes before it is believed, so a wrong guess cannot survive, and neither can a wrong vmlinux.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gdb_sme.core.address import PAGE_FRAME_MASK, U64
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, PMD, TABLE_SIZE
from gdb_sme.core.ports import PhysMemory, Symbols
from gdb_sme.errors import ReadError

#: __START_KERNEL_map (arch/x86/include/asm/page_64_types.h).
START_KERNEL_MAP = 0xFFFFFFFF80000000
#: KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE, the largest (the same file).
KERNEL_IMAGE_SIZE = 1 << 30

_NT_GNU_BUILD_ID = 3
_TOP_ENTRY = ENTRIES - 1
_KERNEL_PUD = ENTRIES - 2


@dataclass(frozen=True, slots=True)
class KernelImage:
    """The place of a kernel image.

    Attributes:
        text: address of _text as the debugger's symbols have it.
        va: virtual address of _text in the guest.
        pa: physical address of _text.
        end: address of _end as the debugger's symbols have it.
        how: how the place was found.
    """

    text: int
    va: int
    pa: int
    end: int
    how: str

    @property
    def koff(self) -> int:
        """Bytes by which the guest's virtual addresses lie above those of the symbols."""
        return self.va - self.text

    @property
    def phys_base(self) -> int:
        """Linux's phys_base: what ``__pa_symbol`` adds to an address less __START_KERNEL_map."""
        return (self.pa - (self.va - START_KERNEL_MAP)) & U64

    @property
    def size(self) -> int:
        """Bytes from _text to _end."""
        return self.end - self.text

    def pa_of(self, address: int) -> int:
        """Physical address of a symbol's ``address`` (as the debugger has it)."""
        return address - self.text + self.pa

    def va_of(self, address: int) -> int:
        """Run-time virtual address of a symbol's ``address`` (as the debugger has it)."""
        return address + self.koff

    def symbol_va(self, pa: int) -> int | None:
        """The debugger's address for physical address ``pa`` inside the image, else None."""
        return pa - self.pa + self.text if 0 <= pa - self.pa < self.size else None


def parse_build_id(notes: bytes) -> str | None:
    """The GNU build-id in a section of ELF notes, hexadecimal (ELF gABI, "Note Section")."""
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = (
            int.from_bytes(notes[position + at : position + at + 4], "little") for at in (0, 4, 8)
        )
        name_at = position + 12
        at = name_at + (name_size + 3 & ~3)
        if at + size > len(notes):
            return None
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[at : at + size].hex()
        position = at + (size + 3 & ~3)
    return None


def guest_build_id(memory: PhysMemory, symbols: Symbols, delta: int) -> str | None:
    """Build-id in guest memory, if the image's symbols lie ``delta`` bytes below their addresses.

    None where there are no notes, no symbols for them, or no readable memory.
    """
    start, stop = symbols.address("__start_notes"), symbols.address("__stop_notes")
    if start is None or stop is None or not 0 < stop - start <= 1 << 16:
        return None
    try:
        return parse_build_id(memory.read((start - delta) & U64, stop - start))
    except ReadError:
        return None


def _banner_matches(memory: PhysMemory, symbols: Symbols, delta: int) -> bool:
    banner = symbols.address("linux_banner")
    if banner is None:
        return False
    try:
        return memory.read((banner - delta) & U64, 14) == b"Linux version "
    except ReadError:
        return False


def locate(
    memory: PhysMemory,
    symbols: Symbols,
    cpus: tuple[CpuState, ...],
    hints: tuple[KernelImage, ...] = (),
) -> KernelImage | None:
    """Find the running kernel image that the symbols belong to.

    Args:
        memory: physical memory.
        symbols: the symbol file's view; None comes back without _text and _end.
        cpus: all CPUs.
        hints: places where it was found before at this target.

    Returns:
        The place; None when the image is not in memory (yet), or is another kernel's.
    """
    text, end = symbols.address("_text"), symbols.address("_end")
    if text is None or end is None:
        return None
    for va, pa, how in _candidates(memory, cpus, text, end, hints):
        if is_own_image(memory, symbols, text - pa):
            return KernelImage(text, va, pa, end, how)
    return None


def is_own_image(memory: PhysMemory, symbols: Symbols, delta: int) -> bool:
    """Whether the image that the symbols belong to lies ``delta`` bytes below their addresses.

    By the build-id; by linux_banner alone where the symbols carry none.
    """
    wanted = symbols.build_id
    if wanted is not None and symbols.address("__start_notes") is not None:
        return guest_build_id(memory, symbols, delta) == wanted
    return _banner_matches(memory, symbols, delta)


def mapped_image(memory: PhysMemory, cpus: tuple[CpuState, ...]) -> tuple[int, int] | None:
    """Virtual and physical address of the _text that some CPU's tables map, whoever's it is."""
    for cpu in cpus:
        for root in _roots(memory, cpu):
            found = _by_page_tables(memory, root, cpu)
            if found is not None:
                return found
    return None


def _candidates(
    memory: PhysMemory,
    cpus: tuple[CpuState, ...],
    text: int,
    end: int,
    hints: tuple[KernelImage, ...],
) -> Iterator[tuple[int, int, str]]:
    """Virtual and physical address of _text, most telling first."""
    for cpu in cpus:
        for root in _roots(memory, cpu):
            found = _by_page_tables(memory, root, cpu)
            if found is not None:
                yield (*found, f"page tables of CPU {cpu.index}")
    for hint in hints:
        yield hint.va - hint.text + text, hint.pa, hint.how
    # Before the kernel's own tables are in force: where RIP stands in the image, a multiple of
    # 2 MiB (CONFIG_PHYSICAL_ALIGN's least on x86-64) from its place in the file.
    for cpu in cpus:
        if cpu.long_mode and cpu.rip < START_KERNEL_MAP:
            first = text + ((cpu.rip - text) % PMD.span)
            for address in range(first, end, PMD.span):
                yield text, cpu.rip - (address - text), f"RIP of CPU {cpu.index}"
    yield text, text - START_KERNEL_MAP, "link address"


def _roots(memory: PhysMemory, cpu: CpuState) -> Iterator[int]:
    """Physical addresses that CR3 may mean, the encryption bit not yet known."""
    if cpu.cr3 is None or not cpu.paging or not cpu.long_mode:
        return
    for pa in strip_unknown_bit(memory, cpu.cr3):
        yield pa
        if cpu.cr3 & 0x1000:
            yield pa & ~0x1000  # the kernel's half of a page-table-isolation pair


def strip_unknown_bit(memory: PhysMemory, raw: int) -> tuple[int, ...]:
    """Page addresses in RAM that ``raw`` can mean when any one of bits 40 to 51 may be a C-bit."""
    pa = raw & PAGE_FRAME_MASK
    options = [pa] + [pa & ~(1 << bit) for bit in range(40, 52) if pa >> bit & 1]
    return tuple(option for option in options if any(option in known for known in memory.ram))


def _by_page_tables(memory: PhysMemory, root: int, cpu: CpuState) -> tuple[int, int] | None:
    """Where the first present pmd of the kernel's high mapping points.

    ``__startup_64`` and ``cleanup_highmap`` take away the entries below _text (6.1
    arch/x86/kernel/head64.c and arch/x86/mm/init_64.c), so the first one left is _text's.
    """
    table = root
    try:
        with memory.batch():
            path = [_TOP_ENTRY] * (len(cpu.mode.levels) - 3) + [_KERNEL_PUD]
            for index in path:
                table = _next_table(memory, table, index)
                if not table:
                    return None
            pmds = memory.read(table, TABLE_SIZE)
            for index in range(KERNEL_IMAGE_SIZE // PMD.span):
                raw = int.from_bytes(pmds[index * ENTRY_SIZE :][:ENTRY_SIZE], "little")
                if not raw & 1:
                    continue
                va = START_KERNEL_MAP + index * PMD.span
                if raw & 0x80:
                    return next(
                        ((va, pa & ~(PMD.span - 1)) for pa in strip_unknown_bit(memory, raw)), None
                    )
                first = _next_table(memory, *_split(memory, raw))
                return (va, first) if first else None
    except ReadError:
        return None
    return None


def _split(memory: PhysMemory, raw: int) -> tuple[int, int]:
    """The table that ``raw`` points to, for its entry 0: _text's page once a pmd is split."""
    return next(iter(strip_unknown_bit(memory, raw)), 0), 0


def _next_table(memory: PhysMemory, table: int, index: int) -> int:
    raw = int.from_bytes(memory.read(table + index * ENTRY_SIZE, ENTRY_SIZE), "little")
    if not raw & 1:
        return 0
    return next(iter(strip_unknown_bit(memory, raw)), 0)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory of a target that reads virtual addresses alone, as the kernel itself would: kgdb.

A physical address in the kernel image is read at the image's virtual address, every other one in
the direct map, at page_offset_base + pa. The line may be slow: nothing is read twice at one stop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from gdb_sme.core.address import U64
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.paging import LEVEL5, PMD
from gdb_sme.core.ports import Range, Symbols
from gdb_sme.errors import ReadError
from gdb_sme.linux import e820
from gdb_sme.linux.image import (
    KERNEL_IMAGE_SIZE,
    START_KERNEL_MAP,
    KernelImage,
    is_own_image,
)
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import on_early_tables, page_offset_base

_WORD = 8
#: What the kernel may have its tables in.
_RAM = (e820.Type.RAM, e820.Type.RESERVED_KERN, e820.Type.ACPI, e820.Type.NVS)
_EARLY_FAULT = (
    "only the direct map has it, where a read is itself an early page fault and changes the guest; "
    "continue until init_mem_mapping() has returned"
)


class DirectMapMemory:
    """`gdb_sme.core.ports.PhysMemory` over virtual reads.

    Args:
        read: ``read(va, length)`` reads kernel memory and raises ReadError where it cannot.
        symbols: the symbol file's view.
        rip: where a CPU stands; one that stands in the kernel shortens the search for it.

    Attributes:
        symbols: those in use at this stop.
    """

    name = "the kernel's own mappings: image and direct map"

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        symbols: Symbols,
        rip: Callable[[], int] = lambda: 0,
    ) -> None:
        self._read = read
        self._rip = rip
        self.symbols = symbols
        self._words: dict[int, bytes] = {}
        self._image: KernelImage | None = None
        self._searched = False
        self._finding = False
        self._identity: tuple[int | None, str | None] | None = None
        self._kernel: Kernel | None = None
        self._direct_map: Range | None = None
        self._ram: tuple[Range, ...] | None = None

    # -- one stop --------------------------------------------------------------------------------

    def new_stop(self, symbols: Symbols) -> None:
        """Forget what was read: the target has run, or something was written.

        Args:
            symbols: to go on with.
        """
        identity = symbols.address("_text"), symbols.build_id
        if identity != self._identity:
            self._identity, self._image, self._searched = identity, None, False
        self.symbols = symbols
        self._words.clear()
        self._kernel = None
        self._direct_map = None
        self._ram = None

    @property
    def image(self) -> KernelImage | None:
        """Where the kernel image lies; None when the symbols are not the running kernel's.

        Looked for once for the same symbols at the same addresses.
        """
        if not self._searched:
            self._image = self._find_image()
            self._searched = True
        return self._image

    @property
    def five_levels(self) -> bool:
        """Whether the kernel uses 5-level paging.

        __pgtable_l5_enabled, and before 4.18 pgtable_l5_enabled; neither without CONFIG_X86_5LEVEL.
        """
        names = ("__pgtable_l5_enabled", "pgtable_l5_enabled")
        return any(self._value(name, 4) for name in names)

    def _find_image(self) -> KernelImage | None:
        """The image by its build-id: where the symbols have it, then wherever KASLR can put it."""
        text, end = self.symbols.address("_text"), self.symbols.address("_end")
        if text is None or end is None:
            return None
        last = START_KERNEL_MAP + KERNEL_IMAGE_SIZE
        slots = range(START_KERNEL_MAP + text % PMD.span, last, PMD.span)
        rip = self._rip()
        # Modules are above the last slot: what is below is the image.
        around = START_KERNEL_MAP <= rip < last
        near = (va for va in slots if not around or 0 <= rip - va < end - text)
        for va in (text, *near):
            if is_own_image(_Virtual(self), self.symbols, text - va):
                how = "the symbols' addresses" if va == text else "a search of the high mapping"
                return self._place(text, va, end, how)
        return None

    def _place(self, text: int, va: int, end: int, how: str) -> KernelImage | None:
        phys_base = self.symbols.address("phys_base")
        if phys_base is None:
            return None
        base = int.from_bytes(self._cached(phys_base + va - text, 8), "little")
        return KernelImage(text, va, (va - START_KERNEL_MAP + base) & U64, end, how)

    def _value(self, name: str, size: int) -> int | None:
        address, image = self.symbols.address(name), self.image
        if address is None or image is None:
            return None
        try:
            return int.from_bytes(self._cached(image.va_of(address), size), "little")
        except ReadError:
            return None

    def _kernel_now(self) -> Kernel:
        if self._kernel is None:
            cpu = CpuState(0, 0, la57=self.five_levels)
            hints = (self.image,) if self.image else ()
            self._kernel = Kernel(
                self, self.symbols, (cpu,), hints=hints, virtual=self.read_virtual
            )
        return self._kernel

    def _direct(self) -> Range:
        """The direct map's addresses."""
        if self._direct_map is None:
            cpu = CpuState(0, 0, la57=self.five_levels)
            self._finding = True
            try:
                base = page_offset_base(self._kernel_now(), cpu)
            finally:
                self._finding = False
            bits = 52 if cpu.mode is LEVEL5 else 46
            self._direct_map = Range(base, base + (1 << bits))
        return self._direct_map

    # -- reading ---------------------------------------------------------------------------------

    @property
    def ram(self) -> tuple[Range, ...]:
        """What the kernel's e820 table has as RAM; empty when it is not to be had."""
        if self._ram is None:
            self._ram = ()  # for what is read to find it
            if self.image is not None:
                known = (span for span, kind in e820.entries(self._kernel_now()) if kind in _RAM)
                self._ram = tuple(sorted(known, key=lambda span: span.start))
        return self._ram

    def batch(self) -> AbstractContextManager[None]:
        """See `gdb_sme.core.ports.PhysMemory.batch`: nothing to set up."""
        return nullcontext()

    def read(self, pa: int, length: int) -> bytes:
        """See `gdb_sme.core.ports.PhysMemory.read`."""
        image = self.image
        if image is None:
            raise ReadError(pa, length, "the kernel that would map it is not found")
        if 0 <= pa - image.pa <= image.size - length:
            try:
                return self._cached(pa - image.pa + image.va, length)
            except ReadError:
                # Page-table isolation unmaps what was freed of the image, not its direct map.
                if self._finding or on_early_tables(self._kernel_now()):
                    raise
        elif on_early_tables(self._kernel_now()):
            raise ReadError(pa, length, _EARLY_FAULT)
        elif self.ram and not any(pa in span and pa + length <= span.end for span in self.ram):
            raise ReadError(pa, length, "the kernel's e820 table has no RAM there")
        try:
            return self._cached(self._direct().start + pa, length)
        except ReadError as error:
            raise ReadError(pa, length, f"{error.reason} (in the direct map)") from error

    def read_virtual(self, va: int, length: int) -> bytes:
        """Kernel memory at ``va``, as the CPU reads it.

        Raises:
            ReadError: it is not mapped, is no kernel memory, or to read it would change the guest.
        """
        if not va >> 63:
            raise ReadError(va, length, "no kernel address", "virtual")
        if va < START_KERNEL_MAP and (
            self.image is None or (va in self._direct() and on_early_tables(self._kernel_now()))
        ):
            raise ReadError(va, length, _EARLY_FAULT, "virtual")
        return self._cached(va, length)

    def _cached(self, va: int, length: int) -> bytes:
        """Whole aligned words, each asked for once a stop."""
        first = va & ~(_WORD - 1)
        words = range(first, va + length, _WORD)
        at, end = first, first + _WORD * len(words)
        while at < end:
            if at in self._words:
                at += _WORD
                continue
            start = at
            while at < end and at not in self._words:
                at += _WORD
            data = self._read(start, at - start)
            for position in range(0, at - start, _WORD):
                self._words[start + position] = data[position : position + _WORD]
        data = b"".join(self._words[word] for word in words)
        return data[va - first : va - first + length]


class _Virtual:
    """The image's virtual addresses in place of physical ones, for the check of its build-id."""

    name = "virtual"
    ram: tuple[Range, ...] = ()

    def __init__(self, memory: DirectMapMemory) -> None:
        self._memory = memory

    def read(self, pa: int, length: int) -> bytes:
        """``length`` bytes at virtual address ``pa``."""
        return self._memory._cached(pa, length)

    def batch(self) -> AbstractContextManager[None]:
        """Nothing to set up."""
        return nullcontext()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel at one stop: its variables, masks and tables, read through physical memory.

Nothing here depends on what the CPU could read now: symbols are read at their physical address, so
that every answer is the same in real mode, at identity addresses and in user space.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from gdb_sme.core.address import PHYSICAL_BITS
from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.cr3 import CpuState, Cr3
from gdb_sme.core.ports import PhysMemory, Range, Symbols
from gdb_sme.core.walk import Walk, walk
from gdb_sme.encryption import registry
from gdb_sme.encryption.scheme import Encryption, KernelEvidence
from gdb_sme.errors import ReadError, SymbolError
from gdb_sme.linux import image as images
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.symbols import find
from gdb_sme.linux.vmcoreinfo import Vmcoreinfo

#: Page sizes of the kernel's own mappings.
_PAGE_SIZES = (4096, 2 << 20, 1 << 30)

_VENDORS = ("NONE", "AMD", "INTEL", "HYPERV")


class Kernel:
    """A kernel under the debugger, at one stop.

    Args:
        memory: guest physical memory.
        symbols: the symbol file's view.
        cpus: all CPUs.
        c_bit: position of the C-bit when the person has set it, 0 to 63; None to find it.
        hints: where the image was found before at this target.
        virtual: reads kernel memory by virtual address, where the target knows no other way.
        vmcoreinfo: what the kernel wrote down for readers of its dumps, None where there is none.
    """

    def __init__(
        self,
        memory: PhysMemory,
        symbols: Symbols,
        cpus: tuple[CpuState, ...],
        *,
        c_bit: int | None = None,
        hints: tuple[KernelImage, ...] = (),
        vmcoreinfo: Vmcoreinfo | None = None,
        virtual: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self.memory = memory
        self.symbols = symbols
        self.cpus = cpus
        self._c_bit = c_bit
        self.vmcoreinfo = vmcoreinfo
        self._virtual = virtual
        noted = vmcoreinfo.image if vmcoreinfo else None
        self._hints = (*hints, noted) if noted else hints
        self._pages: dict[Range, int] = {}
        self._found: dict[str, tuple[str, int] | None] = {}

    # -- the image and its symbols ---------------------------------------------------------------

    @cached_property
    def image(self) -> KernelImage | None:
        """Where the kernel lies; None when it is not in memory or the symbols are not its own."""
        return images.locate(self.memory, self.symbols, self.cpus, self._hints)

    @cached_property
    def foreign_build_id(self) -> str | None:
        """Why the symbols do not fit: the build-id of the kernel that is mapped instead.

        An empty string when a kernel is mapped whose build-id is not at the symbols' place; None
        when no kernel is mapped, or the symbols fit.
        """
        if self.image is not None:
            return None
        if self.vmcoreinfo is not None and self.vmcoreinfo.build_id:
            return self.vmcoreinfo.build_id
        mapped = images.mapped_image(self.memory, self.cpus)
        text = self.symbols.address("_text")
        if mapped is None or text is None:
            return None
        return images.guest_build_id(self.memory, self.symbols, text - mapped[1]) or ""

    def symbol(self, name: str) -> tuple[str, int] | None:
        """This kernel's name for ``name`` and the debugger's address of it, None without one."""
        if name not in self._found:
            # To learn that there is no such symbol takes gdb a tenth of a second.
            self._found[name] = find(self.symbols, name)
        return self._found[name]

    def pa_of(self, name: str) -> int | None:
        """Physical address of kernel image symbol ``name``, None without symbol or image."""
        found = self.symbol(name)
        if found is None or self.image is None:
            return None
        return self.image.pa_of(found[1])

    def read_symbol(self, name: str, size: int | None = None) -> int | None:
        """Unsigned value of variable ``name``, None when it cannot be had.

        Args:
            name: a variable in the kernel image.
            size: its size in bytes; None takes it from its type, or 8.
        """
        found = self.symbol(name)
        pa = self.pa_of(name)
        if found is None or pa is None:
            return None
        size = size or self.symbols.size(found[0]) or 8
        try:
            return int.from_bytes(self.memory.read(pa, min(size, 8)), "little")
        except ReadError:
            return None

    # -- encryption ------------------------------------------------------------------------------

    @cached_property
    def evidence(self) -> KernelEvidence:
        """What the kernel's variables say about encryption."""
        vendor = self.read_symbol("cc_vendor")
        name = None
        if vendor is not None:
            # The numbers differ between versions (6.1 and 6.12), the enumerators do not.
            name = next(
                (v for v in _VENDORS if self.symbols.enumerator(f"CC_VENDOR_{v}") == vendor), None
            )
        sme_me_mask = self.read_symbol("sme_me_mask")
        if sme_me_mask is None and self.vmcoreinfo is not None:
            sme_me_mask = self.vmcoreinfo.sme_mask
        return KernelEvidence(
            sme_me_mask=sme_me_mask,
            sev_status=self.read_symbol("sev_status"),
            cc_mask=self.read_symbol("cc_mask"),
            physical_mask=self.read_symbol("physical_mask"),
            cc_vendor=name,
        )

    @cached_property
    def encryption(self) -> Encryption:
        """The encryption scheme in force, from the person, the kernel, or the tables."""
        if self._c_bit is not None:
            return registry.by_name("sme", self._c_bit)
        if self.evidence.sme_me_mask is not None or self.evidence.cc_mask is not None:
            return registry.detect(self.evidence)
        inferred = self.inferred_c_bit
        return registry.by_name("sme" if inferred is not None else "none", inferred)

    @property
    def c_bit_source(self) -> str:
        """Where the C-bit's position was learned."""
        if self._c_bit is not None:
            return "set sme c-bit"
        if self.evidence.sme_me_mask is not None or self.evidence.cc_mask is not None:
            return "the kernel's variables"
        return "inferred from CR3" if self.inferred_c_bit is not None else "nothing to learn from"

    @cached_property
    def inferred_c_bit(self) -> int | None:
        """The C-bit as CR3 shows it: one bit that takes a table out of RAM; None without one."""
        for cpu in self.cpus:
            if cpu.cr3 is None or not cpu.long_mode:
                continue
            pa = NO_ENCRYPTION.address(cpu.cr3)
            inside = images.strip_unknown_bit(self.memory, cpu.cr3)
            if inside and pa not in inside:
                return (pa ^ inside[0]).bit_length() - 1
        return None

    @property
    def enc(self) -> EncryptionBit:
        """The encryption bit in force."""
        return self.encryption.bit

    @cached_property
    def table_enc(self) -> EncryptionBit:
        """The bit to take out of addresses in tables, also before the kernel knows its mask.

        When the kernel has no mask while CR3 carries one, something is wrong, and the tables are
        still worth showing.
        """
        if self.enc.mask or self.inferred_c_bit is None:
            return self.enc
        return EncryptionBit(1 << self.inferred_c_bit)

    def sme_pa(self, pa: int) -> int:
        """``__sme_pa``: a physical address with the encryption mask (sme_me_mask) in it."""
        return pa | self.enc.mask if self.enc.set_is_encrypted else pa

    # -- walking ---------------------------------------------------------------------------------

    def cr3(self, cpu: CpuState) -> Cr3 | None:
        """CR3 of ``cpu`` taken apart, None where the target does not give it."""
        return None if cpu.cr3 is None else Cr3(cpu.cr3, self.table_enc, cpu.pcide)

    @cached_property
    def physical_bits(self) -> int:
        """Width of physical addresses in entries; wider ones are reserved bits.

        The CPU's own width is not to be had through a debugger; 52 is what entries can hold.
        """
        return PHYSICAL_BITS

    def walk(self, va: int, root_pa: int, cpu: CpuState) -> Walk:
        """Translate ``va`` from ``root_pa`` in the paging mode of ``cpu``."""
        with self.memory.batch():
            return walk(
                self.memory,
                va,
                root_pa,
                cpu.mode,
                self.table_enc,
                physical_bits=self.physical_bits,
                nx_enabled=cpu.nx_enabled,
            )

    def read_virtual(self, va: int, length: int) -> bytes:
        """Kernel memory at ``va``: the image by its place, the rest through init_top_pgt's tables.

        Raises:
            ReadError: not mapped there.
            SymbolError: no init_top_pgt to start from.
        """
        if self._virtual is not None:
            return self._virtual(va, length)
        if self.image is not None and 0 <= va - self.image.va <= self.image.size - length:
            return self.memory.read(va - self.image.va + self.image.pa, length)
        out = b""
        while len(out) < length:
            at = va + len(out)
            page = self._page(at, length - len(out))
            part = min(length - len(out), page.end - at)
            out += self.memory.read(self._pages[page] + at - page.start, part)
        return out

    def _page(self, va: int, length: int) -> Range:
        """The page that maps kernel address ``va``, its physical address in `_pages`."""
        for size in _PAGE_SIZES:
            page = Range(va & ~(size - 1), (va & ~(size - 1)) + size)
            if page in self._pages:
                return page
        root = self.pa_of("init_top_pgt")
        if root is None:
            raise SymbolError("no init_top_pgt to read kernel memory through")
        found = self.walk(va, root, self.cpus[0]).mapping
        if found is None:
            raise ReadError(va, length, "not mapped in init_top_pgt", "virtual")
        start = va & ~(found.page_size - 1)
        page = Range(start, start + found.page_size)
        self._pages[page] = found.pa - (va - start)
        return page

    def read_field(self, va: int, struct: str, path: str) -> int | None:
        """Unsigned member ``path`` of the ``struct`` at ``va``, None when it cannot be had."""
        field = self.symbols.field(struct, path)
        if field is None or not va:
            return None
        try:
            return int.from_bytes(self.read_virtual(va + field.offset, field.size), "little")
        except (ReadError, SymbolError):
            return None

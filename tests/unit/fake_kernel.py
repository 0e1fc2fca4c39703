# SPDX-License-Identifier: GPL-2.0-or-later
"""A small kernel as data: tables, symbols and types enough for every rule of the audit."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from gdb_sme.core import entry as bits
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Field, Range
from gdb_sme.errors import ReadError
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from tests.fakes import FakeSymbols

C = 1 << 47
RAM = 32 << 20
TEXT = 0xFFFFFFFF81000000
IMAGE_PA = 0x1000000
DIRECT = 0xFFFF888000000000
VMALLOC = 0xFFFFC90000000000
FIXMAP = 0xFFFFFFFFFF5FD000
USER = 0x400000
PAGE, LARGE = 1 << 12, 1 << 21
DATA = bits.PRESENT | bits.RW | bits.ACCESSED | bits.DIRTY | bits.NX
CODE = bits.PRESENT | bits.ACCESSED
TABLE = bits.PRESENT | bits.RW | bits.USER | bits.ACCESSED | bits.DIRTY

#: Symbols of the image by their offset from _text.
OFFSETS = {
    "_text": 0,
    "kernel_exc_vmm_communication": 0x1FF000,
    "_etext": 0x200000,
    "sme_me_mask": 0x200000,
    "sev_status": 0x200008,
    "cc_mask": 0x200010,
    "physical_mask": 0x200018,
    "__supported_pte_mask": 0x200020,
    "early_pmd_flags": 0x200028,
    "system_state": 0x200030,
    "e820_table": 0x200038,
    "real_mode_header": 0x200040,
    "x86_hyper_type": 0x200048,
    "vga_vram_base": 0x200050,
    "vga_vram_size": 0x200058,
    "atomic_pool_kernel": 0x200060,
    "nr_vmap_nodes": 0x200068,
    "vmap_nodes": 0x200070,
    "vmap_area_list": 0x200080,
    "__per_cpu_offset": 0x200090,
    "page_offset_base": 0x2000A0,
    "initial_vc_handler": 0x2000A8,
    "protection_map": 0x200100,
    "io_tlb_default_mem": 0x200200,
    "efi_mm": 0x200300,
    "idt_table": 0x201000,
    "linux_banner": 0x202000,
    "real_mode_blob": 0x203000,
    "real_mode_blob_end": 0x205800,
    "__start_bss_decrypted": 0x210000,
    "__start_bss_decrypted_unused": 0x212000,
    "__end_bss_decrypted": 0x214000,
    "_end": 0x400000,
}
PERCPU = {"apf_reason": 0x1000, "runtime_data": 0x1100}
FIELDS = {
    ("list_head", "next"): Field(0, 8),
    ("io_tlb_mem", "start"): Field(0, 8),
    ("io_tlb_mem", "end"): Field(8, 8),
    ("gen_pool", "chunks"): Field(8, 16),
    ("gen_pool_chunk", "next_chunk"): Field(0, 16),
    ("gen_pool_chunk", "start_addr"): Field(40, 8),
    ("gen_pool_chunk", "end_addr"): Field(48, 8),
    ("vmap_area", "list"): Field(40, 16),
    ("vmap_area", "vm"): Field(56, 8),
    ("vm_struct", "addr"): Field(8, 8),
    ("vm_struct", "size"): Field(16, 8),
    ("vm_struct", "flags"): Field(24, 8),
    ("vm_struct", "phys_addr"): Field(48, 8),
    ("sev_es_runtime_data", "ghcb_page"): Field(0, 4096),
    ("mm_struct", "pgd"): Field(16, 8),
}
#: Physical places.
INIT_PGD, SWIOTLB, POOL, TRAMPOLINE, HEAP, PERCPU_PA = (
    0x1300000, 0x800000, 0x600000, 0x98000, 0x400000, 0x500000,
)  # fmt: skip
FIRMWARE, DEVICE = 0xF5000, 0xFED00000


class Symbols(FakeSymbols):
    """Symbols with types."""

    def __init__(self) -> None:
        addresses = {name: TEXT + offset for name, offset in OFFSETS.items()}
        super().__init__({**addresses, **PERCPU, "init_top_pgt": TEXT + INIT_PGD - IMAGE_PA})
        self.fields: dict[tuple[str, str], Field] = dict(FIELDS)
        self.sizes: dict[str, int] = {}
        self.enumerators: dict[str, int] = {"X86_HYPER_KVM": 3}

    def remove(self, name: str) -> None:
        del self._addresses[name]

    def field(self, struct: str, path: str) -> Field | None:
        return self.fields.get((struct, path))

    def type_size(self, struct: str) -> int | None:
        return self.sizes.get(struct)

    def enumerator(self, name: str) -> int | None:
        return self.enumerators.get(name)


class Machine:
    """RAM from 0 to `RAM` with a kernel in it; a `PhysMemory`.

    Attributes:
        symbols: the kernel's symbols.
        mask: the C-bit as a mask.
    """

    name = "data"

    def __init__(self, *, mask: int = C, sev: int = 0) -> None:
        self.mask = mask
        self.symbols = Symbols()
        self._pages: dict[int, bytearray] = {}
        self._next = 0xC00000
        self.cr3 = INIT_PGD | mask
        self.rip = TEXT + 0x1000
        self.others: tuple[int, ...] = ()
        self._kernel(sev)

    # -- memory ----------------------------------------------------------------------------------

    @property
    def ram(self) -> tuple[Range, ...]:
        return (Range(0, RAM),)

    def batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, pa: int, length: int) -> bytes:
        if pa + length > RAM:
            raise ReadError(pa, length, "outside guest RAM")
        out = bytearray()
        while len(out) < length:
            at = pa + len(out)
            page = self._pages.get(at & ~0xFFF, bytes(4096))
            out += page[at & 0xFFF :][: length - len(out)]
        return bytes(out)

    def write(self, pa: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            page = self._pages.setdefault((pa + offset) & ~0xFFF, bytearray(4096))
            page[(pa + offset) & 0xFFF] = byte

    def put(self, pa: int, *values: int) -> None:
        """64-bit values from ``pa`` on."""
        self.write(pa, b"".join(value.to_bytes(8, "little") for value in values))

    def get(self, pa: int) -> int:
        return int.from_bytes(self.read(pa, 8), "little")

    def set(self, name: str, *values: int) -> None:
        """64-bit values from symbol ``name`` on."""
        self.put(IMAGE_PA + OFFSETS[name], *values)

    # -- tables ----------------------------------------------------------------------------------

    def entry(self, va: int, levels: int = 4, root: int = INIT_PGD) -> int:
        """Physical address of the entry for ``va`` after ``levels`` levels."""
        table = root
        for level in range(levels):
            at = table + 8 * (va >> (39 - 9 * level) & 511)
            if level == levels - 1:
                return at
            table = self.get(at) & ((1 << 52) - 1) & ~0xFFF & ~self.mask
        raise AssertionError

    def flip(self, va: int, bit: int, levels: int = 4, root: int = INIT_PGD) -> None:
        """Flip ``bit`` of the entry for ``va`` at that level."""
        at = self.entry(va, levels, root)
        self.put(at, self.get(at) ^ bit)

    def split(self, va: int, pa: int) -> None:
        """Map a large page anew, as 512 small ones."""
        self.put(self.entry(va, 3), 0)
        self.map(va, pa, LARGE)

    def map(
        self, va: int, pa: int, size: int, flags: int = DATA, *, page: int = PAGE,
        enc: bool = True, root: int = INIT_PGD,
    ) -> None:  # fmt: skip
        levels = 3 if page == LARGE else 4
        for offset in range(0, size, page):
            for level in range(1, levels):
                at = self.entry(va + offset, level, root)
                if not self.get(at) & 1:
                    self._next += 4096
                    self.put(at, self._next | TABLE | self.mask)
            leaf = pa + offset | flags | (self.mask if enc else 0)
            leaf |= bits.PSE if page == LARGE else 0
            self.put(self.entry(va + offset, levels, root), leaf)

    # -- the kernel ------------------------------------------------------------------------------

    def _kernel(self, sev: int) -> None:
        mask = self.mask
        self.map(DIRECT, 0, LARGE)
        self.map(DIRECT + LARGE, LARGE, RAM - LARGE, page=LARGE)
        self.split(DIRECT + POOL, POOL)
        self.map(TEXT, IMAGE_PA, LARGE, CODE, page=LARGE)
        self.map(TEXT + LARGE, IMAGE_PA + LARGE, LARGE)
        self.map(USER, 0x1800000, 8 * PAGE, DATA | bits.USER)
        self.set("sme_me_mask", mask, sev, mask, ((1 << 52) - 1) & ~mask, (1 << 64) - 1)
        self.set("early_pmd_flags", 0xE3 | mask | bits.NX)
        self.set("system_state", 3)
        self.set("page_offset_base", DIRECT)
        self.set("protection_map", *[0x25 | mask] * 16)
        self.write(IMAGE_PA + OFFSETS["linux_banner"], b"Linux version 6.1.0-test (x) #1\0")
        self._e820()
        self._unencrypted(sev)

    def _e820(self) -> None:
        table = [(0, 0x9F000, 1), (0xF0000, 0x10000, 2), (0x100000, RAM - 0x100000, 1)]
        self.set("e820_table", DIRECT + HEAP)
        data = len(table).to_bytes(4, "little")
        for start, size, kind in table:
            data += start.to_bytes(8, "little") + size.to_bytes(8, "little")
            data += kind.to_bytes(4, "little")
        self.write(HEAP, data)

    def _unencrypted(self, sev: int) -> None:
        def decrypt(va: int, size: int, levels: int = 4) -> None:
            if self.mask:
                for offset in range(0, size, PAGE if levels == 4 else LARGE):
                    self.flip(va + offset, self.mask, levels)

        decrypt(TEXT + OFFSETS["__start_bss_decrypted"], 2 * PAGE)
        self.set("io_tlb_default_mem", SWIOTLB, SWIOTLB + LARGE)
        decrypt(DIRECT + SWIOTLB, LARGE, 3)
        self.set("real_mode_header", DIRECT + TRAMPOLINE)
        if not sev:
            decrypt(DIRECT + TRAMPOLINE, 3 * PAGE)
        self.set("vga_vram_base", DIRECT + 0xB8000)
        self.set("vga_vram_size", 0x2000)
        decrypt(DIRECT + 0xB8000, 2 * PAGE)
        # An atomic pool of one chunk: gen_pool and gen_pool_chunk.
        pool, chunk = HEAP + 0x1000, HEAP + 0x1100
        self.set("atomic_pool_kernel", DIRECT + pool)
        self.put(pool + 8, DIRECT + chunk)
        self.put(chunk, DIRECT + pool + 8)
        self.put(chunk + 40, DIRECT + POOL, DIRECT + POOL + 4 * PAGE - 1)
        decrypt(DIRECT + POOL, 4 * PAGE)
        # Two areas of vmalloc: an ioremap of a device, and one of the firmware.
        self.map(VMALLOC, DEVICE, PAGE, DATA | bits.PCD, enc=False)
        self.map(VMALLOC + 0x4000, FIRMWARE, PAGE, enc=False)
        self.map(VMALLOC + 0x8000, 0x1900000, 4 * PAGE)
        self.areas(
            ((VMALLOC, DEVICE, 1), (VMALLOC + 0x4000, FIRMWARE, 1), (VMALLOC + 0x8000, 0, 2))
        )
        self.map(FIXMAP, 0xFEE00000, PAGE, DATA | bits.PCD | bits.PWT, enc=False)
        # Per-CPU memory of two CPUs.
        self.set("__per_cpu_offset", DIRECT + PERCPU_PA, DIRECT + PERCPU_PA + 0x4000)

    def areas(self, areas: tuple[tuple[int, int, int], ...]) -> None:
        """The list of vmap_area: address, physical address and flags of each."""
        head = TEXT + OFFSETS["vmap_area_list"]
        link = IMAGE_PA + OFFSETS["vmap_area_list"]
        for number, (va, pa, flags) in enumerate(areas):
            at = HEAP + 0x2000 + number * 0x100
            self.put(link, DIRECT + at + 40)
            link = at + 40
            self.put(at + 56, DIRECT + at + 64)
            self.put(at + 64 + 8, va, 0x2000, flags)
            self.put(at + 64 + 48, pa)
        self.put(link, head)

    def cpus(self) -> tuple[CpuState, ...]:
        return tuple(
            CpuState(
                number, self.rip, cs=0x10, cr0=0x80050033, cr3=cr3, cr4=0x20, efer=0xD01,
            )
            for number, cr3 in enumerate((self.cr3, *self.others))
        )  # fmt: skip

    def kernel(self) -> Kernel:
        """The kernel as the commands see it."""
        made = Kernel(self, self.symbols, self.cpus())
        made.image = KernelImage(TEXT, TEXT, IMAGE_PA, TEXT + OFFSETS["_end"], "data")
        return made

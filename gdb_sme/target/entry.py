# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a kernel from reset to its entry, wherever the decompressor puts it.

Two ways, the first that proves right by the build-id in memory wins: a breakpoint at the link
address of startup_64 (no KASLR, or no decompressor at all), and the two indirect jumps of the
decompressor (arch/x86/boot/compressed/head_64.S, 6.1 and 6.12): from its load address into its
relocated copy, and from there into the kernel. The jumps are found by looking at the code.

Under EFI firmware neither holds: the kernel's EFI stub unpacks it into the first free memory from
the link address up, efi_decompress_kernel() in drivers/firmware/efi/libstub/x86-stub.c (6.1.192 and
6.12). A breakpoint at each of the lowest places, for a kernel without KASLR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gdb

from gdb_sme.core.ports import PhysMemory, Symbols
from gdb_sme.errors import SymbolError, TargetError
from gdb_sme.linux.image import START_KERNEL_MAP, KernelImage, guest_build_id
from gdb_sme.target.probe import Probe, register

#: Where the boot protocol puts the protected-mode code of a bzImage, and its 64-bit entry there
#: (Documentation/x86/boot.rst, "64-bit BOOT PROTOCOL").
BZIMAGE_ENTRY_64 = 0x100000 + 0x200

#: Places under EFI: as many as leave QEMU fast (it looks through all breakpoints at each jump), and
#: bytes between them, MIN_KERNEL_ALIGN (arch/x86/include/asm/boot.h, 6.1 and 6.12).
_EFI_PLACES, _EFI_STEP = 32, 1 << 21

_JUMP_RAX = b"\xff\xe0"
_CODE_TO_SEARCH = 4096


class EntryFinder:
    """Watches for the kernel's entry and tells where the image is.

    Args:
        memory: guest physical memory.
        symbols: the kernel's symbols.
        on_entry: called once, with the target stopped at the entry or right before the jump to it;
            true to let it stand there.

    Raises:
        SymbolError: the symbols lack startup_64, _text or _end.
    """

    def __init__(
        self, memory: PhysMemory, symbols: Symbols, on_entry: Callable[[KernelImage], bool | None]
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._on_entry = on_entry
        self._probes: list[Probe] = []
        startup = symbols.address("startup_64")
        text, end = symbols.address("_text"), symbols.address("_end")
        if startup is None or text is None or end is None:
            raise SymbolError("no startup_64, _text and _end in the symbol file: file vmlinux")
        self._startup, self._text, self._end = startup, text, end
        linked = startup - START_KERNEL_MAP
        if efi_firmware(memory):
            for place in range(_EFI_PLACES):
                self._arm(linked + place * _EFI_STEP, self._at_startup)
        else:
            self._arm(linked, self._at_startup)
            self._arm(BZIMAGE_ENTRY_64, self._at_decompressor)

    def cancel(self) -> None:
        """Take the breakpoints back."""
        for probe in self._probes:
            probe.retire()
        self._probes.clear()

    def _arm(self, address: int, on_hit: Callable[[], bool | None]) -> None:
        self._probes.append(Probe(address, on_hit))

    def _at_startup(self) -> bool | None:
        return self._found(register("rip"))

    def _at_decompressor(self) -> None:
        self._arm_next_jump(register("rip"), self._at_first_jump)

    def _at_first_jump(self) -> None:
        self._arm_next_jump(register("rax"), self._at_second_jump)

    def _at_second_jump(self) -> bool | None:
        return self._found(register("rax"))

    def _arm_next_jump(self, start: int, on_hit: Callable[[], bool | None]) -> None:
        code = self._memory.read(start, _CODE_TO_SEARCH)
        architecture = gdb.selected_inferior().architecture()
        end = code.find(_JUMP_RAX)
        while end >= 0:
            # Whole instructions only: the two bytes may also stand inside another one.
            instructions = architecture.disassemble(start, start + end)
            if instructions[-1]["addr"] == start + end:
                self._arm(start + end, on_hit)
                return
            end = code.find(_JUMP_RAX, end + 1)

    def _found(self, entry_pa: int) -> bool | None:
        pa = entry_pa - (self._startup - self._text)
        delta = self._text - pa
        wanted = self._symbols.build_id
        if wanted is not None and guest_build_id(self._memory, self._symbols, delta) != wanted:
            return None
        self.cancel()
        va = self._text + virtual_offset(self._memory, self._symbols, delta)
        return self._on_entry(KernelImage(self._text, va, pa, self._end, "kernel entry"))


def efi_firmware(memory: PhysMemory) -> bool:
    """Whether the machine's ROM, which ends at 4 GiB, is EFI firmware.

    It then begins with a firmware volume: UEFI PI specification, volume 3,
    EFI_FIRMWARE_VOLUME_HEADER.Signature.
    """
    return any(
        rom.end == 1 << 32 and memory.read(rom.start + 40, 4) == b"_FVH" for rom in memory.ram
    )


def virtual_offset(memory: PhysMemory, symbols: Symbols, delta: int) -> int:
    """How far KASLR moved the virtual addresses, for a kernel at its entry.

    The decompressor has relocated absolute pointers already: ``initial_code`` holds the run-time
    address of x86_64_start_kernel (arch/x86/kernel/head_64.S).

    Args:
        memory: guest physical memory.
        symbols: the kernel's symbols.
        delta: bytes from a symbol's physical address up to the debugger's address of it.
    """
    pointer, target = symbols.address("initial_code"), symbols.address("x86_64_start_kernel")
    if pointer is None or target is None:
        return 0
    return int.from_bytes(memory.read(pointer - delta, 8), "little") - target


def at_identity(memory: PhysMemory, symbols: Symbols, image: KernelImage) -> KernelImage:
    """``image``, found by RIP at identity addresses, with its virtual place put right."""
    moved = virtual_offset(memory, symbols, image.text - image.pa)
    return replace(image, va=image.text + moved)


def run_to_entry(memory: PhysMemory, symbols: Symbols) -> KernelImage:
    """Continue to the kernel's entry and stand there; the place of the kernel.

    Raises:
        TargetError: the target stopped for another reason before.
        SymbolError: as `EntryFinder`.
    """
    found: list[KernelImage] = []

    def on_entry(image: KernelImage) -> bool:
        found.append(image)
        return True

    finder = EntryFinder(memory, symbols, on_entry)
    try:
        gdb.execute("continue", to_string=True)
    finally:
        finder.cancel()
    if not found:
        raise TargetError("the target stopped before the kernel's entry")
    return found[0]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Follow a kernel from reset to its entry, wherever the decompressor puts it.

Two ways, the first that proves right by the build-id in memory wins: a breakpoint at the link
address of startup_64 (no KASLR, or no decompressor at all), and the two indirect jumps of the
decompressor (arch/x86/boot/compressed/head_64.S, 6.1 and 6.12): from its load address into its
relocated copy, and from there into the kernel. The jumps are found by looking at the code.
"""

from __future__ import annotations

from collections.abc import Callable

import gdb

from gdb_sme.core.ports import PhysMemory, Symbols
from gdb_sme.errors import SymbolError
from gdb_sme.linux.image import START_KERNEL_MAP, KernelImage, guest_build_id
from gdb_sme.target.probe import Probe, register

#: Where the boot protocol puts the protected-mode code of a bzImage, and its 64-bit entry there
#: (Documentation/x86/boot.rst, "64-bit BOOT PROTOCOL").
_BZIMAGE_ENTRY_64 = 0x100000 + 0x200

_JUMP_RAX = b"\xff\xe0"
_CODE_TO_SEARCH = 4096


class EntryFinder:
    """Watches for the kernel's entry and tells where the image is.

    Args:
        memory: guest physical memory.
        symbols: the kernel's symbols.
        on_entry: called once, with the target stopped at the entry or right before the jump to it.

    Raises:
        SymbolError: the symbols lack startup_64, _text or _end.
    """

    def __init__(
        self, memory: PhysMemory, symbols: Symbols, on_entry: Callable[[KernelImage], None]
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
        self._arm(startup - START_KERNEL_MAP, self._at_startup)
        self._arm(_BZIMAGE_ENTRY_64, self._at_decompressor)

    def cancel(self) -> None:
        """Take the breakpoints back."""
        for probe in self._probes:
            probe.retire()
        self._probes.clear()

    def _arm(self, address: int, on_hit: Callable[[], None]) -> None:
        self._probes.append(Probe(address, on_hit))

    def _at_startup(self) -> None:
        self._found(register("rip"))

    def _at_decompressor(self) -> None:
        self._arm_next_jump(register("rip"), self._at_first_jump)

    def _at_first_jump(self) -> None:
        self._arm_next_jump(register("rax"), self._at_second_jump)

    def _at_second_jump(self) -> None:
        self._found(register("rax"))

    def _arm_next_jump(self, start: int, on_hit: Callable[[], None]) -> None:
        code = self._memory.read(start, _CODE_TO_SEARCH)
        position = 0
        architecture = gdb.selected_inferior().architecture()
        while position + 16 < len(code):
            if code[position : position + 2] == _JUMP_RAX:
                self._arm(start + position, on_hit)
                return
            # Whole instructions only: the two bytes may also stand inside another one.
            position += architecture.disassemble(start + position)[0]["length"]

    def _found(self, entry_pa: int) -> None:
        pa = entry_pa - (self._startup - self._text)
        delta = self._text - pa
        wanted = self._symbols.build_id
        if wanted is not None and guest_build_id(self._memory, self._symbols, delta) != wanted:
            return
        self.cancel()
        va = self._text + self._virtual_offset(delta)
        self._on_entry(KernelImage(self._text, va, pa, self._end, "kernel entry"))

    def _virtual_offset(self, delta: int) -> int:
        """How far KASLR moved the virtual addresses.

        The decompressor has relocated absolute pointers already: ``initial_code`` holds the
        run-time address of x86_64_start_kernel (arch/x86/kernel/head_64.S).
        """
        pointer = self._symbols.address("initial_code")
        target = self._symbols.address("x86_64_start_kernel")
        if pointer is None or target is None:
            return 0
        return int.from_bytes(self._memory.read(pointer - delta, 8), "little") - target

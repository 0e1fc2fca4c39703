# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations in a linked vmlinux: kept for the kernel's build, of no use to a debugger.

gdb applies them to the debug information again, and shares nothing between two loads of a file that
has any: to move the symbols of a KASLR kernel it would read everything anew, seconds of work.
"""

from __future__ import annotations

import struct
from pathlib import Path

from gdb_sme.errors import ImageError

_SHT_NULL, _SHT_RELA = 0, 4
_HEADER, _SECTION = struct.Struct("<40xQ10xHH2x"), struct.Struct("<4xI56x")


def drop_relocations(vmlinux: Path) -> int:
    """Mark the sections of relocations of a 64-bit ELF file as unused, in place; how many.

    Raises:
        ImageError: it is no such file.
    """
    with vmlinux.open("r+b") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(b"\x7fELF\x02\x01"):
            raise ImageError(f"{vmlinux} is no 64-bit ELF file")
        at, size, count = _HEADER.unpack(head)
        dropped = 0
        for header in range(at, at + size * count, size):
            file.seek(header)
            (kind,) = _SECTION.unpack(file.read(_SECTION.size))
            if kind == _SHT_RELA:
                file.seek(header + 4)
                file.write(struct.pack("<I", _SHT_NULL))
                dropped += 1
    return dropped

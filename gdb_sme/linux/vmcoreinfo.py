# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO: what a kernel writes down about itself for readers of its dumps.

Documentation/admin-guide/kdump/vmcoreinfo.rst; kernel/crash_core.c and
arch/x86/kernel/crash_core_64.c (6.1), kernel/vmcore_info.c and arch/x86/kernel/vmcore_info_64.c
(6.12).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gdb_sme.core.address import U64
from gdb_sme.linux.image import START_KERNEL_MAP, KernelImage

_SYMBOL = re.compile(r"^SYMBOL\((\w+)\)=([0-9a-f]+)$", re.MULTILINE)
_NUMBER = re.compile(r"^NUMBER\((\w+)\)=(-?\d+)$", re.MULTILINE)
_PLAIN = re.compile(r"^([\w-]+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Vmcoreinfo:
    """The note's lines.

    Attributes:
        plain: the lines without brackets: OSRELEASE, BUILD-ID, KERNELOFFSET.
        symbols: SYMBOL(name): run-time virtual addresses.
        numbers: NUMBER(name), signed.
    """

    plain: dict[str, str]
    symbols: dict[str, int]
    numbers: dict[str, int]

    @property
    def koff(self) -> int:
        """KERNELOFFSET: bytes by which KASLR moved the image's virtual addresses."""
        return int(self.plain.get("KERNELOFFSET", "0"), 16)

    @property
    def build_id(self) -> str | None:
        """BUILD-ID (5.10 and later), hexadecimal."""
        return self.plain.get("BUILD-ID")

    @property
    def sme_mask(self) -> int | None:
        """sme_me_mask, None when the kernel did not write it down (before 5.1)."""
        return self.numbers.get("sme_mask")

    @property
    def levels5(self) -> bool:
        """Whether the kernel uses 5-level paging."""
        return bool(self.numbers.get("pgtable_l5_enabled"))

    @property
    def image(self) -> KernelImage | None:
        """Where the kernel lies, None without _stext (which is _text on x86-64) or phys_base."""
        text, phys_base = self.symbols.get("_stext"), self.numbers.get("phys_base")
        if text is None or phys_base is None:
            return None
        pa = text - START_KERNEL_MAP + phys_base & U64
        return KernelImage(text - self.koff, text, pa, text - self.koff, "VMCOREINFO")


def parse_vmcoreinfo(data: bytes) -> Vmcoreinfo:
    """Parse the note's text; lines of other kinds (SIZE, OFFSET, LENGTH) are left out."""
    text = data.rstrip(b"\0").decode("ascii", "replace")
    return Vmcoreinfo(
        dict(_PLAIN.findall(text)),
        {name: int(value, 16) for name, value in _SYMBOL.findall(text)},
        {name: int(value) for name, value in _NUMBER.findall(text)},
    )

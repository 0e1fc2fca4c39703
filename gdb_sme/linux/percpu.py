# SPDX-License-Identifier: GPL-2.0-or-later
"""Per-CPU variables: the symbol's address plus the CPU's __per_cpu_offset."""

from __future__ import annotations

from collections.abc import Iterator

from gdb_sme.core.address import U64
from gdb_sme.linux.kernel import Kernel


def instances(kernel: Kernel, name: str) -> Iterator[tuple[int, int]]:
    """Virtual address and size in bytes of variable ``name`` of every CPU; none without symbol."""
    found, offsets = kernel.symbol(name), kernel.symbol("__per_cpu_offset")
    if found is None or offsets is None or kernel.image is None:
        return
    size = kernel.symbols.size(found[0]) or 8
    for cpu in kernel.cpus:
        at = kernel.image.va_of(offsets[1]) + 8 * cpu.index
        base = int.from_bytes(kernel.read_virtual(at, 8), "little")
        yield (found[1] + base) & U64, size

# SPDX-License-Identifier: GPL-2.0-or-later
"""Per-CPU variables: where those of a CPU are, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator

from gdb_sme.core.address import U64
from gdb_sme.core.cr3 import CpuState
from gdb_sme.errors import ReadError
from gdb_sme.linux.kernel import Kernel


def address(kernel: Kernel, cpu: CpuState, name: str) -> int | None:
    """Virtual address of ``cpu``'s variable ``name``, None without the symbols or the image.

    __per_cpu_offset is added to the address in the running kernel. Up to 6.14 kernels for SMP link
    these variables from 0 up (arch/x86/kernel/vmlinux.lds.S), and KASLR does not move them: not so
    a debugger that was told to move all symbols, whose __per_cpu_start says by how much.

    Raises:
        ReadError: __per_cpu_offset is not to be read.
    """
    found, offsets = kernel.symbol(name), kernel.symbol("__per_cpu_offset")
    image = kernel.image
    if found is None or offsets is None or image is None:
        return None
    start = kernel.symbol("__per_cpu_start")
    moved = start[1] if start is not None and not start[1] >> 63 else 0
    linked = image.va_of(found[1]) if found[1] >> 63 else found[1] - moved
    at = image.pa_of(offsets[1]) + 8 * cpu.index
    return linked + int.from_bytes(kernel.memory.read(at, 8), "little") & U64


def instances(kernel: Kernel, name: str) -> Iterator[tuple[int, int]]:
    """Virtual address and size in bytes of variable ``name`` of every CPU; none without symbol."""
    found = kernel.symbol(name)
    size = (kernel.symbols.size(found[0]) if found is not None else None) or 8
    for cpu in kernel.cpus:
        va = address(kernel, cpu, name)
        if va is not None:
            yield va, size


def value(kernel: Kernel, cpu: CpuState, name: str, struct: str = "", path: str = "") -> int | None:
    """A per-CPU variable of ``cpu``, or a member of one; None when it cannot be had."""
    member = kernel.symbols.field(struct, path) if struct else None
    if struct and member is None:
        return None
    try:
        va = address(kernel, cpu, name)
        if va is None:
            return None
        offset, size = (member.offset, member.size) if member else (0, 8)
        return int.from_bytes(kernel.read_virtual(va + offset & U64, size), "little")
    except ReadError:
        return None

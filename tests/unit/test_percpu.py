# SPDX-License-Identifier: GPL-2.0-or-later
"""Per-CPU variables, by the symbols of old and new kernels, and as debuggers move them."""

from __future__ import annotations

from gdb_sme.core.ports import Field
from gdb_sme.linux import percpu
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from tests.unit.fake_kernel import (
    DIRECT,
    IMAGE_PA,
    INIT_PGD,
    OFFSETS,
    PERCPU,
    PERCPU_PA,
    TEXT,
    C,
    Machine,
    Symbols,
)  # fmt: skip

SECOND = PERCPU_PA + 0x4000
KOFF = 0x16000000


class Moved(Symbols):
    """What a debugger has that was told to add ``KOFF`` to all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self._addresses["__per_cpu_start"] = 0
        self._addresses = {name: at + KOFF for name, at in self._addresses.items()}


def two_cpus() -> Machine:
    machine = Machine()
    machine.others = (INIT_PGD | C,)
    return machine


def test_linked_from_zero_they_count_from_the_cpus_own_memory() -> None:
    kernel = two_cpus().kernel()
    at = DIRECT + PERCPU_PA + PERCPU["apf_reason"]
    assert list(percpu.instances(kernel, "apf_reason")) == [(at, 8), (at + 0x4000, 8)]


def test_a_debugger_that_moved_them_with_the_image() -> None:
    machine = two_cpus()
    kernel = Kernel(machine, Moved(), machine.cpus())
    text = TEXT + KOFF
    kernel.image = KernelImage(text, text, IMAGE_PA, text + OFFSETS["_end"], "data")
    cpu = kernel.cpus[1]
    assert percpu.address(kernel, cpu, "apf_reason") == DIRECT + SECOND + PERCPU["apf_reason"]


def test_linked_into_the_image_they_move_with_it() -> None:
    """6.15 and later: __per_cpu_offset is what lies between the image and the CPU's memory."""
    machine = two_cpus()
    machine.symbols._addresses |= {"__per_cpu_start": TEXT + 0x300000, "hot": TEXT + 0x300040}
    kernel = machine.kernel()
    kernel.image = KernelImage(TEXT, TEXT + KOFF, IMAGE_PA, TEXT + OFFSETS["_end"], "data")
    start = TEXT + KOFF + 0x300000
    offsets = [(DIRECT + pa - start) % 2**64 for pa in (PERCPU_PA, SECOND)]
    machine.set("__per_cpu_offset", *offsets)
    assert percpu.address(kernel, kernel.cpus[1], "hot") == DIRECT + SECOND + 0x40


def test_values_and_what_has_none() -> None:
    machine = two_cpus()
    machine.symbols.fields["tlb_state", "loaded_mm"] = Field(8, 4)
    machine.put(SECOND + PERCPU["apf_reason"] + 8, 0x1122334455667788)
    kernel = machine.kernel()
    cpu = kernel.cpus[1]
    assert percpu.value(kernel, cpu, "apf_reason", "tlb_state", "loaded_mm") == 0x55667788
    assert percpu.value(kernel, cpu, "apf_reason", "tlb_state", "no_such") is None
    assert percpu.value(kernel, cpu, "no_such") is None
    kernel.image = None
    assert percpu.value(kernel, cpu, "apf_reason") is None


def test_memory_that_is_not_there() -> None:
    machine = two_cpus()
    machine.set("__per_cpu_offset", DIRECT + (1 << 40), DIRECT + (1 << 40))
    kernel = machine.kernel()
    assert percpu.value(kernel, kernel.cpus[0], "apf_reason") is None

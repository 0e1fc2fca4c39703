# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core.cr3 import CpuState
from gdb_sme.linux.image import (
    START_KERNEL_MAP,
    KernelImage,
    locate,
    mapped_image,
    parse_build_id,
    strip_unknown_bit,
)
from tests.fakes import FakePhys, FakeSymbols, entries

TEXT, END, NOTES = START_KERNEL_MAP + 0x1000000, START_KERNEL_MAP + 0x1800000, 0x600000
BUILD_ID = "c0ffee" + "00" * 17
C = 1 << 51


def note(build_id: str = BUILD_ID, name: bytes = b"GNU\0", kind: int = 3) -> bytes:
    """An ELF note as the linker writes it."""
    data = bytes.fromhex(build_id)
    head = b"".join(n.to_bytes(4, "little") for n in (len(name), len(data), kind))
    return head + name + b"\0" * (-len(name) % 4) + data + b"\0" * (-len(data) % 4)


class Symbols(FakeSymbols):
    build_id = BUILD_ID

    def __init__(self) -> None:
        super().__init__(
            {
                "_text": TEXT,
                "_end": END,
                "__start_notes": TEXT + NOTES,
                "__stop_notes": TEXT + NOTES + len(note()),
            }
        )


def cpu(cr3: int = 0x1000, rip: int = START_KERNEL_MAP + 0x1234567, cr4: int = 0x20) -> CpuState:
    return CpuState(0, rip, cs=0x10, cr0=0x80050033, cr3=cr3, cr4=cr4, efer=0xD01)


def memory(va: int, pa: int, mask: int, *, split: bool = False, five: bool = False) -> FakePhys:
    """Tables from 0x1000 on that map _text at ``va`` to ``pa``, and the image's notes there."""
    index = (va - START_KERNEL_MAP) >> 21
    leaf = 0x5000 | 0x63 | mask if split else pa | 0x1E3 | mask
    tables = {
        0x1000: entries({511: (0x2000 if five else 0x3000) | 0x63 | mask}),
        0x2000: entries({511: 0x3000 | 0x63 | mask}),
        0x3000: entries({510: 0x4000 | 0x63 | mask}),
        # Below _text __startup_64 leaves entries that only lost PRESENT.
        0x4000: entries({index - 1: 0x1E001E2, index: leaf}),
        0x5000: entries({0: pa | 0x163 | mask}),
    }
    data = b"".join(tables[at].ljust(4096, b"\0") for at in sorted(tables))
    return FakePhys({0x1000: data, pa: bytes(NOTES) + note() + bytes(4096)})


def test_parse_build_id() -> None:
    assert parse_build_id(note()) == BUILD_ID
    assert parse_build_id(note(kind=1) + note(name=b"Xen\0") + note()) == BUILD_ID
    assert parse_build_id(note(name=b"Linux\0") + note()) == BUILD_ID
    assert parse_build_id(note(kind=1)) is None
    assert parse_build_id(b"") is None
    assert parse_build_id(note()[:20]) is None


@pytest.mark.parametrize("mask", [0, 1 << 43, 1 << 47, C])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("five", [False, True])
@pytest.mark.parametrize(
    ("va", "pa"),
    [(TEXT, 0x1000000), (START_KERNEL_MAP + 0x16000000, 0xE000000), (TEXT, 0x10000000)],
)
def test_found_in_the_page_tables_wherever_kaslr_put_it(
    va: int, pa: int, mask: int, split: bool, five: bool
) -> None:
    known = memory(va, pa, mask, split=split, five=five)
    found = locate(known, Symbols(), (cpu(0x1000 | mask, cr4=0x1020 if five else 0x20),))
    assert found == KernelImage(TEXT, va, pa, END, "page tables of CPU 0")
    assert found.koff == va - TEXT
    assert found.phys_base == (pa - (va - START_KERNEL_MAP)) % (1 << 64)
    assert found.va_of(TEXT + 8) == va + 8
    assert found.pa_of(TEXT + 8) == pa + 8
    assert found.symbol_va(pa + 8) == TEXT + 8
    assert found.symbol_va(pa - 1) is None
    assert mapped_image(known, (cpu(0x1000 | mask, cr4=0x1020 if five else 0x20),)) == (va, pa)


def test_the_kernels_half_of_an_isolated_pair() -> None:
    """In user mode CR3 has the user's half, 4 KiB behind the kernel's, which maps no kernel."""
    known = memory(TEXT, 0x1000000, C)
    data = known.read(0x1000, 0x5000)
    moved = FakePhys(
        {
            0x1000: data,
            0x1000000: known.read(0x1000000, NOTES + 4096),
            0x20000: data[:4096] + entries({}),
        }
    )
    found = locate(moved, Symbols(), (cpu(0x21000 | C),))
    assert found is not None
    assert found.how == "page tables of CPU 0"


def test_another_kernel_is_not_believed() -> None:
    known = memory(TEXT, 0x1000000, C)
    symbols = Symbols()
    symbols.build_id = "ab" * 20
    assert locate(known, symbols, (cpu(0x1000 | C),)) is None
    assert mapped_image(known, (cpu(0x1000 | C),)) == (TEXT, 0x1000000)


def test_by_rip_at_identity_addresses() -> None:
    """KASLR moved it, and no table maps it high yet."""
    pa = 0x6400000
    known = FakePhys({pa: bytes(NOTES) + note() + bytes(0x800000)})
    at = cpu(rip=pa + 0x612345)
    assert locate(known, Symbols(), (at,)) == KernelImage(TEXT, TEXT, pa, END, "RIP of CPU 0")


def test_by_a_hint_and_by_the_link_address() -> None:
    hint = KernelImage(TEXT, TEXT + 0x2000000, 0x8000000, END, "kernel entry")
    known = FakePhys({0x8000000: bytes(NOTES) + note() + bytes(4096)})
    real_mode = CpuState(0, 0xFFF0, cs=0xF000, cr0=0x10, cr3=0, cr4=0, efer=0)
    assert locate(known, Symbols(), (real_mode,), (hint,)) == hint
    assert locate(known, Symbols(), (real_mode,)) is None
    linked = FakePhys({0x1000000: bytes(NOTES) + note() + bytes(4096)})
    found = locate(linked, Symbols(), (real_mode,))
    assert found is not None
    assert (found.pa, found.how) == (0x1000000, "link address")


def test_without_a_build_id_the_banner_decides() -> None:
    symbols = FakeSymbols({"_text": TEXT, "_end": END, "linux_banner": TEXT + 0x1000})
    symbols.build_id = None  # type: ignore[assignment]
    known = FakePhys({0x1000000: bytes(0x1000) + b"Linux version 6.1.0" + bytes(4096)})
    at = cpu(cr3=0)
    assert locate(known, symbols, (at,)) is not None
    assert locate(FakePhys({0x1000000: bytes(0x3000)}), symbols, (at,)) is None
    del symbols._addresses["linux_banner"]
    assert locate(known, symbols, (at,)) is None
    assert locate(known, FakeSymbols({}), (at,)) is None


def test_strip_unknown_bit() -> None:
    known = FakePhys({0x1000: bytes(4096)})
    assert strip_unknown_bit(known, 0x1063) == (0x1000,)
    for bit in range(40, 52):
        assert strip_unknown_bit(known, 0x1063 | 1 << bit) == (0x1000,)
    assert strip_unknown_bit(known, 0x1063 | 1 << 39) == ()
    assert strip_unknown_bit(known, 0x1063 | 3 << 47) == ()

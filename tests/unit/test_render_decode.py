# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.paging import LEVEL4
from gdb_sme.linux.decode import decode
from gdb_sme.render import decode as view
from gdb_sme.render import json as json_output

C47 = EncryptionBit(1 << 47)


def shown(value: int, level: str | None = None, enc: EncryptionBit = C47) -> list[str]:
    return str(view.text(decode(value, level, enc, LEVEL4))).split("\n")


def test_a_large_page() -> None:
    assert shown(0x8000800002A001E3) == [
        "0x8000800002a001e3  bit 7 is set, the address is 2 MiB aligned: a large pmd",
        "pmd",
        "  address  0x02a00000  pfn 0x2a00, 2 MiB page",
        "  C-bit    set  bit 47: encrypted",
        "  flags    PRESENT RW ACCESSED DIRTY PSE GLOBAL NX ENC",
        "  macro    PAGE_KERNEL_LARGE  = __PAGE_KERNEL_LARGE | _PAGE_ENC",
    ]


def test_a_table_with_the_level_given() -> None:
    assert shown(0x0000000002A15067, "pgd") == [
        "0x0000000002a15067",
        "pgd",
        "  address  0x02a15000  pfn 0x2a15",
        "  C-bit    clear  bit 47: NOT encrypted",
        "  flags    PRESENT RW USER ACCESSED DIRTY",
        "  macro    _PAGE_TABLE_NOENC",
    ]


def test_both_readings_of_a_table() -> None:
    lines = shown(0x0000800002A16063)
    assert lines[1] == "pgd, p4d, pud or pmd"
    assert lines[6] == "pte"
    assert lines[10] == "  macro    PTE_FLAGS_ENC  = PTE_FLAGS | _PAGE_ENC"


def test_cr3() -> None:
    assert shown(0x00008000030B6000) == [
        "0x00008000030b6000  page aligned, no flags: a CR3 value",
        "CR3",
        "  address  0x030b6000  pfn 0x30b6",
        "  C-bit    set  bit 47: encrypted",
        "  flags    ENC",
    ]
    assert shown(0x0000000002A10806, "cr3")[2:] == [
        "  address  0x02a10000  pfn 0x2a10",
        "  C-bit    clear  bit 47: NOT encrypted",
        "  flags    none",
        "  PCID     0x806",
    ]


def test_early_pmd_flags() -> None:
    assert shown(0xE3)[-1] == (
        "  macro  early_pmd_flags (initial)  = __PAGE_KERNEL_LARGE & ~(_PAGE_GLOBAL | _PAGE_NX)"
        "  also PMD_FLAGS_LARGE, PMD_FLAGS_DEC"
    )
    assert shown(0x80008000000000E3)[-1] == (
        "  macro  PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL"
        "  PAGE_KERNEL_LARGE = __PAGE_KERNEL_LARGE | _PAGE_ENC"
    )


def test_no_macro_is_near() -> None:
    assert shown(0xE1B, "pgprot")[-1] == "  macro  none is near"


def test_not_present() -> None:
    assert shown(0x0FFFFFFFFFDBB600)[1:] == [
        "pte",
        "  holds  swapped out, type 1, offset 0x1224",
        "  C-bit  none: its place belongs to what the entry holds",
        "  flags  none",
    ]
    assert shown(0x1E001E2, "pmd")[2] == (
        "  holds  not present, other bits set: looks like a pmd of 0x01e00000 without PRESENT"
    )
    assert shown(0, "pud") == ["0x0000000000000000", "pud", "  holds  empty"]
    assert shown(0x000F7FFFFEDCB120, "pte")[2:] == [
        "  holds  PROT_NONE or a NUMA hint, page 0x01234000",
        "  C-bit  clear  bit 47: NOT encrypted",
        "  flags  ACCESSED PROTNONE",
        "  macro  PAGE_NONE",
    ]


def test_reserved_bits() -> None:
    assert "  reserved  0x80 must be zero: the CPU would fault" in shown(0x2000E3, "pgd")


def test_without_encryption_and_with_the_shared_bit() -> None:
    lines = shown(0x8000800002A001E3, enc=NO_ENCRYPTION)
    assert "  C-bit    no encryption bit in force" in lines
    assert lines[-1] == "bit 47 is set in the address: if it is the C-bit, use --c-bit 47"
    shared = EncryptionBit(1 << 47, set_is_encrypted=False)
    assert "  shared   set  bit 47: NOT encrypted" in shown(0x8000800003600163, enc=shared)
    assert "  shared   clear  bit 47: encrypted" in shown(0x8000000003600163, enc=shared)


def test_payload() -> None:
    decoded = decode(0x80008000000000E3, None, C47, LEVEL4)
    document = json.loads(json_output.render("sme decode", view.payload(decoded)))
    assert document == {
        "schema": "gdb_sme/1",
        "command": "sme decode",
        "value": "0x80008000000000e3",
        "c_bit": 47,
        "set_is_encrypted": True,
        "assumed": "no address bits: flags alone",
        "hint": None,
        "readings": [
            {
                "kind": "pgprot",
                "level": "pgprot",
                "c_bit": True,
                "encrypted": True,
                "flags": ["PRESENT", "RW", "ACCESSED", "DIRTY", "PSE", "NX", "ENC"],
                "pa": None,
                "page_size": None,
                "reserved": None,
                "cache_index": None,
                "pcid": None,
                "macro": {
                    "text": "PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL",
                    "name": "PAGE_KERNEL_LARGE",
                    "exact": False,
                    "plus": [],
                    "minus": ["_PAGE_GLOBAL"],
                    "aliases": [],
                },
                "nonpresent": None,
            }
        ],
    }


def test_payload_of_a_swap_entry_and_a_large_page() -> None:
    swapped = json.loads(
        json_output.render(
            "sme decode", view.payload(decode(0x0FFFFFFFFFDBB600, "pte", C47, LEVEL4))
        )
    )["readings"][0]
    assert swapped["nonpresent"] == {
        "kind": "swap", "pfn": None, "swap_type": 1, "swap_offset": "0x1224",
    }  # fmt: skip
    assert (swapped["c_bit"], swapped["macro"]) == (None, None)
    large = json.loads(
        json_output.render("sme decode", view.payload(decode(0x402001E3, "pud", C47, LEVEL4)))
    )["readings"][0]
    assert (large["pa"], large["page_size"]) == ("0x40000000", 1 << 30)
    assert large["reserved"] == "0x200000"

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from dataclasses import replace

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.paging import LEVEL4
from gdb_sme.core.walk import walk
from gdb_sme.linux.nonpresent import SwapLayout, decode_nonpresent, layout_6_1
from gdb_sme.linux.translate import Root, Translation
from gdb_sme.render import json as json_output
from gdb_sme.render import walk as view
from tests.fakes import FakePhys, entries

C47 = EncryptionBit(1 << 47)

# Debian's 6.1 with SME active under QEMU, as in tests/unit/test_walk.py; index 1 and 2 of the last
# table hold a swapped page and one under migration, built as pgtable_64.h builds them.
TABLES = {
    0x2A10000: entries({511: 0x0000800002A15067}),
    0x2A15000: entries({510: 0x0000800002A16063}),
    0x2A16000: entries({21: 0x8000800002A001E3, 22: 0x1E001E2, 27: 0x0000800002A19063}),
    0x2A19000: entries(
        {0: 0x8000000003600163, 1: 0x0FFFFFFFFFDBB600, 2: 0xCFFFFFFFFFFFDA00, 3: 0xF7FFFFEDCB120}
    ),
}
ROOT = Root(0x2A10000, 0x0000800002A10000, True, "CR3 of CPU 0", "init_top_pgt")


def translation(
    va: int,
    tables: dict[int, bytes] = TABLES,
    root: Root = ROOT,
    enc: EncryptionBit = C47,
    *,
    symbol: str | None = None,
    note: str | None = None,
    layout: SwapLayout | None = layout_6_1(),  # noqa: B008 - a constant
) -> Translation:
    found = walk(FakePhys(tables), va, root.pa, LEVEL4, enc)
    memory_type = "write-back" if found.mapping else None
    held = decode_nonpresent(found.steps[-1].entry, LEVEL4, layout) if found.hole else None
    return Translation(found, root, "kernel image", symbol, memory_type, note, held)


def shown(result: Translation) -> list[str]:
    return str(view.text(result)).split("\n")


def test_a_large_page() -> None:
    result = translation(0xFFFFFFFF82A10000, symbol="init_top_pgt")
    assert shown(result) == [
        "0xffffffff82a10000  init_top_pgt, kernel image",
        "     entry at    index  raw                 C  to          flags",
        "CR3                     0x0000800002a10000  C  0x02a10000  init_top_pgt",
        "pgd  0x02a10ff8    511  0x0000800002a15067  C  0x02a15000  RW USER ACCESSED DIRTY ENC",
        "pud  0x02a15ff0    510  0x0000800002a16063  C  0x02a16000  RW ACCESSED DIRTY ENC",
        "pmd  0x02a160a8     21  0x8000800002a001e3  C  0x02a00000"
        "  RW ACCESSED DIRTY PSE GLOBAL NX ENC  2 MiB",
        "0x02a10000  rw- kernel, write-back, encrypted",
    ]


def test_a_page_that_is_not_encrypted() -> None:
    why = translation(0xFFFFFFFF83600000, note=".bss..decrypted: by design")
    assert shown(why)[-2:] == [
        "pte  0x02a19000      0  0x8000000003600163  -  0x03600000"
        "  RW ACCESSED DIRTY GLOBAL NX  4 KiB",
        "0x03600000  rw- kernel, write-back, NOT encrypted (.bss..decrypted: by design)",
    ]
    unexplained = translation(0xFFFFFFFF83600000)
    assert shown(unexplained)[-1] == "0x03600000  rw- kernel, write-back, NOT encrypted"
    assert ("Generic.Error", "NOT encrypted") in view.text(unexplained).lines[-1]
    assert ("Generic.Error", "NOT encrypted") not in view.text(why).lines[-1]


def test_holes() -> None:
    assert shown(translation(0xFFFF888000000000))[-1] == (
        "not mapped: the pgd for 0xffff888000000000-0xffff88ffffffffff is empty"
    )
    stale = shown(translation(0xFFFFFFFF82C12345))
    assert stale[-2] == (
        "pmd  0x02a160b0     22  0x0000000001e001e2  -              RW ACCESSED DIRTY PSE GLOBAL"
    )
    assert stale[-1] == (
        "not mapped: the pmd for 0xffffffff82c00000-0xffffffff82dfffff is "
        "not present, other bits set: looks like a pmd of 0x01e00000 without PRESENT"
    )


def test_swapped_migrating_and_protnone_pages() -> None:
    swapped = shown(translation(0xFFFFFFFF83601000))
    assert swapped[-2] == "pte  0x02a19008      1  0x0fffffffffdbb600"
    assert swapped[-1] == (
        "not mapped: the pte for 0xffffffff83601000-0xffffffff83601fff is "
        "swapped out, type 1, offset 0x1224"
    )
    assert shown(translation(0xFFFFFFFF83602000))[-1].endswith(
        "is under migration, write, page 0x00012000"
    )
    unknown = view.text(translation(0xFFFFFFFF83602000, layout=None))
    assert str(unknown).endswith(
        "is a special swap type of this kernel's configuration, type 25, offset 0x12"
    )
    protnone = shown(translation(0xFFFFFFFF83603000))
    assert protnone[-2].split() == [
        "pte", "0x02a19018", "3", "0x000f7ffffedcb120", "-", "ACCESSED", "PROTNONE",
    ]  # fmt: skip
    assert protnone[-1].endswith("is PROT_NONE or a NUMA hint, page 0x01234000")


def test_a_table_outside_ram() -> None:
    lines = shown(translation(0xFFFFFFFF82A10000, enc=NO_ENCRYPTION))
    assert len(lines) == 5
    assert lines[-1] == (
        "cannot read the pud at 0x800002a15ff0: outside guest RAM; is bit 47 the C-bit?"
    )
    known = translation(0, {0x2A10000: entries({0: 0x0008800002A15067})})
    assert shown(known)[-1] == "cannot read the pud at 0x8000002a15000: outside guest RAM"
    low = translation(0, {0x2A10000: entries({0: 0x3000067})}, enc=NO_ENCRYPTION)
    assert shown(low)[-1] == "cannot read the pud at 0x03000000: outside guest RAM"


def test_a_root_outside_ram() -> None:
    root = Root(0x7000, 0x7000, None, "--root 0x7000")
    result = Translation(walk(FakePhys({}), 0, 0x7000, LEVEL4, C47), root, None, None, None)
    assert shown(result) == [
        "0x0000000000000000",
        "      entry at  index  raw                 C  to          flags",
        "root                   0x0000000000007000     0x00007000",
        "cannot read the pgd at 0x00007000: outside guest RAM",
    ]


def test_reserved_bits() -> None:
    result = translation(0, {0x2A10000: entries({0: 0x10E3})})
    assert shown(result)[-1] == "reserved bits 0x80 are set in the pgd: the CPU would fault here"


def test_a_table_that_points_to_itself() -> None:
    lines = shown(translation(0, {0x2A10000: entries({0: 0x0000800002A10063})}))
    assert lines[-4:] == [
        "the table at 0x02a10000 was passed before: as a pud table it points to itself",
        "the table at 0x02a10000 was passed before: as a pmd table it points to itself",
        "the table at 0x02a10000 was passed before: as a pte table it points to itself",
        "0x02a10000  rwx kernel, write-back, encrypted",
    ]


def test_without_encryption_and_with_the_shared_bit() -> None:
    tables = {0x1000: entries({0: 0x2067}), 0x2000: entries({0: 0x80080000400001E7})}
    shared = EncryptionBit(1 << 51, set_is_encrypted=False)
    root = Root(0x1000, 0x1000, False, "CR3 of CPU 0")
    lines = shown(translation(0x5000, tables, root, shared))
    assert " S  to " in lines[1]
    assert lines[3].split()[4] == "-"
    assert lines[4].split()[4] == "S"
    assert lines[-1] == "0x40005000  rw- user, write-back, NOT encrypted"
    plain = {0x1000: entries({0: 0x2067}), 0x2000: entries({0: 0x1E7})}
    assert shown(translation(0x5000, plain, root, NO_ENCRYPTION))[-1] == (
        "0x00005000  rwx user, write-back, no encryption bit in force"
    )


def payload(result: Translation) -> dict[str, object]:
    text = json_output.render("sme pte", view.payload(result))
    assert "\n" not in text
    loaded: dict[str, object] = json.loads(text)
    return loaded


def test_payload_of_a_mapping() -> None:
    found = payload(translation(0xFFFFFFFF83600008, symbol="boot_ghcb_page+0x8", note="by design"))
    levels = found.pop("levels")
    assert found == {
        "schema": "gdb_sme/1",
        "command": "sme pte",
        "va": "0xffffffff83600008",
        "pa": "0x3600008",
        "encrypted": False,
        "page_size": 4096,
        "permissions": {"write": True, "user": False, "execute": False},
        "global": True,
        "memory_type": "write-back",
        "region": "kernel image",
        "symbol": "boot_ghcb_page+0x8",
        "note": "by design",
        "moved_to": None,
        "outcome": "mapped",
        "reserved": None,
        "error": None,
        "nonpresent": None,
        "root": {
            "pa": "0x2a10000",
            "raw": "0x0000800002a10000",
            "c_bit": True,
            "source": "CR3 of CPU 0",
            "table": "init_top_pgt",
        },
    }
    assert isinstance(levels, list)
    assert [level["level"] for level in levels] == ["pgd", "pud", "pmd", "pte"]
    assert levels[0] == {
        "level": "pgd",
        "table_pa": "0x2a10000",
        "index": 511,
        "entry_pa": "0x2a10ff8",
        "raw": "0x0000800002a15067",
        "pa": "0x2a15000",
        "pfn": "0x2a15",
        "flags": ["PRESENT", "RW", "USER", "ACCESSED", "DIRTY", "ENC"],
        "c_bit": True,
        "encrypted": True,
        "leaf": False,
        "repeated": False,
    }
    assert (levels[3]["encrypted"], levels[3]["leaf"]) == (False, True)


def test_payload_of_a_hole() -> None:
    found = payload(translation(0xFFFFFFFF83602000))
    assert (found["pa"], found["encrypted"], found["page_size"]) == (None, None, None)
    assert (found["permissions"], found["global"]) == (None, None)
    assert found["outcome"] == "not-present"
    assert found["nonpresent"] == {
        "kind": "migration-write", "pfn": "0x12", "swap_type": 25, "swap_offset": "0x12",
    }  # fmt: skip
    levels = found["levels"]
    assert isinstance(levels, list)
    assert levels[-1]["flags"] == []
    assert (levels[-1]["encrypted"], levels[-1]["c_bit"], levels[-1]["pa"]) == (None, None, None)
    protnone = payload(translation(0xFFFFFFFF83603000))["levels"]
    assert isinstance(protnone, list)
    assert (protnone[-1]["encrypted"], protnone[-1]["pfn"]) == (False, "0x1234")


def test_payload_of_trouble() -> None:
    unreadable = payload(translation(0xFFFFFFFF82A10000, enc=NO_ENCRYPTION))
    assert unreadable["outcome"] == "unreadable"
    assert unreadable["error"] == (
        "cannot read 8 bytes at physical 0x800002a15ff0: outside guest RAM"
    )
    reserved = payload(translation(0, {0x2A10000: entries({0: 0x10E3})}))
    assert (reserved["outcome"], reserved["reserved"]) == ("reserved", "0x80")


def test_what_kaslr_has_moved_is_told() -> None:
    moved = replace(translation(0x7000), moved=("init_top_pgt", 0xFFFFFFFF9BA10000))
    assert shown(moved)[-1] == (
        "KASLR has moved what gdb has here, init_top_pgt, to 0xffffffff9ba10000; its symbols "
        "follow with: sme kaslr"
    )
    assert view.payload(moved)["moved_to"] == "0xffffffff9ba10000"
    assert view.payload(translation(0x7000))["moved_to"] is None

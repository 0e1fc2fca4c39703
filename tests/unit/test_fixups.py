# SPDX-License-Identifier: GPL-2.0-or-later
"""The fix-ups of the early tables, on tables that are fixed up here."""

from __future__ import annotations

from gdb_sme.linux.fixups import early_tables, fix_ups
from gdb_sme.linux.trace import Place
from tests.unit.boot_kernel import EARLY_PGD, Booting
from tests.unit.fake_kernel import IMAGE_PA, TEXT, C

PLACE = Place(TEXT, "startup_64", None, 0, EARLY_PGD | C, "early_top_pgt", "early boot", C)
LEVEL2, DYNAMIC = 0x1220000, 0x1230000


def machine() -> Booting:
    made = Booting()
    for name, pa in (("level2_kernel_pgt", LEVEL2), ("early_dynamic_pgts", DYNAMIC)):
        made.symbols._addresses[name] = TEXT + pa - IMAGE_PA
    return made


def test_what_is_present_or_changed_is_told_by_page() -> None:
    guest = machine()
    guest.put(LEVEL2 + 8 * 8, 0x1000063, 0x1200063)
    guest.put(LEVEL2 + 8 * 100, 0x9000063, 0x10000)
    before = early_tables(guest.kernel())
    guest.put(LEVEL2 + 8 * 8, 0x1000063 | C)
    guest.put(LEVEL2 + 8 * 100, 0)
    guest.put(DYNAMIC + 0x2000 + 8 * 511, 0x1401063)
    found = {each.table: each for each in fix_ups(guest.kernel(), before, PLACE)}
    level2 = found["level2_kernel_pgt"]
    assert level2.entries == (
        (8, 0x1000063, 0x1000063 | C),
        (9, 0x1200063, 0x1200063),
        (100, 0x9000063, 0),
    )
    assert level2.changed == 2
    # .bss..decrypted is in the 2 MiB of entry 9: it lacks the mask by design.
    assert level2.by_design == (9,)
    assert level2.unencrypted == ()
    # Only the page that has something, by its index.
    dynamic = [name for name in found if name.startswith("early_dynamic_pgts")]
    assert dynamic == ["early_dynamic_pgts[2]"]
    assert found[dynamic[0]].entries == ((511, 0, 0x1401063),)
    assert found[dynamic[0]].unencrypted == ((511, 0, 0x1401063),)


def test_level4_kernel_pgt_is_one_of_them_with_5_levels_only() -> None:
    guest = machine()
    guest.symbols._addresses["level4_kernel_pgt"] = TEXT + 0x1240000 - IMAGE_PA
    assert "level4_kernel_pgt" not in early_tables(guest.kernel())
    guest.cpu["cr4"] |= 1 << 12
    assert "level4_kernel_pgt" in early_tables(guest.kernel())

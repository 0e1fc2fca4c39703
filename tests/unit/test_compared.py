# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace compares from stop to stop, on tables that change between the looks."""

from __future__ import annotations

from gdb_sme.linux.compared import Compared, protection_map
from gdb_sme.linux.trace import Event, Place, TableChange, Write
from tests.unit.boot_kernel import EARLY_PGD, FREEING, Booting
from tests.unit.fake_kernel import IMAGE_PA, INIT_PGD, OFFSETS, TEXT, C

PLACE = Place(TEXT, "f", None, 0, None, "early_top_pgt", "early boot", C)
LEVEL2, DYNAMIC, TAKEN = 0x1220000, 0x1230000, 0x1240000
PROTECTION = IMAGE_PA + OFFSETS["protection_map"]


def machine() -> Booting:
    made = Booting()
    named = {"level2_kernel_pgt": LEVEL2, "early_dynamic_pgts": DYNAMIC, "next_early_pgt": TAKEN}
    for name, pa in named.items():
        made.symbols._addresses[name] = TEXT + pa - IMAGE_PA
    made.put(LEVEL2 + 8 * 8, 0x1000063 | C, 0x1200063, 0x1400062)
    made.put(TAKEN, 1)
    made.put(DYNAMIC, 0x2000063 | C)
    return made


def looked(compared: Compared, guest: Booting, since: int = 7) -> dict[str, Event]:
    events = compared.look(guest.kernel(), PLACE, since)
    return {e.table if isinstance(e, TableChange) else getattr(e, "name", ""): e for e in events}


def change(event: Event) -> TableChange:
    assert isinstance(event, TableChange)
    return event


def test_the_first_look_has_what_is_present() -> None:
    found = looked(Compared(), machine())
    assert set(found) == {
        "early_top_pgt", "init_top_pgt", "level2_kernel_pgt", "early_dynamic_pgts[0]"
    }  # fmt: skip
    level2 = change(found["level2_kernel_pgt"])
    assert level2.since == 0
    assert level2.entries == ((8, 0x1000063 | C, 0x1000063 | C), (9, 0x1200063, 0x1200063))
    assert (level2.changed, level2.by_design, level2.unencrypted) == (0, (9,), ())


def test_nothing_changed_is_no_event() -> None:
    compared, guest = Compared(), machine()
    looked(compared, guest)
    assert looked(compared, guest) == {}


def test_a_change_is_told_with_the_last_event_before_it() -> None:
    compared, guest = Compared(), machine()
    looked(compared, guest)
    guest.put(LEVEL2 + 8 * 8, 0x1000063)
    guest.put(INIT_PGD + 8 * 300, 0x5000063 | C)
    found = looked(compared, guest, since=9)
    assert set(found) == {"level2_kernel_pgt", "init_top_pgt"}
    level2 = change(found["level2_kernel_pgt"])
    assert (level2.since, level2.entries) == (9, ((8, 0x1000063 | C, 0x1000063),))
    assert level2.unencrypted == level2.entries
    assert change(found["init_top_pgt"]).unencrypted == ()


def test_a_page_that_an_early_fault_has_taken() -> None:
    compared, guest = Compared(), machine()
    guest.put(DYNAMIC + 0x1000 + 8 * 5, 0x9000063)  # of earlier use, and not taken yet
    looked(compared, guest)
    guest.put(TAKEN, 2)
    guest.put(DYNAMIC + 0x1000 + 8 * 5, 0x3000063)
    (page,) = looked(compared, guest).values()
    assert change(page).table == "early_dynamic_pgts[1]"
    assert change(page).entries == ((5, 0, 0x3000063),)


def test_early_tables_are_left_alone_when_they_are_out_of_use() -> None:
    compared, guest = Compared(), machine()
    looked(compared, guest)
    guest.take_over()
    guest.put(EARLY_PGD + 8 * 4, 0x5000063)
    assert set(looked(compared, guest)) == {"init_top_pgt"}
    guest.state(FREEING)
    guest.put(DYNAMIC, 0xCCCCCCCCCCCCCCCC)
    assert looked(compared, guest) == {}


def test_protection_map() -> None:
    compared, guest = Compared(), machine()
    held = protection_map(guest.kernel())
    assert len(held) >= 16
    looked(compared, guest)
    guest.put(PROTECTION + 8 * 3, held[3] & ~C)
    (event,) = looked(compared, guest, since=4).values()
    assert event == Write(0, PLACE, "protection_map[3]", held[3], held[3] & ~C, True, 4)
    del guest.symbols._addresses["protection_map"]
    assert protection_map(guest.kernel()) == ()

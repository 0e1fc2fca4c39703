# SPDX-License-Identifier: GPL-2.0-or-later
"""What a non-present entry holds, in words and as JSON; part of other views."""

from __future__ import annotations

from gdb_sme.core.address import PAGE_SHIFT, hex_pa
from gdb_sme.linux.nonpresent import NonPresent
from gdb_sme.render.json import hexadecimal

_WORDS = {
    "none": "empty",
    "protnone": "PROT_NONE or a NUMA hint",
    "invalidated": "invalidated while it is changed",
    "cleared": "not present, other bits set",
    "swap": "swapped out",
    "hwpoison": "hardware poison",
    "migration-read": "under migration, read",
    "migration-read-exclusive": "under migration, read, exclusive",
    "migration-write": "under migration, write",
    "device-private-read": "device private memory, read",
    "device-private-write": "device private memory, write",
    "device-exclusive-read": "exclusive to a device, read",
    "device-exclusive-write": "exclusive to a device, write",
    "pte-marker": "a pte marker",
    "swapin-error": "swap-in error",
    "special": "a special swap type of this kernel's configuration",
}


def words(held: NonPresent, level: str) -> str:
    """One phrase: what the entry of ``level`` holds, with type, offset and address."""
    text = _WORDS[held.kind]
    if held.kind == "cleared" and held.pfn is not None:
        return f"{text}: looks like a {level} of {hex_pa(held.pfn << PAGE_SHIFT)} without PRESENT"
    if held.pfn is not None:
        text += f", page {hex_pa(held.pfn << PAGE_SHIFT)}"
    elif held.swap_offset is not None:
        text += f", type {held.swap_type}, offset {held.swap_offset:#x}"
    return text


def payload(held: NonPresent) -> dict[str, object]:
    """Members: kind, pfn, swap_type, swap_offset."""
    return {
        "kind": held.kind,
        "pfn": hexadecimal(held.pfn),
        "swap_type": held.swap_type,
        "swap_offset": hexadecimal(held.swap_offset),
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols without types, and System.map."""

from __future__ import annotations

import pytest

from gdb_sme.errors import SymbolError
from gdb_sme.linux.untyped import parse_system_map

MAP = """\
0000000000000000 D __per_cpu_start
0000000000031280 d cpu_tlbstate
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff82a10000 D init_top_pgt
ffffffff83830000 B _end
ffffffffc0000000 t module_init\t[module]
"""


def test_addresses() -> None:
    symbols = parse_system_map(MAP, "System.map")
    assert symbols.address("init_top_pgt") == 0xFFFFFFFF82A10000
    assert symbols.address("cpu_tlbstate") == 0x31280
    assert symbols.address("nothing") is None
    assert symbols.size("init_top_pgt") is None
    assert symbols.field("mm_struct", "pgd") is None
    assert symbols.type_size("page") is None
    assert symbols.enumerator("SYSTEM_RUNNING") is None
    assert symbols.build_id is None
    assert symbols.file == "System.map"


@pytest.mark.parametrize(
    ("va", "nearest"),
    [
        (0xFFFFFFFF81000000, ("_stext", 0)),
        (0xFFFFFFFF82A10008, ("init_top_pgt", 8)),
        (0xFFFFFFFF80FFFFFF, None),
        (0xFFFFFFFF83830000, None),
        (0xFFFFFFFFC0000000, None),
        (0x31280, None),
    ],
)
def test_nearest_is_of_the_image(va: int, nearest: tuple[str, int] | None) -> None:
    assert parse_system_map(MAP, "System.map").nearest(va) == nearest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ffffffff81000000 T _text\nnot a map\n", "System.map:2 is no line"),
        ("ffffffff81000000 T start\n", "no _text"),
        ("", "no _text"),
        ("0000000000000000 T _text\n", "zeros .*kptr_restrict"),
    ],
)
def test_what_is_no_system_map(text: str, says: str) -> None:
    with pytest.raises(SymbolError, match=says):
        parse_system_map(text, "System.map")

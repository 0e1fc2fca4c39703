# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every entry, whatever its bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.cr3 import Cr3
from gdb_sme.core.entry import Entry, flag_bits
from gdb_sme.core.paging import LEVEL4, LEVEL5, Level, PagingMode
from gdb_sme.linux.decode import LEVEL_NAMES, decode
from gdb_sme.linux.macros import match_entry
from gdb_sme.render import decode as decode_view

U64 = (1 << 64) - 1

raws = st.integers(0, U64)
levels = st.sampled_from([*LEVEL5.levels, LEVEL4.levels[0]])
c_bits = st.integers(43, 51)
polarities = st.booleans()
#: Number of low bits that a large page's address does not use, by the APM's page sizes.
LOW_BITS = {"pmd": 21, "pud": 30}


@given(raws, levels, st.one_of(st.none(), c_bits), polarities)
def test_fields_cover_all_64_bits_without_overlap(
    raw: int, level: Level, c_bit: int | None, polarity: bool
) -> None:
    entry = Entry(raw, level, EncryptionBit(0 if c_bit is None else 1 << c_bit, polarity))
    fields = [mask for mask, _ in flag_bits(entry)] + [entry.address_mask]
    if entry.large:  # bits below a large page's address, but PAT_LARGE, are reserved
        fields.append(((1 << LOW_BITS[level.name]) - 1) & ~0x1FFF)
    covered = 0
    for field in fields:
        assert covered & field == 0
        covered |= field
    assert covered == U64
    names = [name for _, name in flag_bits(entry)]
    assert len(names) == len(set(names))


@given(raws, levels, c_bits, polarities)
def test_toggling_the_c_bit_changes_it_and_nothing_else(
    raw: int, level: Level, c_bit: int, polarity: bool
) -> None:
    enc = EncryptionBit(1 << c_bit, polarity)
    one, other = Entry(raw, level, enc), Entry(raw ^ 1 << c_bit, level, enc)
    assert one.c_bit is not other.c_bit
    assert one.encrypted is not other.encrypted
    assert set(one.flags) ^ set(other.flags) == {"ENC" if polarity else "SHARED"}
    assert (one.pa, one.pfn, one.present, one.leaf, one.large, one.cache_index, one.pkey) == (
        other.pa, other.pfn, other.present, other.leaf, other.large, other.cache_index, other.pkey,
    )  # fmt: skip
    assert one.reserved(40) == other.reserved(40)


@given(raws, levels, c_bits, st.integers(36, 52), st.booleans())
def test_the_address_never_holds_c_bit_flags_or_low_bits(
    raw: int, level: Level, c_bit: int, physical_bits: int, nx_enabled: bool
) -> None:
    entry = Entry(raw, level, EncryptionBit(1 << c_bit))
    size = 1 << LOW_BITS[level.name] if entry.large else 4096
    assert entry.pa % size == 0
    assert not entry.pa >> c_bit & 1
    assert entry.pa < 1 << 52
    assert entry.pa == raw % (1 << 52) // size * size - (raw & 1 << c_bit)
    assert entry.reserved(physical_bits, nx_enabled) & ~raw == 0


@given(raws, c_bits, st.booleans())
def test_cr3(raw: int, c_bit: int, pcide: bool) -> None:
    enc = EncryptionBit(1 << c_bit)
    one, other = Cr3(raw, enc, pcide), Cr3(raw ^ 1 << c_bit, enc, pcide)
    assert one.pa == other.pa
    assert one.pa % 4096 == 0
    assert one.pcid == other.pcid
    assert set(one.flags) ^ set(other.flags) == {"ENC"}


@given(
    raws,
    st.one_of(st.none(), st.sampled_from(LEVEL_NAMES)),
    st.one_of(st.none(), c_bits),
    polarities,
    st.sampled_from([LEVEL4, LEVEL5]),
)
def test_every_value_can_be_decoded_and_shown(
    raw: int, level: str | None, c_bit: int | None, polarity: bool, mode: PagingMode
) -> None:
    enc = EncryptionBit(0 if c_bit is None else 1 << c_bit, polarity)
    decoded = decode(raw, level, enc, mode)
    assert decoded.readings
    assert str(decode_view.text(decoded)).startswith(f"{raw:#018x}")
    assert decode_view.payload(decoded)["value"] == f"{raw:#018x}"


@given(raws, levels, c_bits)
def test_a_macro_with_its_differences_is_the_value(raw: int, level: Level, c_bit: int) -> None:
    """Name, plus and minus together say the flags exactly, at most two bits from the macro."""
    entry = Entry(raw, level, EncryptionBit(1 << c_bit))
    match = match_entry(entry)
    if match is None:
        return
    bits = {f"_PAGE_{name}": mask for mask, name in flag_bits(entry)}
    flags = match.macro.flags | (1 << c_bit if match.macro.enc else 0)
    for name in match.minus:
        assert flags & bits[name]
        flags &= ~bits[name]
    for name in match.plus:
        mask = bits.get(name, 0) or 1 << int(name.removeprefix("bit "))
        assert not flags & mask
        flags |= mask
    assert flags == raw & ~entry.address_mask
    assert len(match.plus) + len(match.minus) <= 2

# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's named page protections, and which of them a value is.

Built from the bits as arch/x86/include/asm/pgtable_types.h builds them (6.1 and 6.12), with those
of sme_encrypt_kernel() (arch/x86/mm/mem_encrypt_identity.c) and the initial early_pmd_flags
(arch/x86/kernel/head64.c). 6.1 has _PAGE_DIRTY in the read-only ones, 6.12 has not.

The cache bits are those after pat_init(): UC is PWT and PCD, WP is PAT and PWT.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.entry import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    NX,
    PAT,
    PAT_LARGE,
    PCD,
    PKEY_MASK,
    PRESENT,
    PSE,
    PWT,
    RW,
    SOFTW1,
    SOFTW2,
    SOFTW3,
    USER,
    Entry,
    flag_bits,
)
from gdb_sme.core.paging import PMD, PTE

#: How far a value may be from a macro and still be named after it, in bits.
MAX_DIFFERENCE = 2

TABLE, PAGE, LARGE = "table", "page", "large"


@dataclass(frozen=True, slots=True)
class Macro:
    """A named protection.

    Attributes:
        name: the kernel's name, with the version where versions differ: ``"... (6.1)"``.
        kind: what it is for: ``TABLE`` (points to a table), ``PAGE`` (4 KiB), ``LARGE``.
        flags: its bits without the encryption mask.
        enc: whether it contains _PAGE_ENC.
        definition: how the kernel says it with another macro, None when it spells the bits out.
    """

    name: str
    kind: str
    flags: int
    enc: bool = False
    definition: str | None = None


@dataclass(frozen=True, slots=True)
class MacroMatch:
    """The macro that a value equals, or nearly so.

    Attributes:
        macro: the macro.
        plus: kernel names of the bits that the value has and the macro has not.
        minus: kernel names of the bits that the macro has and the value has not.
        aliases: other macros with the same bits and for the same use.
    """

    macro: Macro
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the value has the macro's bits and no others."""
        return not self.plus and not self.minus

    def __str__(self) -> str:
        """As the kernel would write it: ``__PAGE_KERNEL_LARGE & ~(_PAGE_GLOBAL | _PAGE_NX)``."""
        text = self.macro.name
        if self.minus:
            minus = " | ".join(self.minus)
            text += f" & ~({minus})" if len(self.minus) > 1 else f" & ~{minus}"
        if self.plus:
            text = f"({text})" if self.minus else text
            text += "".join(f" | {name}" for name in self.plus)
        return text


_TABLE = PRESENT | RW | ACCESSED | DIRTY
_KERNEL = PRESENT | RW | ACCESSED | NX | DIRTY | GLOBAL
_KERNEL_EXEC = _KERNEL & ~NX
_RO = PRESENT | ACCESSED | NX | GLOBAL
_ROX = _RO & ~NX
_VVAR = _RO | USER
_NOCACHE = _KERNEL | PWT | PCD
_WP = _KERNEL | PAT | PWT
_LARGE = _KERNEL | PSE
_LARGE_EXEC = _LARGE & ~NX
_PMD_FLAGS_LARGE = _LARGE_EXEC & ~GLOBAL
_PTE_FLAGS = _KERNEL_EXEC & ~GLOBAL
_READ = PRESENT | USER | ACCESSED


def _with_enc(name: str, kind: str, flags: int, base: str) -> tuple[Macro, Macro]:
    """``__NAME``, and ``NAME`` that adds the mask to it."""
    return (
        Macro(base, kind, flags),
        Macro(name, kind, flags, enc=True, definition=f"{base} | _PAGE_ENC"),
    )


def _user(name: str, flags: int) -> tuple[Macro, Macro]:
    """A user protection as it is written, and as add_encrypt_protection_map() leaves it."""
    return Macro(name, PAGE, flags), Macro(f"{name} | _PAGE_ENC", PAGE, flags, enc=True)


#: Every macro; among equals the first one gives the name.
MACROS: tuple[Macro, ...] = (
    Macro("_KERNPG_TABLE", TABLE, _TABLE, enc=True, definition="_KERNPG_TABLE_NOENC | _PAGE_ENC"),
    Macro("_KERNPG_TABLE_NOENC", TABLE, _TABLE),
    Macro(
        "_PAGE_TABLE", TABLE, _TABLE | USER, enc=True, definition="_PAGE_TABLE_NOENC | _PAGE_ENC"
    ),
    Macro("_PAGE_TABLE_NOENC", TABLE, _TABLE | USER),
    Macro("PMD_FLAGS", TABLE, _TABLE),
    *_with_enc("PAGE_KERNEL", PAGE, _KERNEL, "__PAGE_KERNEL"),
    Macro("__PAGE_KERNEL_NOENC", PAGE, _KERNEL),
    Macro("PAGE_KERNEL_NOENC", PAGE, _KERNEL),
    Macro("__PAGE_KERNEL_IO", PAGE, _KERNEL),
    Macro("PAGE_KERNEL_IO", PAGE, _KERNEL),
    Macro("__PAGE_KERNEL_ENC", PAGE, _KERNEL, enc=True),
    *_with_enc("PAGE_KERNEL_EXEC", PAGE, _KERNEL_EXEC, "__PAGE_KERNEL_EXEC"),
    Macro("PAGE_KERNEL_EXEC_NOENC", PAGE, _KERNEL_EXEC),
    *_with_enc("PAGE_KERNEL_RO (6.12)", PAGE, _RO, "__PAGE_KERNEL_RO (6.12)"),
    *_with_enc("PAGE_KERNEL_RO (6.1)", PAGE, _RO | DIRTY, "__PAGE_KERNEL_RO (6.1)"),
    *_with_enc("PAGE_KERNEL_ROX (6.12)", PAGE, _ROX, "__PAGE_KERNEL_ROX (6.12)"),
    *_with_enc("PAGE_KERNEL_ROX (6.1)", PAGE, _ROX | DIRTY, "__PAGE_KERNEL_ROX (6.1)"),
    *_with_enc("PAGE_KERNEL_NOCACHE", PAGE, _NOCACHE, "__PAGE_KERNEL_NOCACHE"),
    Macro("__PAGE_KERNEL_IO_NOCACHE", PAGE, _NOCACHE),
    Macro("PAGE_KERNEL_IO_NOCACHE", PAGE, _NOCACHE),
    *_with_enc("PAGE_KERNEL_VVAR (6.12)", PAGE, _VVAR, "__PAGE_KERNEL_VVAR (6.12)"),
    *_with_enc("PAGE_KERNEL_VVAR (6.1)", PAGE, _VVAR | DIRTY, "__PAGE_KERNEL_VVAR (6.1)"),
    *_with_enc("__PAGE_KERNEL_ENC_WP", PAGE, _WP, "__PAGE_KERNEL_WP"),
    Macro("__PAGE_KERNEL_NOENC_WP", PAGE, _WP),
    Macro("PTE_FLAGS", PAGE, _PTE_FLAGS),
    Macro("PTE_FLAGS_DEC", PAGE, _PTE_FLAGS),
    Macro("PTE_FLAGS_ENC", PAGE, _PTE_FLAGS, enc=True, definition="PTE_FLAGS | _PAGE_ENC"),
    Macro("PTE_FLAGS_DEC_WP", PAGE, _PTE_FLAGS | PAT | PWT),
    Macro("PAGE_NONE", PAGE, ACCESSED | GLOBAL),
    Macro("PAGE_NONE | _PAGE_ENC", PAGE, ACCESSED | GLOBAL, enc=True),
    *_user("PAGE_SHARED", _READ | RW | NX),
    *_user("PAGE_SHARED_EXEC", _READ | RW),
    *_user("PAGE_COPY", _READ | NX),
    *_user("PAGE_COPY_NOEXEC", _READ | NX),
    *_user("PAGE_READONLY", _READ | NX),
    *_user("PAGE_COPY_EXEC", _READ),
    *_user("PAGE_READONLY_EXEC", _READ),
    *_with_enc("PAGE_KERNEL_LARGE", LARGE, _LARGE, "__PAGE_KERNEL_LARGE"),
    *_with_enc("PAGE_KERNEL_LARGE_EXEC", LARGE, _LARGE_EXEC, "__PAGE_KERNEL_LARGE_EXEC"),
    Macro("__PAGE_KERNEL_IDENT_LARGE_EXEC", LARGE, _LARGE_EXEC),
    Macro(
        "early_pmd_flags (initial)",
        LARGE,
        _LARGE & ~(GLOBAL | NX),
        definition="__PAGE_KERNEL_LARGE & ~(_PAGE_GLOBAL | _PAGE_NX)",
    ),
    Macro("PMD_FLAGS_LARGE", LARGE, _PMD_FLAGS_LARGE),
    Macro("PMD_FLAGS_DEC", LARGE, _PMD_FLAGS_LARGE),
    Macro(
        "PMD_FLAGS_ENC", LARGE, _PMD_FLAGS_LARGE, enc=True, definition="PMD_FLAGS_LARGE | _PAGE_ENC"
    ),
    Macro("PMD_FLAGS_DEC_WP", LARGE, _PMD_FLAGS_LARGE | PAT_LARGE | PWT),
)

#: Bits that come and go without a change of purpose, so that of two macros equally far the one
#: that differs only in these gives the name: set by the CPU or by software marks, or filtered by
#: __supported_pte_mask and __default_kernel_pte_mask.
_INCIDENTAL = ACCESSED | DIRTY | GLOBAL | SOFTW1 | SOFTW2 | SOFTW3

#: Bits with a _PAGE_ name at a place that is the same in all versions.
_NAMED = PAT_LARGE | (PAT_LARGE - 1) | PKEY_MASK | NX


def match_entry(entry: Entry) -> MacroMatch | None:
    """The macro that the protection of ``entry`` is, None when none is near.

    The address is left out of the comparison; the level and bit 7 say what kind it can be.
    """
    if entry.large:
        return _match(entry.raw & ~entry.address_mask, (LARGE,), entry.enc)
    kind = PAGE if entry.leaf else TABLE
    return _match(entry.raw & ~entry.address_mask, (kind,), entry.enc)


def match_pgprot(value: int, enc: EncryptionBit) -> MacroMatch | None:
    """The macro that ``value``, a pgprot or a flags variable without an address, is.

    Bit 7 alone does not say whether it is PSE or PAT, so macros of all kinds are compared.
    """
    return _match(value, (TABLE, LARGE, PAGE), enc)


def _match(value: int, kinds: tuple[str, ...], enc: EncryptionBit) -> MacroMatch | None:
    """The nearest macro of these kinds, by the number of bits that differ, at most two."""
    mask = enc.mask if enc.set_is_encrypted else 0  # _PAGE_ENC is sme_me_mask: 0 on TDX and vTOM
    candidates = [
        (macro, macro.flags | (mask if macro.enc else 0)) for macro in MACROS if macro.kind in kinds
    ]

    def distance(candidate: tuple[Macro, int]) -> tuple[int, int]:
        difference = value ^ candidate[1]
        return difference.bit_count(), (difference & ~_INCIDENTAL).bit_count()

    macro, bits = min(candidates, key=distance)
    if distance((macro, bits))[0] > MAX_DIFFERENCE:
        return None
    return MacroMatch(
        macro,
        plus=_names(value & ~bits, macro.kind, enc),
        minus=_names(bits & ~value, macro.kind, enc),
        aliases=tuple(
            other.name for other, same in candidates
            if same == bits and other.kind == macro.kind and other is not macro
        ),
    )  # fmt: skip


def _names(bits: int, kind: str, enc: EncryptionBit) -> tuple[str, ...]:
    """Kernel names of ``bits``, lowest first; those without one by their number."""
    shape = Entry(PSE if kind == LARGE else 0, PTE if kind == PAGE else PMD, enc)
    named = {mask: f"_PAGE_{name}" for mask, name in flag_bits(shape) if mask & _NAMED}
    if enc.set_is_encrypted:
        named[enc.mask] = "_PAGE_ENC"
    return tuple(named.get(1 << bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1)

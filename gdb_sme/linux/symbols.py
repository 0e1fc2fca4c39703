# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the same thing in different kernels: one row each, today's name first.

Symbols are probed for; version numbers are never tested.
"""

from __future__ import annotations

from gdb_sme.core.ports import Symbols

ALIASES: dict[str, tuple[str, ...]] = {
    # Renamed in 4.13 by 65ade2f872b4 ("x86/boot/64: Rename init_level4_pgt and early_level4_pgt").
    "early_top_pgt": ("early_top_pgt", "early_level4_pgt"),
    "init_top_pgt": ("init_top_pgt", "init_level4_pgt"),
    # 6.17 moved the early code to arch/x86/boot/startup and prefixes its symbols.
    "sme_enable": ("sme_enable", "__pi_sme_enable"),
    "__startup_64": ("__startup_64", "__pi___startup_64"),
    "sme_encrypt_kernel": ("sme_encrypt_kernel", "__pi_sme_encrypt_kernel"),
}


def find(symbols: Symbols, name: str) -> tuple[str, int] | None:
    """The name that this kernel uses for ``name`` and its address, None when it has none."""
    for candidate in ALIASES.get(name, (name,)):
        address = symbols.address(candidate)
        if address is not None:
            return candidate, address
    return None


def canonical(name: str) -> str:
    """Today's name of a symbol that may be given by an older one."""
    return next((today for today, names in ALIASES.items() if name in names), name)

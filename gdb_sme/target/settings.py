# SPDX-License-Identifier: GPL-2.0-or-later
"""What the person has set with `set sme ...`: gdb's parameters write it, the session reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdb_sme.linux.untyped import UntypedSymbols

#: Kinds of target that can be named by hand: those of target.kinds.PROBES, and auto.
TARGETS = ("auto", "qemu", "core", "kgdb")


class Settings:
    """The settings of this gdb session.

    Attributes:
        c_bit: position of the C-bit, 32 to 51; None to find it.
        target: kind of the target, one of `TARGETS`.
        system_map: the symbols of a System.map to use; None to use gdb's or the kernel's own.
    """

    def __init__(self) -> None:
        self.c_bit: int | None = None
        self.target = "auto"
        self.system_map: UntypedSymbols | None = None


SETTINGS = Settings()

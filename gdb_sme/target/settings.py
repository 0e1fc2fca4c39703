# SPDX-License-Identifier: GPL-2.0-or-later
"""What the person has set with `set sme ...`: gdb's parameters write it, the session reads it."""

from __future__ import annotations

from dataclasses import dataclass


#: Kinds of target that can be named by hand: those of target.kinds.PROBES, and auto.
TARGETS = ("auto", "qemu")


@dataclass(slots=True)
class Settings:
    """The settings of this gdb session.

    Attributes:
        c_bit: position of the C-bit, 32 to 51; None to find it.
        target: kind of the target, one of `TARGETS`.
    """

    c_bit: int | None = None
    target: str = "auto"


SETTINGS = Settings()

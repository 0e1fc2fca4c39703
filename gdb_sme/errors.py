# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that gdb_sme raises for a person to read.

The text of each is one line, lower case: what was tried, where (in hexadecimal), why it failed and
what to do next. ``gdb_sme.commands`` turns them into ``gdb.GdbError`` in one place, and the harness
into one line on standard error. Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations


class SmeError(Exception):
    """Base of all errors meant for the user; ``str()`` is the one line to show."""


class UsageError(SmeError):
    """The command was given arguments that it cannot take."""


class TargetError(SmeError):
    """There is no target that could answer: none, running, gone, or of the wrong kind."""


class ReadError(SmeError):
    """Memory that was asked for cannot be read.

    Args of the constructor:
        address: first byte that was asked for, an address in the space ``space``.
        length: number of bytes asked for.
        reason: why, and what to do, lower case, without the address.
        space: ``"physical"`` or ``"virtual"``.
    """

    def __init__(self, address: int, length: int, reason: str, space: str = "physical") -> None:
        super().__init__(f"cannot read {length} bytes at {space} {address:#x}: {reason}")
        self.address = address
        self.length = length
        self.reason = reason
        self.space = space


class SymbolError(SmeError):
    """A kernel symbol or type that is needed is not to be had."""


class AddressError(SmeError):
    """An address, entry or register value that cannot be one."""


class CheckFailed(SmeError):
    """A verification that the user asked for found a mismatch."""


class EmulationError(SmeError):
    """SME or SEV cannot be emulated on this target, or no longer."""


class ImageError(SmeError):
    """A kernel image cannot be obtained, or is damaged."""


class BootError(SmeError):
    """The guest did not reach the place where it should stop."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Convenience functions for gdb's expressions: $sme_pa(x), $c_bit(x), $pte(x) and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import as_address, translated_errors
from gdb_sme.errors import AddressError, UsageError

if TYPE_CHECKING:
    from gdb_sme.core.walk import Walk
    from gdb_sme.target.session import Session


class _Function(gdb.Function):
    """Base: one line for errors, and an unsigned 64-bit number as the value."""

    name = ""
    takes = 1

    def __init__(self) -> None:
        super().__init__(self.name)

    def invoke(self, *args: gdb.Value) -> gdb.Value:
        """Called by gdb."""
        from gdb_sme.target.session import SESSIONS

        with translated_errors(f"${self.name}"):
            if len(args) != self.takes:
                plural = "" if self.takes == 1 else "s"
                raise UsageError(f"takes {self.takes} argument{plural}, not {len(args)}")
            return gdb.Value(self.answer(SESSIONS.current(), *args)).cast(
                gdb.lookup_type("unsigned long")
            )
        raise AssertionError("translated_errors does not swallow")

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """The value."""
        raise NotImplementedError


class SmePaNodebug(_Function):
    """$sme_pa_nodebug(X): __sme_pa_nodebug(X): physical address of kernel address X | sme_me_mask.

    Calculates for any X, as the kernel's macro does.
    """

    name = "sme_pa_nodebug"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        from gdb_sme.linux.address import pa_nodebug

        kernel = session.kernel
        return kernel.sme_pa(pa_nodebug(kernel, session.cpu, as_address(args[0])))


class SmePa(_Function):
    """$sme_pa(X): __sme_pa(X): physical address of kernel address X | sme_me_mask.

    An error when X is neither in the kernel image nor in the direct map, as with
    CONFIG_DEBUG_VIRTUAL.
    """

    name = "sme_pa"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        from gdb_sme.linux.address import pa

        kernel = session.kernel
        return kernel.sme_pa(pa(kernel, session.cpu, as_address(args[0])))


class SmeVa(_Function):
    """$sme_va(X): __va of physical address X after the encryption mask was taken off it."""

    name = "sme_va"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        from gdb_sme.linux.address import sme_va

        return sme_va(session.kernel, session.cpu, as_address(args[0]))


class SmeMeMask(_Function):
    """$sme_me_mask(): the encryption mask in force; 0 without encryption."""

    name = "sme_me_mask"
    takes = 0

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        del args
        return session.kernel.enc.mask


def _walk(session: Session, value: gdb.Value) -> Walk:
    from gdb_sme.linux.translate import root_of_cpu

    root = root_of_cpu(session.kernel, session.cpu)
    return session.kernel.walk(as_address(value), root.pa, session.cpu)


class CBit(_Function):
    """$c_bit(X): 1 when address X is mapped encrypted, 0 when it is mapped unencrypted.

    An error when X is not mapped.
    """

    name = "c_bit"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        walk = _walk(session, args[0])
        if walk.mapping is None:
            raise AddressError(f"{walk.va:#x} is not mapped; to see why: sme pte {walk.va:#x}")
        return int(walk.mapping.encrypted)


class PteValue(_Function):
    """$pte(X): raw value of the last entry on the walk for address X."""

    name = "pte"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        walk = _walk(session, args[0])
        if not walk.steps:
            raise AddressError(f"the tables for {walk.va:#x} cannot be read: {walk.unreadable}")
        return walk.steps[-1].entry.raw


FUNCTIONS = (SmePa, SmePaNodebug, SmeVa, SmeMeMask, CBit, PteValue)

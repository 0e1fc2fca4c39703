# SPDX-License-Identifier: GPL-2.0-or-later
"""Convenience functions for gdb's expressions: $sme_pa(x), $c_bit(x), $pte(x) and others."""

from __future__ import annotations

import gdb

from gdb_sme.commands.base import as_address, translated_errors
from gdb_sme.core.address import U64
from gdb_sme.core.walk import Walk
from gdb_sme.errors import AddressError, SymbolError
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.image import KERNEL_IMAGE_SIZE, START_KERNEL_MAP
from gdb_sme.linux.stage import page_offset_base
from gdb_sme.linux.translate import root_of_cpu
from gdb_sme.target.session import SESSIONS, Session


class _Function(gdb.Function):
    """Base: one line for errors, and an unsigned 64-bit number as the value."""

    name = ""

    def __init__(self) -> None:
        super().__init__(self.name)

    def invoke(self, *args: gdb.Value) -> gdb.Value:
        """Called by gdb."""
        with translated_errors(f"${self.name}"):
            return gdb.Value(self.answer(SESSIONS.current(), *args)).cast(
                gdb.lookup_type("unsigned long")
            )
        raise AssertionError("translated_errors does not swallow")

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """The value."""
        raise NotImplementedError


def _pa(session: Session, va: int) -> int:
    """``__pa``: __START_KERNEL_map and phys_base for the image, else page_offset_base.

    __phys_addr_nodebug(), arch/x86/include/asm/page_64.h (6.1).
    """
    kernel = session.kernel
    if va >= START_KERNEL_MAP:
        if kernel.image is None:
            raise SymbolError(missing_image(kernel))
        return (va - START_KERNEL_MAP + kernel.image.phys_base) & U64
    return (va - page_offset_base(kernel, session.cpu)) & U64


class SmePaNodebug(_Function):
    """$sme_pa_nodebug(X): __sme_pa_nodebug(X): physical address of kernel address X | sme_me_mask.

    Calculates for any X, as the kernel's macro does.
    """

    name = "sme_pa_nodebug"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        return session.kernel.sme_pa(_pa(session, as_address(args[0])))


class SmePa(_Function):
    """$sme_pa(X): __sme_pa(X): physical address of kernel address X | sme_me_mask.

    An error when X is neither in the kernel image nor in the direct map, as with
    CONFIG_DEBUG_VIRTUAL.
    """

    name = "sme_pa"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        va = as_address(args[0])
        pa = _pa(session, va)
        image = START_KERNEL_MAP <= va < START_KERNEL_MAP + KERNEL_IMAGE_SIZE
        if not image and (va >> 63 == 0 or pa >> 46):
            raise AddressError(
                f"{va:#x} is neither in the kernel image nor in the direct map; "
                "to translate any mapped address use: sme pte"
            )
        return session.kernel.sme_pa(pa)


class SmeVa(_Function):
    """$sme_va(X): __va of physical address X after the encryption mask was taken off it."""

    name = "sme_va"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        pa = as_address(args[0]) & ~session.kernel.enc.mask
        return (pa + page_offset_base(session.kernel, session.cpu)) & U64


class SmeMeMask(_Function):
    """$sme_me_mask(): the encryption mask in force; 0 without encryption."""

    name = "sme_me_mask"

    def answer(self, session: Session, *args: gdb.Value) -> int:
        """See the class."""
        del args
        return session.kernel.enc.mask


def _walk(session: Session, value: gdb.Value) -> Walk:
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
            raise AddressError(f"{walk.va:#x} is not mapped; see: sme pte {walk.va:#x}")
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

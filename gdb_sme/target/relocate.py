# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves gdb's own symbols to where KASLR has put the kernel."""

from __future__ import annotations

from pathlib import Path

import gdb

from gdb_sme.core.ports import Symbols
from gdb_sme.errors import SymbolError
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.symtab import SymbolTable
from gdb_sme.target.connection import one_line
from gdb_sme.target.session import Session
from gdb_sme.target.symbolindex import index_at_hand
from gdb_sme.target.symbols import GdbSymbols


def move_symbols(session: Session) -> int:
    """As `move_symbols_to`, to where the kernel is found at this stop.

    Raises:
        SymbolError: the kernel is not to be found, its symbols are not gdb's, or have no file.
    """
    image = session.kernel.image
    if image is None:
        raise SymbolError(missing_image(session.kernel))
    return move_symbols_to(image, session.symbols)


def move_symbols_to(image: KernelImage, symbols: Symbols) -> int:
    """Load the symbol file anew at the kernel's run-time address; the bytes it moved by.

    Per-CPU symbols stay: KASLR moves what they are relative to. Loading the file again is most of
    the time this takes.

    Raises:
        SymbolError: the symbols are not gdb's, or have no file.
    """
    if not isinstance(symbols, GdbSymbols) or symbols.file is None:
        raise SymbolError("gdb has no symbols to move; load them with: file vmlinux")
    if not image.koff:
        return 0
    file = symbols.file
    linked = SymbolTable.of(Path(file))
    text, percpu = linked.find("_text"), linked.find("__per_cpu_start")
    if not text:
        raise SymbolError(f"{file} has no symbol table; load the kernel's vmlinux: file vmlinux")
    place = image.va - text[0].address
    # Up to 6.14 per-CPU symbols of SMP kernels count from 0.
    sections = " -s .data..percpu 0" if percpu and not percpu[0].address else ""
    confirm = gdb.parameter("confirm")
    try:
        gdb.execute("set confirm off")
        with index_at_hand(Path(file), symbols.build_id):
            gdb.execute("symbol-file", to_string=True)
            gdb.execute(f"add-symbol-file {file} -o {place:#x}{sections}", to_string=True)
    except gdb.error as error:
        raise SymbolError(f"gdb did not load {file} again ({one_line(error)})") from error
    finally:
        gdb.execute(f"set confirm {'on' if confirm else 'off'}")
    return image.koff

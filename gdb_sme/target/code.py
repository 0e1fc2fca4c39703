# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of the kernel, found in the symbol file's code: no guest memory is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gdb


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction: the debugger's address of it, its mnemonic, operands and length in bytes."""

    address: int
    mnemonic: str
    operands: str
    length: int


@contextmanager
def _code_from_file() -> Iterator[None]:
    """Let gdb read read-only sections from the file, whatever the target has there now."""
    before = gdb.parameter("trust-readonly-sections")
    flavor = gdb.parameter("disassembly-flavor")
    gdb.execute("set trust-readonly-sections on")
    gdb.execute("set disassembly-flavor att")
    try:
        yield
    finally:
        gdb.execute(f"set trust-readonly-sections {'on' if before else 'off'}")
        gdb.execute(f"set disassembly-flavor {flavor}")


def function_bounds(address: int) -> tuple[int, int] | None:
    """First and one past the last address of the function at ``address``, None when unknown.

    From debug information, else from the symbol table: up to the next symbol.
    """
    block = gdb.block_for_pc(address)
    while block is not None and block.function is None:
        block = block.superblock
    if block is not None:
        return int(block.start), int(block.end)
    here = _symbol_at(address)
    if here is None:
        return None
    # The symbol table knows no sizes: find the first address that belongs to another symbol.
    step, end = 1 << 12, address
    while step:
        while end + step - address <= 1 << 16 and _symbol_at(end + step) == here:
            end += step
        step >>= 1
    return address, end + 1


def _symbol_at(address: int) -> str | None:
    text = str(gdb.execute(f"info symbol {address:#x}", to_string=True))
    if text.startswith("No symbol"):
        return None
    return text.partition(" in section ")[0].partition(" + ")[0]


def instructions(start: int, end: int) -> tuple[Instruction, ...]:
    """The instructions of the symbol file from ``start`` to ``end`` (not included).

    Raises:
        gdb.error: there is no code in the file there.
    """
    architecture = gdb.selected_inferior().architecture()
    with _code_from_file():
        found = architecture.disassemble(start, end - 1)
    return tuple(
        Instruction(each["addr"], mnemonic, operands.strip(), each["length"])
        for each in found
        for mnemonic, _, operands in [each["asm"].partition(" ")]
    )


def function_instructions(address: int) -> tuple[Instruction, ...]:
    """The instructions of the function at ``address``, none when its extent is unknown."""
    bounds = function_bounds(address)
    return instructions(*bounds) if bounds else ()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions of the kernel, found in the symbol file's code: no guest memory is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gdb

#: The opcode of MOV to a control register (AMD APM volume 3).
_MOV_TO_CR = b"\x0f\x22"

#: No function that is looked at is longer, in bytes.
_LONGEST = 1 << 16


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

    From the symbol table, not from debug information: there a function may have a cold part far
    away, and its block spans all that lies between.
    """
    here = _symbol_at(address)
    if here is None:
        return None
    # gdb does not tell sizes: find the last address that still belongs to the symbol.
    step, last = _LONGEST // 2, address
    while step:
        if _symbol_at(last + step) == here:
            last += step
        step >>= 1
    return address, last + 1


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


def _bytes(start: int, end: int) -> bytes:
    with _code_from_file():
        return bytes(gdb.selected_inferior().read_memory(start, end - start))


def cr3_loads(address: int) -> dict[int, str]:
    """Address and source register of every instruction that loads CR3 in the function there."""
    bounds = function_bounds(address)
    if bounds is None or _MOV_TO_CR not in _bytes(*bounds):
        return {}
    return {
        each.address: each.operands.split(",")[0].strip().lstrip("%")
        for each in instructions(*bounds)
        if each.mnemonic.startswith("mov") and each.operands.endswith(",%cr3")
    }

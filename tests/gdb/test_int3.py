# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a function begins with what no kernel patches: on functions as compilers make them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb

#: Name, its first instructions, and how many bytes of them the kernel may patch.
FUNCTIONS = {
    "plain": ("push %rbp", 0),
    "sealed": ("endbr64; push %rbp", 4),
    "traced": ("call __fentry__; push %rbp", 5),
    "sealed_and_traced": ("endbr64; call __fentry__; push %rbp", 9),
    "nothing_to_trace": ("endbr64; .byte 0x0f, 0x1f, 0x44, 0, 0; push %rbp", 9),
    "a_call_of_its_own": ("call plain; push %rbp", 0),
    "a_nop_of_its_own": ("nop; push %rbp", 0),
}


@pytest.fixture(scope="module")
def gdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gdb]:
    directory = tmp_path_factory.mktemp("functions")
    source, program = directory / "functions.S", directory / "functions"
    lines = [".text", ".globl main", "main: ret", ".globl __fentry__", "__fentry__: ret"]
    for name, (code, _) in FUNCTIONS.items():
        lines += [f".type {name}, @function", f"{name}: {code}; pop %rbp; ret"]
        lines += [f".size {name}, . - {name}"]
    source.write_text("\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""]))
    subprocess.run(["gcc", "-no-pie", "-o", program, source], check=True)
    with Gdb([str(program)]) as session:
        session.execute(f"source {PLUGIN}")
        yield session


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_int3_stands_behind_what_is_patched(gdb: Gdb, name: str) -> None:
    start = gdb.evaluate(f"(long)&{name}")
    code = f"from gdb_sme.target.int3 import entry_of; print(entry_of({start}))"
    assert int(gdb.execute(f"python {code}")) - start == FUNCTIONS[name][1]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table of an ELF file, against one that gcc and binutils made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gdb_sme.linux.symtab import NO_SYMBOLS, ElfSymbol, SymbolTable, has_relocations

SOURCE = """
    .text
    .globl long_name, name
    .type name, @function
name: ret
    .size name, 1
long_name: ret
    .data
    .globl table
    .type table, @object
table: .zero 128
    .size table, 128
    .local twice
twice: .quad 0
"""
OTHER = """
    .data
    .local twice
    .quad 0
twice: .quad 0
    .globl used
used: .quad missing
"""


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("elf")
    objects = []
    for index, source in enumerate((SOURCE, OTHER)):
        made = where / f"{index}.o"
        subprocess.run(["as", "--64", "-o", made, "-"], input=source.encode(), check=True)
        objects.append(made)
    out = where / "linked"
    layout = ["-Ttext=0xffffffff81000000", "-Tdata=0xffffffff82000000"]
    lenient = ["--unresolved-symbols=ignore-all", "-e", "name"]
    subprocess.run(["ld", "-o", out, *layout, *lenient, *objects], check=True)
    return out


def by_nm(path: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line in subprocess.run(
        ["nm", path], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        match = re.fullmatch(r"(\w{16}) [^U] (\S+)", line)
        if match:
            found.setdefault(match[2], []).append(int(match[1], 16))
    return found


def test_every_symbol_is_where_nm_says(linked: Path) -> None:
    table = SymbolTable.of(linked)
    assert not table.empty
    names = by_nm(linked)
    assert {"name", "long_name", "table", "twice", "used"} <= set(names)
    for name, addresses in names.items():
        assert sorted(each.address for each in table.find(name)) == sorted(set(addresses)), name


def test_sizes(linked: Path) -> None:
    table = SymbolTable.of(linked)
    (found,) = table.find("table")
    assert found == ElfSymbol(0xFFFFFFFF82000000, 128)
    assert [each.size for each in table.find("name")] == [1]


def test_two_of_a_name_are_both_found(linked: Path) -> None:
    assert len(SymbolTable.of(linked).find("twice")) == 2


@pytest.mark.parametrize("name", ["missing", "ame", "_name", "no_such", "", "long_nam"])
def test_neither_parts_of_names_nor_undefined_ones(linked: Path, name: str) -> None:
    assert [each for each in SymbolTable.of(linked).find(name) if name] == []


def test_a_name_that_ends_another_ones_string() -> None:
    # One string for both, as linkers merge them, and a symbol that has only its end.
    strings = b"\0long_name\0"
    symbols = bytes(24) + b"".join(
        offset.to_bytes(4, "little") + b"\x12\0\x01\0" + address.to_bytes(8, "little") + bytes(8)
        for offset, address in ((1, 0x10), (6, 0x20))
    )
    table = SymbolTable(symbols, strings)
    assert table.find("name") == (ElfSymbol(0x20, 0),)
    assert table.find("long_name") == (ElfSymbol(0x10, 0),)
    assert table.find("e") == ()


def test_an_offset_across_two_entries_is_none() -> None:
    # st_name 0x00000100 and 0x...: the bytes of 1 stand at an odd place as well.
    strings = b"\0x\0"
    symbols = b"".join(
        offset.to_bytes(4, "little") + b"\x12\0\x01\0" + bytes(16) for offset in (0x100, 0, 1)
    )
    assert SymbolTable(symbols, strings).find("x") == (ElfSymbol(0, 0),)


def test_a_stripped_file_knows_no_names(linked: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, linked], check=True)
    table = SymbolTable.of(stripped)
    assert table.empty
    assert table.find("name") == ()
    assert NO_SYMBOLS.empty


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x01\x01" + bytes(80), b"#!/bin/sh\n" + bytes(80)], ids=["32-bit", "text"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for read in (SymbolTable.of, has_relocations):
        with pytest.raises(ValueError, match="is no 64-bit little-endian ELF file"):
            read(path)


def test_damaged_files_are_refused(linked: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for length in (10, 100, linked.stat().st_size - 70):
        path.write_bytes(linked.read_bytes()[:length])
        for read in (SymbolTable.of, has_relocations):
            with pytest.raises(ValueError, match="is a damaged ELF file"):
                read(path)
    with pytest.raises(OSError, match="No such file"):
        SymbolTable.of(tmp_path / "none")


def test_relocations(linked: Path, tmp_path: Path) -> None:
    assert not has_relocations(linked)
    kept = tmp_path / "kept"
    subprocess.run(["as", "--64", "-o", tmp_path / "o"], input=b".quad used", check=True)
    link = ["ld", "--emit-relocs", "--unresolved-symbols=ignore-all", "-e", "0"]
    subprocess.run([*link, "-o", kept, tmp_path / "o"], check=True)
    assert has_relocations(kept)

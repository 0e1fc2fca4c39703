# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocations taken out of a program that was linked with them, as a kernel is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gdb_sme.errors import ImageError
from gdb_sme.harness.images.buildid import elf_build_id
from gdb_sme.harness.images.relocations import drop_relocations


@pytest.fixture
def program(tmp_path: Path) -> Path:
    source = tmp_path / "program.c"
    source.write_text(
        "int variable = 7;\nint *pointer = &variable;\nint main(void) { return 0; }\n"
    )
    path = tmp_path / "program"
    flags = ["-g", "-static", "-Wl,--emit-relocs", "-Wl,--build-id"]
    subprocess.run(["gcc", *flags, "-o", path, source], check=True)
    return path


def read(program: Path, what: str) -> str:
    result = subprocess.run(
        ["readelf", "-W", what, program], capture_output=True, text=True, check=True
    )
    return result.stdout


def test_only_the_relocations_go(program: Path) -> None:
    before = read(program, "-S")
    symbols, build_id, size = read(program, "-s"), elf_build_id(program), program.stat().st_size
    assert drop_relocations(program) == before.count(" RELA ") > 3
    assert " RELA " not in read(program, "-S")
    assert "There are no relocations" in read(program, "-r")
    assert (read(program, "-s"), elf_build_id(program)) == (symbols, build_id)
    assert program.stat().st_size == size
    assert drop_relocations(program) == 0


def test_gdb_can_move_what_is_left(program: Path) -> None:
    drop_relocations(program)
    move = ("symbol-file", f"add-symbol-file {program} -o 0x10000000")
    commands = ["set confirm off", "print &pointer", *move, "print &pointer"]
    arguments = [word for command in commands for word in ("-ex", command)]
    said = subprocess.run(
        ["gdb", "-nx", "-q", "-batch", *arguments, program],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    linked, moved = (int(at, 16) for at in re.findall(r"\(int \*\*\) (0x\w+)", said))
    assert moved == linked + 0x10000000


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x01\x01".ljust(64), b"MZ".ljust(64)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="is no 64-bit ELF file"):
        drop_relocations(path)

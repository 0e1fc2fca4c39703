# SPDX-License-Identifier: GPL-2.0-or-later
"""Targets that are no kernel: a process, and a process's dump."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb

COMMANDS = ("sme status", "sme pte 0", "sme cr3", "sme dump", "sme audit", "sme kaslr")


@pytest.fixture
def process(gdb: Gdb) -> Gdb:
    gdb.execute("starti")
    return gdb


def test_what_was_probed_is_said_and_how_to_name_it(process: Gdb) -> None:
    for command in COMMANDS:
        error = process.run(command).error
        assert error == (
            f"{' '.join(command.split()[:2])}: the target (Native process) is not one that is "
            "known; probed: qemu, core, kgdb; for QEMU: target remote /path/of/qemu-gdb.sock; to "
            "name it by hand: set sme target qemu, core, kgdb"
        )


def test_a_kind_named_by_hand_is_all_that_is_probed(process: Gdb) -> None:
    process.execute("set sme target qemu")
    error = process.run("sme status").error
    assert error is not None
    assert "is not one that is known; probed: qemu; for QEMU" in error


def test_a_dump_of_a_process(process: Gdb, program: Path, tmp_path: Path) -> None:
    dump = tmp_path / "core"
    process.execute(f"generate-core-file {dump}")
    with Gdb([str(program), str(dump)]) as gdb:
        gdb.execute(f"source {PLUGIN}")
        for command in COMMANDS:
            error = gdb.run(command).error
            name = " ".join(command.split()[:2])
            assert error == f"{name}: {dump} is the dump of a process, not of a machine"

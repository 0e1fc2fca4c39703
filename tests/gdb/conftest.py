# SPDX-License-Identifier: GPL-2.0-or-later
"""A gdb without a guest, and a program that has the kernel's types."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/gdb/types.c, compiled."""
    path = tmp_path_factory.mktemp("program") / "types"
    source = Path(__file__).with_name("types.c")
    subprocess.run(["gcc", "-g", "-O0", "-o", path, source], check=True)
    return path


@pytest.fixture
def gdb(program: Path) -> Iterator[Gdb]:
    """With the program and the extension loaded, and no target."""
    with Gdb([str(program)]) as session:
        session.execute(f"source {PLUGIN}")
        yield session

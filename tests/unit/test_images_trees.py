# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of kind "debian-source": variants share the tree that they are built in.

The package is the test's own, from an archive of one package, with a tree whose make counts how
often it has built.
"""

from __future__ import annotations

import fcntl
import gzip
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_images_buildid import bzimage, compile_elf
from tests.unit.test_images_fetch import Archive, Machine

MAKEFILE = """
tinyconfig:
\t: > .config
olddefconfig:
bzImage:
\techo built >> builds
\tmkdir -p arch/x86/boot
\tcp bz arch/x86/boot/bzImage
\tcat elf arch/x86/kernel/head_64.S builds > vmlinux
modules:
\tmkdir -p lib
\ttouch lib/crc4.ko
"""
NAMES = b"early_top_pgt init_top_pgt\n"
OLD = b"early_level4_pgt init_level4_pgt\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One that can obtain linux-source-6.1."""
    archive = Archive(tmp_path / "archive")
    tree = tmp_path / "linux-source-6.1"
    (tree / "arch/x86/kernel").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "arch/x86/kernel/head_64.S").write_bytes(NAMES)
    elf = compile_elf(tree / "elf", "-Wl,--build-id=0x01020304")
    bzimage(tree / "bz", gzip.compress(elf.read_bytes()))
    packed = tmp_path / "linux-source-6.1.tar.xz"
    subprocess.run(["tar", "-C", tmp_path, "-cJf", packed, tree.name], check=True)
    archive.add("linux-source-6.1", "6.1.10-1", "", {f"usr/src/{packed.name}": packed})
    return Machine(archive, tmp_path / "cache")


def vmlinux(machine: Machine, label: str) -> bytes:
    (path,) = (machine.cache / "images" / label).glob("*/vmlinux")
    return path.read_bytes()


def test_variants_that_are_fetched_together_share_a_tree(machine: Machine) -> None:
    out, err = machine.run("fetch", "kgdb-6.1:old-names", "kgdb-6.1")
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        "kgdb-6.1:old-names",
        "kgdb-6.1:stock",
    ]
    assert err.count("unpacking the tree in linux-source-6.1.tar.xz: done") == 1
    assert vmlinux(machine, "kgdb-6.1+old-names").endswith(OLD + b"built\n")
    # The second one, in the tree of the first, with the names put back.
    assert vmlinux(machine, "kgdb-6.1+stock").endswith(NAMES + b"built\n" * 2)
    assert [path.name for path in (machine.cache / "images" / "trees").iterdir()] == ["lock"]


def test_variants_that_are_there_need_no_tree(machine: Machine) -> None:
    machine.run("fetch", "kgdb-6.1:old-names")
    machine.run("fetch", "kgdb-6.1")
    assert vmlinux(machine, "kgdb-6.1+stock").endswith(NAMES + b"built\n")
    machine.go_offline()
    with (machine.cache / "images" / "trees" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a run at work, which need not be waited for
        machine.run("fetch", "kgdb-6.1:old-names", "kgdb-6.1")


def test_the_tree_of_a_run_that_was_killed_is_removed(machine: Machine) -> None:
    left = machine.cache / "images" / "trees" / "partial-killed"
    left.mkdir(parents=True)
    machine.run("fetch", "kgdb-6.1")
    assert not left.exists()


def test_a_tree_is_not_left_behind_by_a_build_that_fails(machine: Machine) -> None:
    # core.c is not there for it.
    out, err = machine.run("fetch", "kgdb-6.1", "kgdb-6.1:hwbreak", status=1)
    assert out.startswith("kgdb-6.1:stock: ")
    assert "kgdb-6.1:hwbreak cannot be fetched" in err
    assert [path.name for path in (machine.cache / "images" / "trees").iterdir()] == ["lock"]

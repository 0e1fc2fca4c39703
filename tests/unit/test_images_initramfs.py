# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs, with the program cpio as the judge of the archive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import initramfs as module
from gdb_sme.harness.images.initramfs import Node, initramfs, newc, parse_list, static_busybox


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GDB_SME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cpio(archive: bytes, *arguments: str) -> str:
    done = subprocess.run(
        ("cpio", "--quiet", *arguments), input=archive, capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode()


def test_cpio_lists_it(cache: Path) -> None:
    listed = {
        line.split(maxsplit=4)[-1].split("1970 ")[-1]: line.split()
        for line in cpio(initramfs().read_bytes(), "-t", "-v", "-n").splitlines()
    }
    assert listed["init"][0] == "-rwxr-xr-x"
    assert listed["tmp"][0] == "drwxrwxrwt"
    assert listed["dev/console"][:6] == ["crw-------", "1", "0", "0", "5,", "1"]
    assert listed["bin/sh -> busybox"][0] == "lrwxrwxrwx"
    assert listed["bin/busybox"][4] == str(static_busybox().stat().st_size)
    assert {tuple(fields[2:4]) for fields in listed.values()} == {("0", "0")}


def test_cpio_extracts_it(cache: Path) -> None:
    archive = initramfs().read_bytes()
    init = cpio(archive, "-i", "--to-stdout", "init")
    assert init == (module.LIST.parent / "init").read_text()
    assert init.startswith("#!/bin/sh\n")
    # The marker is what images of the manifest are waited for with.
    assert f"echo '{module.SHELL_MARKER}'" in init


def test_padding() -> None:
    """Every length of name and contents must leave the next header on a multiple of four."""
    nodes = tuple(
        Node("n" * name + str(size), 0o100644, b"x" * size)
        for name in range(1, 6)
        for size in range(5)
    )
    archive = newc(nodes)
    assert cpio(archive, "-t").splitlines() == [node.name for node in nodes]
    assert len(archive) % 4 == 0


def test_same_input_same_bytes(cache: Path) -> None:
    first = initramfs()
    contents = first.read_bytes()
    first.unlink()
    assert initramfs() == first
    assert first.read_bytes() == contents


def test_what_is_there_is_left_alone(cache: Path) -> None:
    before = initramfs().stat()
    assert initramfs().stat() == before


def test_damage_does_not_last(cache: Path) -> None:
    path = initramfs()
    good = path.read_bytes()
    path.write_bytes(good[:1000] + b"?" + good[1001:])
    assert initramfs() == path
    assert path.read_bytes() == good
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_changed_recipe_is_another_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = initramfs()
    recipe = tmp_path / "initramfs.list"
    (tmp_path / "init").write_text("#!/bin/sh\n")
    recipe.write_text("file /init init 0755 0 0\n")
    monkeypatch.setattr(module, "LIST", recipe)
    assert initramfs() != first
    assert cpio(initramfs().read_bytes(), "-t") == "init\n"


@pytest.mark.parametrize(
    "line",
    ["dirr /x 0755 0 0", "dir /x 0755 1 0", "dir /x", "dir /x rwx 0 0", "file /x ${NO} 0755 0 0"],
)
def test_mistakes_are_named(tmp_path: Path, line: str) -> None:
    recipe = tmp_path / "initramfs.list"
    recipe.write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(ImageError) as caught:
        parse_list(recipe, {})
    assert str(caught.value) == f"{recipe}:3: cannot understand {line!r}"


@pytest.mark.parametrize("busybox", ["dynamic", "script", "none"])
def test_busybox_must_be_static(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busybox: str
) -> None:
    path = tmp_path / "busybox"
    if busybox == "dynamic":
        path.symlink_to("/usr/bin/gcc")
    elif busybox == "script":
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="install the package busybox-static"):
        static_busybox()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The manifest of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import manifest
from gdb_sme.harness.images.debian import DebianSource
from gdb_sme.harness.images.recipe import RecipeSource

GOOD = """
[small]
description = "a kernel"
purpose = "a test"
kind = "build"
recipe = "recipe"
variants = ["one", "two"]
append = "console=ttyS0"
shell_marker = "up"
initramfs = false
"""


def load(tmp_path: Path, text: str) -> tuple[manifest.Entry, ...]:
    path = tmp_path / "manifest.toml"
    path.write_text(text)
    return manifest.load(path)


def test_entry(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == (
        manifest.Entry(
            name="small",
            description="a kernel",
            purpose="a test",
            append="console=ttyS0",
            shell_marker="up",
            initramfs=False,
            source=RecipeSource(tmp_path / "recipe", ("one", "two")),
        ),
    )


def test_the_real_manifest() -> None:
    entries = {entry.name: entry for entry in manifest.load()}
    for name, series in (("debian-6.1", "6.1"), ("debian-6.12", "6.12")):
        source = entries[name].source
        assert isinstance(source, DebianSource)
        assert source.series == series
        assert entries[name].initramfs
        assert "console=ttyS0" in entries[name].append.split()
    recipe = entries["rfc-v2"].source
    assert isinstance(recipe, RecipeSource)
    assert recipe.variants[0] == "good"
    assert (recipe.directory / "Makefile").is_file()


@pytest.mark.parametrize(
    ("name", "variant"), [("small", "one"), ("small:one", "one"), ("small:two", "two")]
)
def test_variants(tmp_path: Path, name: str, variant: str) -> None:
    entries = load(tmp_path, GOOD)
    assert manifest.find(name, entries) == (entries[0], variant)


def test_without_variants() -> None:
    entries = manifest.load()
    entry, variant = manifest.find("debian-6.1", entries)
    assert (entry.name, variant) == ("debian-6.1", None)
    assert entry.labels == ("debian-6.1",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("large", "there is no image 'large'; the manifest has small"),
        ("small:three", "image small has no variant 'three'; it has one, two"),
        ("small:", "image small has no variant ''; it has one, two"),
    ],
)
def test_unknown_name(tmp_path: Path, name: str, message: str) -> None:
    entries = load(tmp_path, GOOD)
    with pytest.raises(ImageError) as caught:
        manifest.find(name, entries)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "build"', 'kind = "magic"', "[small]: kind is 'magic', not one of debian, "),
        ('append = "console=ttyS0"', "append = 3", "[small]: append must be a string"),
        ('purpose = "a test"\n', "", "[small]: the key purpose is missing"),
        ('purpose = "a test"', 'purpose = ""\ncolour = "red"', "[small]: unknown key colour"),
        ('["one", "two"]', "[]", "[small]: variants must be an array of strings, not empty"),
        ('["one", "two"]', "[1]", "[small]: variants must be an array of strings, not empty"),
        ("initramfs = false", 'initramfs = "no"', "[small]: initramfs must be true or false"),
        ("[small]", '["../small"]', "[../small]: a name is lower-case letters"),
        ("[small]", "small = 1\n[other]", "[small]: must be a table"),
        ("[small]", "[small", "line 2"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ImageError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "manifest.toml") in str(caught.value)
    assert message in str(caught.value)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read the manifest .*: No such file"):
        manifest.load(tmp_path / "none.toml")

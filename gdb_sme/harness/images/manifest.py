# SPDX-License-Identifier: GPL-2.0-or-later
"""The manifest of kernel images, qemu-images/manifest.toml; its README describes the keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdb_sme.errors import ImageError
from gdb_sme.harness.images.debian import DebianSource
from gdb_sme.harness.images.debian_source import DebianTreeSource
from gdb_sme.harness.images.recipe import RecipeSource
from gdb_sme.harness.images.source import Source

IMAGES_DIRECTORY = Path(__file__).resolve().parents[3] / "qemu-images"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of the manifest.

    Attributes:
        name: what the command line calls it.
        description: what it is.
        purpose: what it is for.
        append: the kernel command line that it is booted with unless more is asked for.
        shell_marker: the line on the serial console that tells that it is up.
        initramfs: whether it boots with the initramfs of this project; else with none.
        source: how it is obtained.
    """

    name: str
    description: str
    purpose: str
    append: str
    shell_marker: str
    initramfs: bool
    source: Source

    @property
    def labels(self) -> tuple[str, ...]:
        """All names that the command line takes for it: NAME, or NAME:VARIANT each."""
        return tuple(f"{self.name}:{variant}" for variant in self.source.variants) or (self.name,)


class _Table:
    """A TOML table whose keys are taken out one by one, each of one type, none left over."""

    def __init__(self, place: str, table: Mapping[str, Any]) -> None:
        self._place = place
        self._left = dict(table)

    def string(self, key: str) -> str:
        return str(self._take(key, str, "a string"))

    def boolean(self, key: str) -> bool:
        return bool(self._take(key, bool, "true or false"))

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._take(key, list, "an array of strings")
        if not value or not all(isinstance(item, str) for item in value):
            raise ImageError(f"{self._place}: {key} must be an array of strings, not empty")
        return tuple(value)

    def end(self) -> None:
        if self._left:
            raise ImageError(f"{self._place}: unknown key {', '.join(sorted(self._left))}")

    def _take(self, key: str, kind: type, description: str) -> Any:
        if key not in self._left:
            raise ImageError(f"{self._place}: the key {key} is missing")
        value = self._left.pop(key)
        if not isinstance(value, kind):
            raise ImageError(f"{self._place}: {key} must be {description}")
        return value


def _debian(table: _Table, directory: Path) -> Source:
    return DebianSource(
        table.strings("metapackages"), table.string("series"), table.string("suites")
    )


def _build(table: _Table, directory: Path) -> Source:
    return RecipeSource(directory / table.string("recipe"), table.strings("variants"))


def _debian_source(table: _Table, directory: Path) -> Source:
    return DebianTreeSource(
        table.string("series"),
        table.string("suites"),
        directory / table.string("recipe"),
        table.strings("variants"),
    )


KINDS: Mapping[str, Callable[[_Table, Path], Source]] = {
    "debian": _debian,
    "debian-source": _debian_source,
    "build": _build,
}


def load(path: Path = IMAGES_DIRECTORY / "manifest.toml") -> tuple[Entry, ...]:
    """All entries of the manifest, in its order.

    Raises:
        ImageError: it cannot be read, or an entry is not as it must be; names file and key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImageError(f"cannot read the manifest {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImageError(f"{path}: {error}") from error
    entries = []
    for name, contents in tables.items():
        place = f"{path}: [{name}]"
        if not NAME.fullmatch(name):
            raise ImageError(f"{place}: a name is lower-case letters, digits, dots and dashes")
        if not isinstance(contents, dict):
            raise ImageError(f"{place}: must be a table")
        table = _Table(place, contents)
        kind = table.string("kind")
        if kind not in KINDS:
            raise ImageError(f"{place}: kind is {kind!r}, not one of {', '.join(KINDS)}")
        entries.append(
            Entry(
                name=name,
                description=table.string("description"),
                purpose=table.string("purpose"),
                append=table.string("append"),
                shell_marker=table.string("shell_marker"),
                initramfs=table.boolean("initramfs"),
                source=KINDS[kind](table, path.parent),
            )
        )
        table.end()
    return tuple(entries)


def find(name: str, entries: tuple[Entry, ...]) -> tuple[Entry, str | None]:
    """The entry and the variant (None where there are none) for ``NAME`` or ``NAME:VARIANT``.

    Without a variant, an image that has some gives its first.

    Raises:
        ImageError: there is no such image, or no such variant.
    """
    base, colon, variant = name.partition(":")
    for entry in entries:
        if entry.name == base:
            variants = entry.source.variants
            if not colon:
                return entry, variants[0] if variants else None
            if variant in variants:
                return entry, variant
            known = f"it has {', '.join(variants)}" if variants else "it has none"
            raise ImageError(f"image {base} has no variant {variant!r}; {known}")
    known = ", ".join(entry.name for entry in entries)
    raise ImageError(f"there is no image {base!r}; the manifest has {known}")

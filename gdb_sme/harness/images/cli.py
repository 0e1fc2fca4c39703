# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``scripts/images``: what is in the cache of kernel images, and what shall be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import image, manifest
from gdb_sme.harness.images.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0: done. 1: it could not be done, or an image is damaged; one line on standard error says why.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/images",
        description="Kernel images to boot under QEMU, kept in a cache. A name is NAME or "
        "NAME:VARIANT; an image with variants, named without one, means the first.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the images of the manifest, and what the cache holds")
    fetch = commands.add_parser("fetch", help="put images into the cache that are not there")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    verify = commands.add_parser("verify", help="take the hashes of an image's files, or of all")
    verify.add_argument("name", nargs="?", metavar="NAME")
    newest = commands.add_parser("update", help="fetch an image's newest version")
    newest.add_argument("name", metavar="NAME")
    path = commands.add_parser("path", help="an image's files, kernel, vmlinux and initrd")
    path.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    progress = Progress()
    try:
        match options.command:
            case "list":
                _list()
            case "fetch":
                for obtained in image.obtain_all(options.names, progress=progress):
                    _print(obtained)
            case "update":
                _print(image.update(options.name, progress=progress))
            case "path":
                _print_paths(image.obtain(options.name, progress=progress))
            case "verify":
                return _verify(options.name, progress)
    except ImageError as error:
        print(f"scripts/images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/images: interrupted", file=sys.stderr)
        return 130
    return 0


def _print(obtained: image.Image) -> None:
    print(f"{obtained.name}: {obtained.description}, build-id {obtained.build_id}")


def _print_paths(obtained: image.Image) -> None:
    paths: tuple[tuple[str, Path | None], ...] = (
        ("kernel", obtained.kernel),
        ("vmlinux", obtained.vmlinux),
        ("initrd", obtained.initrd),
    )
    for kind, path in paths:
        if path is not None:
            print(f"{kind} {path}")


def _list() -> None:
    for entry in manifest.load():
        print(f"{entry.name}: {entry.description}; {entry.purpose}")
        for label in entry.labels:
            _, variant = manifest.find(label, (entry,))
            try:
                slot, record = image.stored(entry, variant)
            except ImageError as error:
                print(f"  {label}: {error}")
                continue
            if record is None:
                print(f"  {label}: not in the cache")
            else:
                size = sum(file.size for file in record.files)
                where = slot.path(record, record.kernel).parent
                print(f"  {label}: {record.version}, {size >> 20} MiB in {where}")


def _verify(name: str | None, progress: Progress) -> int:
    entries = manifest.load()
    labels = (name,) if name else tuple(label for entry in entries for label in entry.labels)
    status = 0
    for label in labels:
        entry, variant = manifest.find(label, entries)
        try:
            slot, record = image.stored(entry, variant)
            if record is None:
                if name:
                    raise ImageError(f"{label} is not in the cache; `scripts/images fetch {label}`")
                continue
            slot.check(record, progress, full=True)
        except ImageError as error:
            print(f"scripts/images: {error}", file=sys.stderr)
            status = 1
        else:
            print(f"{label}: {record.version}, {len(record.files)} files as they were stored")
    return status

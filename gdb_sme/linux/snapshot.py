# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space at one stop, kept: to be compared with another, also in another session.

As a file it is JSON, compressed with gzip: versioned, and to be read by other programs too.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ranges import Attributes, MappedRange
from gdb_sme.core.scan import TableUse, scan
from gdb_sme.core.walk import Permissions
from gdb_sme.errors import UsageError
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.layout import Region, regions
from gdb_sme.linux.stage import boot_stage
from gdb_sme.linux.translate import Root

#: Name and version of the file format; it changes when a member is renamed or removed.
FORMAT = "gdb_sme/snapshot/1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a root mapped at one stop.

    Attributes:
        name: what the person calls it.
        kernel: the kernel's banner, empty when it could not be read.
        scheme: title of the encryption scheme.
        mask: the encryption mask, 0 without one.
        stage: the boot stage, in words.
        root: the root, in words.
        regions: the kernel's memory layout.
        ranges: what is mapped, by virtual address.
        tables: the uses of table pages, by virtual address.
    """

    name: str
    kernel: str
    scheme: str
    mask: int
    stage: str
    root: str
    regions: tuple[Region, ...]
    ranges: tuple[MappedRange, ...]
    tables: tuple[TableUse, ...]

    def region(self, va: int) -> str | None:
        """Name of the region that ``va`` is in, None in none."""
        return next((r.name for r in self.regions if r.start <= va < r.end), None)


def take(
    name: str,
    kernel: Kernel,
    cpu: CpuState,
    root: Root,
    progress: Callable[[int], None] | None = None,
) -> Snapshot:
    """The snapshot of ``root`` as ``cpu`` would see it now, under ``name``."""
    found = scan(
        kernel.memory, root.pa, cpu.mode, kernel.table_enc,
        physical_bits=kernel.physical_bits, nx_enabled=cpu.nx_enabled, progress=progress,
    )  # fmt: skip
    return Snapshot(
        name=name,
        kernel=banner(kernel),
        scheme=kernel.encryption.title,
        mask=kernel.enc.mask,
        stage=str(boot_stage(kernel)),
        root=f"{root.table or hex(root.pa)} ({root.source})",
        regions=regions(kernel, cpu),
        ranges=found.ranges,
        tables=found.tables,
    )


def banner(kernel: Kernel) -> str:
    """linux_banner up to its version's end: ``Linux version 6.1.0-56-cloud-amd64``."""
    found = kernel.symbol("linux_banner")
    if found is None or kernel.image is None:
        return ""
    raw = kernel.memory.read(kernel.image.pa_of(found[1]), 96)
    return " ".join(raw.partition(b"\0")[0].decode("ascii", "replace").split()[:3])


def dumps(snapshot: Snapshot) -> bytes:
    """The file of ``snapshot``."""
    kinds: dict[Attributes, int] = {}
    ranges = [
        [hex(r.va), hex(r.size), hex(r.pa), kinds.setdefault(r.attributes, len(kinds))]
        for r in snapshot.ranges
    ]
    document = {
        "format": FORMAT,
        "name": snapshot.name,
        "kernel": snapshot.kernel,
        "scheme": snapshot.scheme,
        "mask": hex(snapshot.mask),
        "stage": snapshot.stage,
        "root": snapshot.root,
        "regions": [[r.name, hex(r.start), hex(r.end)] for r in snapshot.regions],
        "attributes": [_attributes(each) for each in kinds],
        "ranges": ranges,
        "tables": [_table(each) for each in snapshot.tables],
    }
    # The same snapshot is the same file: no time stamp in the gzip header.
    return gzip.compress(json.dumps(document).encode(), mtime=0)


def _attributes(each: Attributes) -> dict[str, object]:
    rights = each.permissions
    return {
        "page_size": each.page_size,
        "write": rights.write,
        "user": rights.user,
        "execute": rights.execute,
        "encrypted": each.encrypted,
        "global": each.global_,
        "cache_index": each.cache_index,
        "repeated": each.repeated,
    }


def _table(each: TableUse) -> list[object]:
    entry_pa = None if each.entry_pa is None else hex(each.entry_pa)
    return [
        hex(each.pa), each.level, hex(each.va), entry_pa, hex(each.raw), each.encrypted,
        each.places, each.empty,
    ]  # fmt: skip


def loads(data: bytes, source: str) -> Snapshot:
    """The snapshot in ``data``, the content of the file ``source``.

    Raises:
        UsageError: it is no snapshot, damaged, or of another version.
    """
    try:
        document = json.loads(gzip.decompress(data))
        found = document["format"]
        if found != FORMAT:
            raise UsageError(f"{source}: {found!r} is not the format {FORMAT!r}; save it anew")
        return _snapshot(document)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(
            f"{source}: no snapshot, or damaged ({type(error).__name__}); save it anew with: "
            f"sme snapshot NAME --save FILE"
        ) from error


def _snapshot(document: Mapping[str, Any]) -> Snapshot:
    kinds = [
        Attributes(
            int(k["page_size"]),
            Permissions(bool(k["write"]), bool(k["user"]), bool(k["execute"])),
            bool(k["encrypted"]),
            bool(k["global"]),
            int(k["cache_index"]),
            bool(k["repeated"]),
        )
        for k in document["attributes"]
    ]
    return Snapshot(
        name=str(document["name"]),
        kernel=str(document["kernel"]),
        scheme=str(document["scheme"]),
        mask=int(document["mask"], 16),
        stage=str(document["stage"]),
        root=str(document["root"]),
        regions=tuple(Region(n, int(a, 16), int(b, 16)) for n, a, b in document["regions"]),
        ranges=tuple(
            MappedRange(int(va, 16), int(size, 16), int(pa, 16), kinds[kind])
            for va, size, pa, kind in document["ranges"]
        ),
        tables=tuple(
            TableUse(
                int(pa, 16), level, int(va, 16), None if at is None else int(at, 16), int(raw, 16),
                encrypted, places, empty,
            )
            for pa, level, va, at, raw, encrypted, places, empty in document["tables"]
        ),
    )  # fmt: skip


def save(snapshot: Snapshot, path: Path) -> None:
    """Write ``snapshot`` to ``path``.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_bytes(dumps(snapshot))
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}"
        ) from error


def load(path: Path) -> Snapshot:
    """The snapshot in the file ``path``.

    Raises:
        UsageError: it cannot be read, or is no snapshot.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    return loads(data, str(path))

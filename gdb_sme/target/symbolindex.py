# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's index of a symbol file, kept, so that gdb loads the file again without reading it all.

Two loads of a file share what was read, unless it has relocations, as a kernel that was linked with
--emit-relocs. gdb can save an index of what it has read, and looks for one in its index cache. That
goes by the build-id alone; here it has a directory of its own for every file.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gdb

from gdb_sme.cachedir import cache_directory
from gdb_sme.linux.symtab import has_relocations

_SUFFIX = ".gdb-index"
_KEPT = 8
"""Indexes of files that were used last; one is a tenth of its file."""


@contextmanager
def index_at_hand(file: Path, build_id: str | None) -> Iterator[None]:
    """While the block runs, gdb finds the index of ``file``, which it has loaded now.

    Where there is none, and none can be made, gdb reads the file as ever.
    """
    directory = None
    if build_id is not None and has_relocations(file):
        # No space, no permission, no home; or gdb (gdb.error) has the file by an index already.
        with suppress(OSError, RuntimeError):
            directory = _index(file, build_id)
    if directory is None:
        yield
        return
    before = [gdb.parameter(f"index-cache {name}") for name in ("directory", "enabled")]
    try:
        _set_cache(str(directory), True)
        yield
    finally:
        _set_cache(*before)


def _set_cache(directory: object, enabled: object) -> None:
    gdb.execute(f"set index-cache directory {directory}")
    gdb.execute(f"set index-cache enabled {'on' if enabled else 'off'}")


def _index(file: Path, build_id: str) -> Path | None:
    """The directory with the index of ``file``, written now if it is not there."""
    kept = cache_directory() / "index"
    state = file.stat()
    directory = kept / f"{build_id}-{state.st_size:x}-{state.st_mtime_ns:x}"
    if not directory.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as work:
            made = Path(work) / directory.name
            made.mkdir()
            gdb.execute(f"save gdb-index {shlex.quote(str(made))}", to_string=True)
            saved = made / f"{file.name}{_SUFFIX}"
            if not saved.exists():
                return None
            saved.rename(made / f"{build_id}{_SUFFIX}")
            made.rename(directory)
    os.utime(directory)
    for old in sorted(kept.iterdir(), key=lambda each: each.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old)
    return directory

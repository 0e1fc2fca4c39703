# SPDX-License-Identifier: GPL-2.0-or-later
"""Where what takes time to make is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$GDB_SME_CACHE, or gdb_sme in the user's cache directory; need not exist."""
    if own := os.environ.get("GDB_SME_CACHE"):
        return Path(own).absolute()
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user).absolute() / "gdb_sme"
    return Path.home() / ".cache" / "gdb_sme"

# SPDX-License-Identifier: GPL-2.0-or-later
"""A result as JSON: one document on one line, versioned."""

from __future__ import annotations

import json

#: Name and version of the format. Members may be added under the same version; it changes when one
#: is renamed, removed or given another meaning.
SCHEMA = "gdb_sme/1"


def render(command: str, payload: dict[str, object]) -> str:
    """The document: ``schema``, ``command`` (``"sme pte"``), then the members of ``payload``."""
    return json.dumps({"schema": SCHEMA, "command": command, **payload})


def hexadecimal(value: int | None) -> str | None:
    """An address, raw value or mask as JSON has it: 0x and hexadecimal digits, null for None."""
    return None if value is None else f"{value:#x}"

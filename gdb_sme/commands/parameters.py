# SPDX-License-Identifier: GPL-2.0-or-later
"""`set sme ...` and `show sme ...`."""

from __future__ import annotations

import gdb

from gdb_sme.errors import SymbolError
from gdb_sme.target.settings import SETTINGS, TARGETS

_LOWEST, _HIGHEST = 32, 51


class CBitParameter(gdb.Parameter):
    """Position of the C-bit, 32 to 51, for kernels that cannot be asked; auto finds it."""

    name = "sme c-bit"
    set_doc = "Set the position of the C-bit (a bit from 32 to 51, or auto)."
    show_doc = "Show the position of the C-bit (a bit from 32 to 51, or auto)."

    def __init__(self) -> None:
        super().__init__(self.name, gdb.COMMAND_DATA, gdb.PARAM_STRING)
        self._accepted = self.value = "auto"

    def get_set_string(self) -> str:
        """Called by gdb after a new value was stored."""
        from gdb_sme.target.session import SESSIONS

        text = str(self.value).strip()
        if text in ("", "auto"):
            SETTINGS.c_bit = None
        elif text.isdecimal() and _LOWEST <= int(text) <= _HIGHEST:
            SETTINGS.c_bit = int(text)
        else:
            self.value = self._accepted
            raise gdb.GdbError(f"set sme c-bit: {text!r}: give a bit from 32 to 51, or auto")
        self._accepted = self.value = text or "auto"
        SESSIONS.forget()
        return ""

    def get_show_string(self, value: str) -> str:
        """Called by gdb."""
        return f"The position of the C-bit is {value}."


class TargetParameter(gdb.Parameter):
    """Kind of the target; auto finds it from the target itself."""

    name = "sme target"
    set_doc = "Set the kind of the target (auto, or what `sme status` could not find by itself)."
    show_doc = "Show the kind of the target."

    def __init__(self) -> None:
        super().__init__(self.name, gdb.COMMAND_DATA, gdb.PARAM_ENUM, list(TARGETS))
        self.value = "auto"

    def get_set_string(self) -> str:
        """Called by gdb after a new value was stored."""
        from gdb_sme.target.session import SESSIONS

        SETTINGS.target = str(self.value)
        SESSIONS.disconnected()
        return ""

    def get_show_string(self, value: str) -> str:
        """Called by gdb."""
        return f"The kind of the target is {value}."


class SystemMapParameter(gdb.Parameter):
    """A System.map to take the kernel's symbols from, for want of its vmlinux."""

    name = "sme system-map"
    set_doc = "Set the System.map to take kernel symbols from (empty: gdb's, or the kernel's own)."
    show_doc = "Show the System.map to take kernel symbols from."

    def __init__(self) -> None:
        super().__init__(self.name, gdb.COMMAND_DATA, gdb.PARAM_OPTIONAL_FILENAME)
        self._accepted = self.value = ""

    def get_set_string(self) -> str:
        """Called by gdb after a new value was stored."""
        from gdb_sme.target.kallsyms import read_system_map
        from gdb_sme.target.session import SESSIONS

        path = str(self.value or "")
        try:
            SETTINGS.system_map = read_system_map(path) if path else None
        except SymbolError as error:
            self.value = self._accepted
            raise gdb.GdbError(f"set sme system-map: {error}") from None
        self._accepted = path
        SESSIONS.forget()
        return ""

    def get_show_string(self, value: str) -> str:
        """Called by gdb."""
        return f"Kernel symbols are taken from {value or 'gdb, or from the kernel itself'}."


PARAMETERS = (CBitParameter, TargetParameter, SystemMapParameter)

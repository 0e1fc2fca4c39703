# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace has set in the guest: where it may be set, and that all of it is taken back."""

from __future__ import annotations

from collections.abc import Callable

import gdb

from gdb_sme.errors import SmeError, TargetError
from gdb_sme.linux.symbols import find
from gdb_sme.target.code import cr3_loads
from gdb_sme.target.connection import one_line
from gdb_sme.target.followed import RememberedSymbols
from gdb_sme.target.probe import Probe, Silent
from gdb_sme.target.watch import Watch


class Probes:
    """Breakpoints and watchpoints of one trace.

    Args:
        note: called with what keeps an answer from recording an event.
        software: whether breakpoints are instructions in the guest's code.
    """

    def __init__(self, note: Callable[[str], None], software: bool = False) -> None:
        self._note = note
        self._software = software
        self._set: list[Silent] = []

    def __bool__(self) -> bool:
        return bool(self._set)

    @property
    def places(self) -> tuple[int, ...]:
        """Run-time addresses of the breakpoints."""
        return tuple(each.address for each in self._set if isinstance(each, Probe))

    def guarded(self, on_hit: Callable[..., bool | None]) -> Callable[..., bool | None]:
        """``on_hit``, with what keeps it from recording an event as a note instead of an error."""

        def guarded(*arguments: object) -> bool | None:
            try:
                return on_hit(*arguments)
            except (SmeError, gdb.error) as error:
                self._note(f"an event could not be read: {one_line(error)}")
                return None

        return guarded

    def at(self, address: int, on_hit: Callable[[], bool | None]) -> Probe:
        """Probe the run-time ``address``; where ``on_hit`` is true the target stands."""
        probe = Probe(address, self.guarded(on_hit), software=self._software)
        self._set.append(probe)
        return probe

    def once_at(self, address: int, on_hit: Callable[[], bool | None]) -> None:
        """Probe the run-time ``address`` until it is first hit."""

        def once() -> bool | None:
            self.drop(probe)
            return on_hit()

        probe = self.at(address, once)

    def watch(self, address: int, size: int, on_write: Callable[[], None]) -> Watch:
        """Watch ``size`` bytes from the run-time ``address`` on; see `Watch`.

        Raises:
            TargetError: there is no hardware watchpoint left.
        """
        watch = Watch(address, size, self.guarded(on_write))
        self._set.append(watch)
        return watch

    def drop(self, probe: Silent) -> None:
        """Take ``probe`` back now."""
        probe.retire()
        if probe in self._set:
            self._set.remove(probe)

    def drop_watches(self) -> None:
        """Take the watchpoints back."""
        for probe in [each for each in self._set if isinstance(each, Watch)]:
            self.drop(probe)

    def retire(self) -> None:
        """Take all back."""
        for probe in self._set:
            probe.retire()
        self._set.clear()


class Code:
    """Where a trace sets its breakpoints, at the debugger's addresses.

    Args:
        symbols: the symbol file's view.
    """

    def __init__(self, symbols: RememberedSymbols) -> None:
        self._symbols = symbols
        self._loads: dict[str, dict[int, str]] = {}

    def locations(self, until: str | None, default: str) -> tuple[int, ...]:
        """Where a trace ends: distances from _text, since the symbols may move.

        Args:
            until: location in gdb's words, None for the function ``default``.

        Raises:
            TargetError: there is no such location.
        """
        text = self._symbols.address("_text") or 0
        if until is None:
            found = find(self._symbols, default)
            return (found[1] - text,) if found else ()
        try:
            rest, places = gdb.decode_line(until)
        except gdb.error as error:
            raise TargetError(f"--until {until}: {one_line(error)}") from error
        if rest or not places:
            raise TargetError(f"--until {until}: {rest or until!r} is no location")
        return tuple(place.pc - text for place in places)

    def in_init_text(self, address: int) -> bool:
        """Whether ``address`` is in what the kernel frees at the end of its boot."""
        start, end = find(self._symbols, "__init_begin"), find(self._symbols, "__init_end")
        return start is not None and end is not None and start[1] <= address < end[1]

    def cr3_loads(self, names: tuple[str, ...]) -> dict[int, str]:
        """Address and source register of every instruction of these functions that loads CR3."""
        loads: dict[int, str] = {}
        for name in names:
            found = find(self._symbols, name)
            if found is None:
                continue
            start = found[1]
            if name not in self._loads:  # by distance from the start: the symbols may move
                self._loads[name] = {at - start: by for at, by in cr3_loads(start).items()}
            loads |= {start + at: by for at, by in self._loads[name].items()}
        return loads

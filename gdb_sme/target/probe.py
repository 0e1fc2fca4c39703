# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware breakpoints that answer and go on, without stopping the person's session."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import gdb


class Silent(gdb.Breakpoint):
    """An invisible breakpoint: ``on_hit`` is called at a hit and the target goes on.

    Ctrl-C waits until ``on_hit`` is done, and then stops the target.

    Args:
        spec: where, as gdb's breakpoint commands take it.
        on_hit: called at each hit, with the target stopped there; true to let it stand.
        options: the rest of what gdb.Breakpoint takes.
    """

    #: How many `stop`s are running now, in which gdb allows no breakpoint to be deleted.
    _stopping = 0
    #: Retired within a `stop`: disabled, to be deleted when the target next stands still.
    _retired_in_stop: ClassVar[list[Silent]] = []

    def __init__(self, spec: str, on_hit: Callable[[], bool | None], **options: Any) -> None:
        super().__init__(spec, internal=True, **options)
        self.silent = True
        self._on_hit = on_hit
        self._retired = False

    def stop(self) -> bool:
        """Called by gdb at a hit."""
        if self._retired:
            return False
        Silent._stopping += 1
        stand = False
        try:
            with _uninterrupted():
                stand = bool(self._on_hit())
        except KeyboardInterrupt:
            stand = True
        finally:
            Silent._stopping -= 1
        return stand

    def retire(self) -> None:
        """Delete now, or, from within any `stop`, disable now and delete at the next real stop."""
        if self._retired or not self.is_valid():
            return
        self._retired = True
        if Silent._stopping:
            self.enabled = False
            Silent._retired_in_stop.append(self)
        else:
            self.delete()

    @classmethod
    def delete_retired(cls, _event: object = None) -> None:
        """Delete what was retired while the target was running: for gdb's stop event."""
        while cls._retired_in_stop:
            breakpoint_ = cls._retired_in_stop.pop()
            if breakpoint_.is_valid():
                breakpoint_.delete()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put a Ctrl-C off until the block is done: half an event would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Probe(Silent):
    """An invisible hardware breakpoint at an address.

    Hardware, because the decompressor writes the kernel over software breakpoints, and because the
    address may be physical, where nothing is mapped yet.

    Args:
        address: where, as the CPU will have it in RIP.
        on_hit: as for `Silent`.
    """

    def __init__(self, address: int, on_hit: Callable[[], bool | None]) -> None:
        super().__init__(f"*{address:#x}", on_hit, type=gdb.BP_HARDWARE_BREAKPOINT)


def register(name: str) -> int:
    """A register of the CPU that hit a probe, unsigned 64 bits."""
    return int(gdb.newest_frame().read_register(name)) & ((1 << 64) - 1)


def set_register(name: str, value: int) -> None:
    """Set a register of the CPU that hit a probe."""
    gdb.execute(f"set var ${name} = {value:#x}")

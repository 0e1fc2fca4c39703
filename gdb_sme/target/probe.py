# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints that answer and go on, without stopping the person's session."""

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
    #: All that are set.
    _set: ClassVar[list[Silent]] = []
    #: Retired within a `stop`, or when the target is gone: deleted when one next stands still.
    _to_be_deleted: ClassVar[list[Silent]] = []

    def __init__(self, spec: str, on_hit: Callable[[], bool | None], **options: Any) -> None:
        super().__init__(spec, internal=True, **options)
        self.silent = True
        self._on_hit = on_hit
        self._retired = False
        self._answered: tuple[int, ...] = ()
        if not Silent._set:
            gdb.events.stop.connect(Silent.answer_missed)
        Silent._set.append(self)

    def stop(self) -> bool:
        """Called by gdb at a hit."""
        if self._retired:
            return False
        Silent._stopping += 1
        try:
            with _uninterrupted():
                return self._answer()
        except KeyboardInterrupt:
            return True
        finally:
            Silent._stopping -= 1

    def _answer(self) -> bool:
        stand = bool(self._on_hit())
        if _connected():
            self._answered = _state()
        return stand

    @property
    def lost(self) -> bool:
        """Whether gdb has deleted it, for example when Ctrl-C broke off its own look at it."""
        return not self._retired and not self.is_valid()

    def hit(self, event: gdb.StopEvent) -> bool:
        """Whether the target stands where this breakpoint is due, by gdb's stop event."""
        return isinstance(event, gdb.BreakpointEvent) and self in event.breakpoints

    @classmethod
    def answer_missed(cls, event: gdb.StopEvent) -> None:
        """For gdb's stop event: answer the hit at which the target stands, if nobody has.

        A Ctrl-C can come before the first instruction of `stop`, and gdb takes that for a stop.
        With the registers of the last answer the target has not moved since.
        """
        for probe in [each for each in cls._set if each.is_valid() and each.hit(event)]:
            if probe._answered != _state():
                probe._answer()

    def retire(self) -> None:
        """Delete now; from within any `stop`, disable now and delete at the next real stop.

        At the next one too when the target is gone: gdb would take it out of the target first.
        """
        if self._retired:
            return
        self._retired = True
        Silent._set.remove(self)
        if not Silent._set:
            gdb.events.stop.disconnect(Silent.answer_missed)
        if not self.is_valid():
            return
        if Silent._stopping or not _connected():
            if _connected():
                self.enabled = False
            Silent._to_be_deleted.append(self)
        else:
            self.delete()

    @classmethod
    def delete_retired(cls, _event: object = None) -> None:
        """Delete what was retired while the target was running: for gdb's stop event.

        Not while gdb is inside a `stop`, where the connection may break, and gdb tell of that.
        """
        if cls._stopping:
            return
        while cls._to_be_deleted:
            breakpoint_ = cls._to_be_deleted.pop()
            if breakpoint_.is_valid():
                breakpoint_.delete()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put a Ctrl-C off until the block is done: half an event would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # It also raises what is pending already: behind `before`, and inside the try.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Probe(Silent):
    """An invisible breakpoint at an address.

    Hardware, because the decompressor writes the kernel over software breakpoints, and because the
    address may be physical, where nothing is mapped yet; but kgdb loses hardware breakpoints.

    Args:
        address: where, as the CPU will have it in RIP.
        on_hit: as for `Silent`.
        software: whether it is to be an instruction in the guest's code.
    """

    def __init__(
        self, address: int, on_hit: Callable[[], bool | None], *, software: bool = False
    ) -> None:
        kind = gdb.BP_BREAKPOINT if software else gdb.BP_HARDWARE_BREAKPOINT
        super().__init__(f"*{address:#x}", on_hit, type=kind)
        self.address = address

    def hit(self, event: gdb.StopEvent) -> bool:
        """Also where a signal stopped the target right at the address.

        gdb does not count that as a hit, and steps over the breakpoint when it goes on.
        """
        if isinstance(event, gdb.SignalEvent):
            return register("rip") == self.address
        return super().hit(event)


_STATE = ("rip", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8")


def _connected() -> bool:
    """Whether the target is there still: its connection may break within a `stop`."""
    return gdb.selected_thread() is not None


def _state() -> tuple[int, ...]:
    return tuple(register(name) for name in _STATE)


def register(name: str) -> int:
    """A register of the CPU that hit a probe, unsigned 64 bits."""
    return int(gdb.newest_frame().read_register(name)) & ((1 << 64) - 1)


def set_register(name: str, value: int) -> None:
    """Set a register of the CPU that hit a probe."""
    gdb.execute(f"set var ${name} = {value:#x}")

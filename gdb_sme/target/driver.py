# SPDX-License-Identifier: GPL-2.0-or-later
"""Inside gdb for the harness: brings the guest to a stop, then runs the user's commands.

The other end of the line, and what is said on it, is ``gdb_sme.harness.control``. Started by
``main(FILE)``, where FILE holds a plan as JSON:

- ``control``: Unix socket of the harness; ``gdb_socket``: that of QEMU's stub, or of kgdb,
- ``settings``: more of gdb's settings, for this connection,
- ``plugin``: the extension's file; ``vmlinux``: symbols, or null,
- ``at_start``: commands for when it is connected, ``sme emulate`` and ``sme trace``,
- ``kaslr``: whether the kernel may be anywhere, so that ``until`` is known at its entry only,
- ``until``: ``"reset"``, ``"shell"`` (the harness stops the guest) or a location,
- ``commands``: gdb commands to run at the stop, in order,
- ``stdout``: descriptor to become standard output once the commands run, or null.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gdb

from gdb_sme.errors import SmeError

_QUIT = "Quit"
"""The text of gdb's own error for Ctrl-C."""

_SETTINGS = (
    "confirm off",
    "debuginfod enabled off",
    # An emulated CPU answers slowly when the machine has other work.
    "remotetimeout 60",
)


def run_command(command: str) -> str | None:
    """Run ``command`` as if typed; return None, or the text of its error (already printed)."""
    text: str | None = None
    try:
        gdb.execute(command, from_tty=False, to_string=False)
    except gdb.error as error:
        text = str(error)
    except KeyboardInterrupt:
        text = _QUIT
    gdb.flush(gdb.STDOUT)
    if text is not None:
        gdb.write(f"{text}\n", gdb.STDERR)
        gdb.flush(gdb.STDERR)
    return text


def run_marked(command: str, mark: str) -> None:
    """Run ``command`` between two lines that hold ``mark``; the second has its error as JSON.

    Ctrl-C between the lines ends the command, and never keeps the second line from coming.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    gdb.write(f"{mark}:begin\n")
    gdb.flush(gdb.STDOUT)
    try:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            error = run_command(command)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        error = _QUIT
    gdb.write(f"{mark}:end:{json.dumps(error)}\n")
    gdb.flush(gdb.STDOUT)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(plan_file: str) -> None:
    """Carry out the plan. Errors go to the harness, which knows what to do about them."""
    plan: dict[str, Any] = json.loads(Path(plan_file).read_text())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(plan["control"])
        _Driver(plan, line).run()


class _Driver:
    def __init__(self, plan: dict[str, Any], line: socket.socket) -> None:
        self._plan = plan
        self._line = line
        self._answers = line.makefile()
        self._breakpoint: gdb.Breakpoint | None = None
        self._reached = False

    def _say(self, event: str, **what: Any) -> None:
        self._line.sendall(json.dumps({"event": event, **what}).encode() + b"\n")

    def run(self) -> None:
        try:
            self._connect()
            self._go_to_stop()
        except gdb.error as error:
            self._say("failed", reason=str(error))
            return
        except KeyboardInterrupt:
            self._say("failed", reason="interrupted")
            return
        self._say("stopped", reached=self._reached)
        if json.loads(self._answers.readline() or '{"go": false}')["go"]:
            self._run_commands(self._plan["commands"])

    def _connect(self) -> None:
        plan = self._plan
        for setting in _SETTINGS:
            gdb.execute(f"set {setting}")
        if plan["vmlinux"] is not None:
            gdb.execute(f"file {_quoted(plan['vmlinux'])}")
        gdb.execute(f"source {plan['plugin']}")
        for setting in plan["settings"]:
            gdb.execute(f"set {setting}")
        gdb.execute(f"target remote {plan['gdb_socket']}")
        for command in plan["at_start"]:
            gdb.execute(command)

    def _go_to_stop(self) -> None:
        until = self._plan["until"]
        if until == "reset":
            return
        if self._plan["kaslr"] and until != "shell" and not until.startswith("*"):
            self._say("booting")
            self._follow_kaslr()
        if until != "shell":
            # Internal: the user's own breakpoints are numbered from 1 on.
            self._breakpoint = gdb.Breakpoint(
                until, type=gdb.BP_HARDWARE_BREAKPOINT, internal=True, temporary=True
            )
            if self._breakpoint.pending:
                self._breakpoint.delete()
                raise gdb.error(f"the kernel has no location {until}")
        gdb.events.stop.connect(self._stopped)
        try:
            self._say("booting")
            gdb.execute("continue")
        finally:
            gdb.events.stop.disconnect(self._stopped)
            if self._breakpoint is not None and self._breakpoint.is_valid():
                self._breakpoint.delete()
        if not gdb.selected_inferior().pid:
            raise gdb.error("the guest ended")

    def _follow_kaslr(self) -> None:
        """To the kernel's entry: only there is it known where its symbols are."""
        from gdb_sme.target.entry import run_to_entry
        from gdb_sme.target.relocate import move_symbols_to
        from gdb_sme.target.session import SESSIONS

        session = SESSIONS.current()
        try:
            image = run_to_entry(session.require_stub("--kaslr"), session.symbols)
            move_symbols_to(image, session.symbols)
        except SmeError as error:
            raise gdb.error(str(error)) from error

    def _stopped(self, event: gdb.StopEvent) -> None:
        self._reached = (
            isinstance(event, gdb.BreakpointEvent) and self._breakpoint in event.breakpoints
        )

    def _run_commands(self, commands: Sequence[str]) -> None:
        gdb.events.gdb_exiting.connect(self._exiting)
        self._redirect(self._plan["stdout"])
        try:
            for command in commands:
                self._say("command", text=command)
                error = run_command(command)
                if error is not None:
                    self._say("command-failed", text=command)
                if error == _QUIT:
                    break
        finally:
            gdb.events.gdb_exiting.disconnect(self._exiting)
        self._redirect(2)
        self._say("finished")

    def _exiting(self, event: gdb.GdbExitingEvent) -> None:
        self._redirect(2)
        self._say("quit", status=getattr(event, "exit_code", 0))

    def _redirect(self, descriptor: int) -> None:
        """With an output for the commands alone, let ``descriptor`` be standard output."""
        if self._plan["stdout"] is not None:
            gdb.flush(gdb.STDOUT)
            os.dup2(descriptor, 1)


def _quoted(path: str) -> str:
    """Return ``path`` so that gdb's buildargv takes it as one word."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'

# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/sme-debug``: boots a kernel under QEMU, SME or SEV active, and opens gdb on it.

Exit status: 0; 1 when a command failed; 2 when the arguments are wrong; 125 when the kernel could
not be booted to the stop (what ``git bisect run`` skips); N after the gdb command ``quit N``. Ended
by a signal, it ends itself by that signal once everything is cleaned up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gdb_sme.errors import BootError, SmeError, UsageError
from gdb_sme.harness.boot import (
    TICK,
    await_stop,
    check_stop,
    control_path,
    write_plan,
)
from gdb_sme.harness.console import GuestFailure
from gdb_sme.harness.control import Control
from gdb_sme.harness.kgdb import FirstGdb
from gdb_sme.harness.options import Options, machine_config, parse_arguments
from gdb_sme.harness.process import tethered
from gdb_sme.harness.qemu import Machine
from gdb_sme.harness.signals import Interrupted, Signals

OK, COMMAND_FAILED, USAGE, NOT_BOOTED = 0, 1, 2, 125

_GDB_END = 10.0
"""Seconds that gdb may take to end after its last command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. See the module's text."""
    try:
        with Signals() as signals:
            options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
            return _Run(options, signals).run()
    except UsageError as error:
        _tell(str(error))
        return USAGE
    except SmeError as error:
        _tell(str(error))
        return NOT_BOOTED
    except Interrupted as interrupted:
        _tell(f"ended by {signal.Signals(interrupted.number).name}")
        signal.signal(interrupted.number, signal.SIG_DFL)
        os.kill(os.getpid(), interrupted.number)
        raise AssertionError("not reached") from None


def _tell(text: str) -> None:
    print(f"sme-debug: {text}", file=sys.stderr, flush=True)


@contextmanager
def _terminal_restored() -> Iterator[None]:
    """Put the terminal back as it was: a gdb that was killed leaves it without echo."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:  # standard input is no terminal
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(0, termios.TCSADRAIN, before)


class _Run:
    """One run, from the image to the exit status."""

    def __init__(self, options: Options, signals: Signals) -> None:
        self._options = options
        self._signals = signals
        self._kgdb = options.kgdb is not None

    def run(self) -> int:
        options = self._options
        if shutil.which("gdb") is None:
            raise BootError("gdb is not installed: apt install gdb")
        config = machine_config(options)
        check_stop(config, options.until)
        goal = options.until if options.kgdb is None else f"kgdb ({options.kgdb})"
        _tell(f"booting {config.image.name}, encryption {config.encryption}, to {goal}")
        try:
            with ExitStack() as stack:
                self._signals.hold()
                self._machine = stack.enter_context(Machine(config))
                if options.keep_logs is not None:
                    stack.callback(self._machine.keep_logs, options.keep_logs)
                if options.kgdb is not None:
                    first = stack.enter_context(FirstGdb(self._machine))
                    self._signals.release()
                    try:
                        first.await_kgdb(options.kgdb, options.timeout)
                    except BootError as error:
                        self._explain(error)
                        return NOT_BOOTED
                    finally:
                        self._signals.hold()
                path = control_path(self._machine, kgdb=self._kgdb)
                self._control = stack.enter_context(Control(path))
                stack.enter_context(_terminal_restored())
                self._gdb = self._start_gdb()
                stack.callback(self._end_gdb)
                # Runs first when the stack is left: the cleaning up is not to be interrupted.
                stack.callback(self._signals.hold)
                self._signals.release()
                return self._boot_and_run()
        finally:
            self._signals.release()

    def _start_gdb(self) -> subprocess.Popen[bytes]:
        options = self._options
        if not options.batch:
            self._signals.ignore_sigint = True
            plan = self._plan()
            return subprocess.Popen(tethered(["gdb", "-nx", "-q", "-ex", plan]))
        # Whatever gdb says before the commands run goes to standard error.
        stdout = os.dup(1)
        try:
            plan = self._plan(stdout)
            return subprocess.Popen(
                tethered(["gdb", "-nx", "-q", "-batch", "-ex", plan]),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                pass_fds=(stdout,),
                start_new_session=True,
            )
        finally:
            os.close(stdout)

    def _plan(self, stdout: int | None = None) -> str:
        options = self._options
        return write_plan(
            self._machine,
            options.until,
            options.commands,
            stdout,
            kgdb=self._kgdb,
            trace=options.trace,
        )

    def _end_gdb(self) -> None:
        """End gdb, with what its commands may have started."""
        if self._options.batch:
            with suppress(ProcessLookupError):
                os.killpg(self._gdb.pid, signal.SIGKILL)
        else:
            self._gdb.terminate()  # it puts the terminal in order
            try:
                self._gdb.wait(_GDB_END)
            except subprocess.TimeoutExpired:
                self._gdb.kill()
        self._gdb.wait()

    def _gdb_end(self) -> str | None:
        status = self._gdb.poll()
        if status is None:
            return None
        return f"gdb was killed by signal {-status}" if status < 0 else "gdb ended"

    def _boot_and_run(self) -> int:
        machine, control, options = self._machine, self._control, self._options
        try:
            await_stop(machine, control, options.until, options.timeout, self._gdb_end)
        except BootError as error:
            self._explain(error)
            if not options.batch and machine.running() and self._gdb.poll() is None:
                # A person may want to look at what is left.
                machine.stop()
                control.go(False)
                self._gdb.wait()
            return NOT_BOOTED
        if not options.batch:
            where = "kgdb" if self._kgdb else options.until
            _tell(f"stopped at {where}; serial console: {machine.console.path}")
        control.go(True)
        return self._await_commands()

    def _await_commands(self) -> int:
        """Wait until gdb ends; return the exit status."""
        machine, options = self._machine, self._options
        printed = machine.console.size()
        failed: list[str] = []
        command, finished = "", False
        deadline = time.monotonic() + options.timeout
        while True:
            end = self._gdb_end()
            messages = self._control.messages(TICK)
            for message in messages:
                match message:
                    case {"event": "command", "text": text}:
                        command, deadline = text, time.monotonic() + options.timeout
                    case {"event": "command-failed"}:
                        failed.append(f"`{command}` failed")
                    case {"event": "quit", "status": status}:
                        return int(status) or self._verdict(failed)
                    case {"event": "finished"}:
                        finished, deadline = True, time.monotonic() + _GDB_END
            if end is not None and not messages:
                if not finished or self._gdb.returncode < 0:
                    failed.append(f"{end} in `{command}`")
                return self._verdict(failed)
            if options.batch and not finished:
                try:
                    machine.console.check(printed)
                except GuestFailure as error:
                    printed = machine.console.size()
                    self._show(error)
                    failed.append(f"the kernel gave up in `{command}`")
                    with suppress(BootError):  # it may have ended itself after that
                        machine.stop()
            if options.batch and time.monotonic() > deadline:
                failed.append(f"`{command}` took more than {options.timeout:g} s")
                return self._verdict(failed)

    def _verdict(self, failed: Sequence[str]) -> int:
        if not failed:
            return OK
        self._explain(BootError("; ".join(failed)))
        return COMMAND_FAILED

    def _explain(self, error: BootError) -> None:
        if isinstance(error, GuestFailure):
            self._show(error)
        kept = self._options.keep_logs
        if kept is None:
            kept = Path(tempfile.mkdtemp(prefix="sme-debug-logs-"))
            self._machine.keep_logs(kept)
        _tell(f"{error}; logs are in {kept}")

    @staticmethod
    def _show(error: GuestFailure) -> None:
        for line in error.lines:
            print(f"  {line}", file=sys.stderr)

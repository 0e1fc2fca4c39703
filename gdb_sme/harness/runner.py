# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/sme-debug``: boots a kernel under QEMU, SME or SEV active, and opens gdb on it.

Exit status: 0; 1 when a command failed; 2 when the arguments are wrong; 125 when the kernel could
not be booted to the stop (what ``git bisect run`` skips); N after the gdb command ``quit N``. Ended
by a signal, it ends itself by that signal once everything is cleaned up.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from gdb_sme.errors import BootError, SmeError, UsageError
from gdb_sme.harness.boot import (
    BOOT_DEADLINE,
    RESET,
    TICK,
    await_stop,
    check_stop,
    control_path,
    write_plan,
)
from gdb_sme.harness.console import GuestFailure
from gdb_sme.harness.control import Control
from gdb_sme.harness.kgdb import FirstGdb, When, kgdb_config
from gdb_sme.harness.layout import (
    C_BIT_DEFAULT,
    C_BIT_MAX,
    C_BIT_MIN,
    SMP_MAX,
    Encryption,
    MachineConfig,
    check_memory,
    parse_size,
)
from gdb_sme.harness.process import tethered
from gdb_sme.harness.qemu import Machine

OK, COMMAND_FAILED, USAGE, NOT_BOOTED = 0, 1, 2, 125

KGDB_IMAGE = "kgdb-6.1"

_GDB_END = 10.0
"""Seconds that gdb may take to end after its last command."""

DESCRIPTION = """\
Boot a kernel under QEMU (TCG), with AMD SME or SEV active if wanted, and open gdb on it with the
gdb_sme extension loaded. No AMD hardware is needed. The kernel is an image of the manifest
(scripts/images list shows them) or your own.
"""

EPILOG = """\
commands:
  -ex and -x are run in the order given, at the stop, as gdb runs them: when one fails, the next
  ones still run. With --batch, standard output has what they print and nothing else.

exit status:
  0    all well
  1    a command failed, or gdb or the guest ended under it
  2    the arguments are wrong
  125  the kernel could not be booted to the stop; `git bisect run` skips it
  N    the gdb command `quit N` was run

examples:
  Look at Debian's 6.1 kernel with SME active, in user space:
    scripts/sme-debug --image debian-6.1 --encryption sme --until shell

  Check CR3 in early boot, with the C-bit where newer CPUs have it:
    scripts/sme-debug --image debian-6.12 --encryption sme --c-bit 51 --la57 \\
        --until start_kernel --batch -ex 'sme cr3 --expect early'

  Your own kernel, from the first instruction on:
    scripts/sme-debug --kernel arch/x86/boot/bzImage --vmlinux vmlinux --encryption sev

  Find the commit that broke it:
    git bisect run sh -c 'make -j8 bzImage || exit 125; .../scripts/sme-debug --batch \\
        --kernel arch/x86/boot/bzImage --vmlinux vmlinux --encryption sme \\
        --until shell -ex "sme cr3"'
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, parsed. ``kernel`` is None when ``image`` names one of the manifest."""

    image: str | None
    kernel: Path | None
    vmlinux: Path | None
    initrd: Path | None
    marker: str | None
    encryption: Encryption
    c_bit: int
    la57: bool
    smp: int
    memory: int
    append: str
    kaslr: bool
    trace: bool
    until: str
    commands: tuple[str, ...]
    batch: bool
    keep_logs: Path | None
    timeout: float
    kgdb: When | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help shows what can be given")


class _Command(argparse.Action):
    """Keeps -ex and -x in one list, in the order given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        command = values
        if self.metavar == "FILE":
            if not os.access(values, os.R_OK):
                parser.error(f"-x {values}: no such file, or not readable")
            command = f"source {os.path.abspath(values)}"
        namespace.commands = [*namespace.commands, command]


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Return the options of ``scripts/sme-debug``. Raises UsageError; ``--help`` exits."""
    parser = _Parser(
        prog="scripts/sme-debug",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kernel = parser.add_argument_group("kernel")
    kernel.add_argument("--image", metavar="NAME", help="an image, NAME or NAME:VARIANT")
    kernel.add_argument("--kernel", type=Path, metavar="BZIMAGE", help="your own kernel")
    kernel.add_argument("--vmlinux", type=Path, help="its symbols: the vmlinux of the same build")
    kernel.add_argument(
        "--initrd", type=Path, metavar="FILE", help="its initramfs (default: a BusyBox shell)"
    )
    kernel.add_argument(
        "--marker", metavar="TEXT", help="what your initramfs prints when it is up (--until shell)"
    )
    kernel.add_argument(
        "--append", default="", metavar="TEXT", help="more for the kernel's command line"
    )
    kernel.add_argument("--kaslr", action="store_true", help="do not switch off KASLR")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--encryption", choices=[*Encryption], default="none", help="active in the guest (none)"
    )
    machine.add_argument(
        "--c-bit",
        type=int,
        choices=range(C_BIT_MIN, C_BIT_MAX + 1),
        default=C_BIT_DEFAULT,
        metavar="N",
        help="43 to 51 (47)",
    )
    machine.add_argument("--la57", action="store_true", help="5-level paging")
    machine.add_argument(
        "--smp",
        type=int,
        choices=range(1, SMP_MAX + 1),
        default=1,
        metavar="N",
        help="CPUs, 1 to 4 (1)",
    )
    machine.add_argument(
        "--memory", default="512M", metavar="SIZE", help="RAM, such as 4G, up to 16G (512M)"
    )
    session = parser.add_argument_group("session")
    session.add_argument(
        "--until",
        default=RESET,
        metavar="LOCATION",
        help="where to stop: a function or *ADDRESS, or `shell`: when user space is up "
        "(default: at reset, before the first instruction)",
    )
    session.add_argument(
        "--kgdb",
        nargs="?",
        type=When,
        choices=[*When],
        const=When.SHELL,
        metavar="WHEN",
        help="be on the kernel's own stub, kgdb, over its second serial port: early (in "
        "setup_arch), boot (when its driver is up), or shell (by SysRq-G from the shell; the "
        f"default). The image is {KGDB_IMAGE} unless you name one",
    )
    session.add_argument(
        "--trace", action="store_true", help="record early boot: see `sme trace show` at the stop"
    )
    session.add_argument(
        "-ex", action=_Command, default=[], dest="commands", metavar="COMMAND", help="gdb command"
    )
    session.add_argument(
        "-x", action=_Command, default=[], dest="commands", metavar="FILE", help="gdb script"
    )
    session.add_argument("--batch", action="store_true", help="run the commands and end")
    session.add_argument(
        "--keep-logs",
        type=Path,
        metavar="DIR",
        help="keep serial console, QEMU's messages and command line there, also when all is well",
    )
    session.add_argument(
        "--timeout",
        type=float,
        default=BOOT_DEADLINE,
        metavar="SECONDS",
        help=f"for the boot, and with --batch for each command ({BOOT_DEADLINE:g})",
    )
    given = parser.parse_args(arguments)
    if given.kgdb is not None:
        if given.until != RESET:
            parser.error("--until does not go with --kgdb, which stops where kgdb begins")
        if given.image is None and given.kernel is None:
            given.image = KGDB_IMAGE
    if (given.image is None) == (given.kernel is None):
        parser.error("give one of --image NAME and --kernel BZIMAGE")
    for option in ("vmlinux", "initrd", "marker"):
        if given.image is not None and getattr(given, option) is not None:
            parser.error(f"--{option} goes with --kernel, not with --image")
    if given.timeout <= 0:
        parser.error("--timeout is a number of seconds above 0")
    return Options(
        **{
            **vars(given),
            "encryption": Encryption(given.encryption),
            "memory": check_memory(parse_size(given.memory)),
            "commands": tuple(given.commands),
        }
    )


def machine_config(options: Options) -> MachineConfig:
    """Return the machine of ``options``; its image is fetched if need be. Raises SmeError."""
    from gdb_sme.harness.images import obtain, obtain_user_kernel

    append = options.append
    if options.kernel is None:
        assert options.image is not None
        image = obtain(options.image)
    else:
        image = obtain_user_kernel(options.kernel, options.vmlinux, options.initrd, append)
        append = ""  # it is part of the image's own now
        if options.marker is not None:
            image = replace(image, shell_marker=options.marker)
    config = MachineConfig(
        image=image,
        encryption=options.encryption,
        c_bit=options.c_bit,
        la57=options.la57,
        smp=options.smp,
        memory=options.memory,
        append=append,
        kaslr=options.kaslr,
    )
    return config if options.kgdb is None else kgdb_config(config, options.kgdb)


class Interrupted(BaseException):
    """A signal asks the run to end. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into one Interrupted, at a time that suits.

    Attributes:
        ignore_sigint: set while gdb has the terminal, where Ctrl-C is meant for gdb alone.
    """

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None
        self._raised = False
        self.ignore_sigint = False

    def __enter__(self) -> Self:
        """From now on these signals come here."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.ignore_sigint:
            return
        self._pending = self._pending or number
        self._deliver()

    def _deliver(self) -> None:
        if self._pending is not None and not self._held and not self._raised:
            self._raised = True
            raise Interrupted(self._pending)

    def hold(self) -> None:
        """Put signals off until ``release``: what is made or removed now is so completely."""
        self._held += 1

    def release(self) -> None:
        """Undo one ``hold``; raises Interrupted when a signal has come meanwhile."""
        self._held -= 1
        self._deliver()


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

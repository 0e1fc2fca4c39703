# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of ``scripts/sme-debug``, and the machine that it asks for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from gdb_sme.errors import UsageError
from gdb_sme.harness.boot import BOOT_DEADLINE, RESET
from gdb_sme.harness.kgdb import When, kgdb_config
from gdb_sme.harness.layout import (
    C_BIT_DEFAULT,
    C_BIT_MAX,
    C_BIT_MAX_EFI,
    C_BIT_MIN,
    SMP_MAX,
    Encryption,
    MachineConfig,
    check_memory,
    parse_size,
)

KGDB_IMAGE = "kgdb-6.1"

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
    firmware: Path | None


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
    machine.add_argument(
        "--firmware",
        type=Path,
        metavar="FILE",
        help="EFI firmware that loads the kernel, such as /usr/share/ovmf/OVMF.fd; with "
        f"encryption, a C-bit up to {C_BIT_MAX_EFI}",
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
        "--trace",
        action="store_true",
        help="record early boot: see `sme trace show` at the stop; with --kgdb from the stop on",
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
    if given.firmware is not None and not os.access(given.firmware, os.R_OK):
        parser.error(f"--firmware {given.firmware}: no such file, or not readable")
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
        firmware=options.firmware,
    )
    return config if options.kgdb is None else kgdb_config(config, options.kgdb)

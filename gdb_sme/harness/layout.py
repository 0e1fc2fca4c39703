# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU is asked for: where guest RAM lies, and the command line. Pure: nothing is started.

Under SME and SEV a page-table entry holds ``pa | 1 << c_bit``. TCG takes that for a plain physical
address, so the same RAM is mapped a second time there: the *encrypted view*. Both views reach the
same bytes; no cipher is involved.

One host file holds all of guest RAM. The ``pc`` machine shows its first part from 0 on and, with
more than 3 GiB, the rest from 1 TiB on: that is where QEMU moves it on AMD CPU models as soon as
``maxmem`` passes 1 TiB (``hw/i386/pc.c``, ``pc_memory_init``). A ``pc-dimm`` always shows a file
from its first byte, so the upper part's second view is the whole file, placed 3 GiB lower. What it
shows below the upper part would be ``pa | 1 << c_bit`` for ``pa`` just under 1 TiB, where the guest
has nothing, and which it never uses.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from gdb_sme.errors import UsageError

if TYPE_CHECKING:
    from gdb_sme.harness.images import Image

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

C_BIT_MIN = 43
C_BIT_MAX = 51
C_BIT_DEFAULT = 47
C_BIT_MAX_EFI = 46
"""EDK II maps all of memory up to the second view; Debian 12's OVMF gets through up to there."""

MEMORY_MIN = 64 * MIB
MEMORY_MAX = 16 * GIB
SMP_MAX = 4

LOW_RAM_MAX = 3 * GIB
"""RAM below the PCI hole, in bytes; passed to QEMU as ``max-ram-below-4g``."""

_FOUR_GIB = 4 * GIB
_PHYS_BITS = 52
QEMU = "qemu-system-x86_64"


class Encryption(StrEnum):
    """The scheme that the guest is to find active."""

    NONE = "none"
    SME = "sme"
    SEV = "sev"


def parse_size(text: str) -> int:
    """Return the bytes meant by ``text``: a number with K, M, G or T, or MiB when there is none.

    Raises UsageError when it is no such size.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"size {text!r} is not a number with K, M, G or T, such as 512M or 4G")
    unit = {"K": KIB, "": MIB, "M": MIB, "G": GIB, "T": TIB}[match[2].upper()]
    return int(match[1]) * unit


def format_size(size: int) -> str:
    """Return ``size`` in bytes as QEMU takes it, in the largest unit that leaves no rest."""
    for suffix, unit in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return f"{size}B"


def check_memory(size: int) -> int:
    """Return ``size``, guest RAM in bytes. Raises UsageError when it cannot be had."""
    if not MEMORY_MIN <= size <= MEMORY_MAX or size % MIB:
        raise UsageError(
            f"memory of {format_size(size)}: whole MiB from {format_size(MEMORY_MIN)} "
            f"to {format_size(MEMORY_MAX)} can be had"
        )
    return size


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The machine to boot. ``memory`` is in bytes; ``c_bit`` is a bit number and unused for none.

    ``append`` goes behind everything else on the kernel's command line, ``qemu_args`` behind
    everything else on QEMU's. ``kgdb`` gives the machine a second serial port. ``firmware`` is a
    file with EFI firmware, which then loads the kernel; None for QEMU's own. Raises UsageError for
    values that cannot be had.
    """

    image: Image
    encryption: Encryption = Encryption.NONE
    c_bit: int = C_BIT_DEFAULT
    la57: bool = False
    smp: int = 1
    memory: int = 512 * MIB
    append: str = ""
    kaslr: bool = False
    qemu_args: tuple[str, ...] = ()
    kgdb: bool = False
    firmware: Path | None = None

    def __post_init__(self) -> None:
        if not C_BIT_MIN <= self.c_bit <= C_BIT_MAX:
            raise UsageError(f"C-bit {self.c_bit} is not one of {C_BIT_MIN} to {C_BIT_MAX}")
        if not 1 <= self.smp <= SMP_MAX:
            raise UsageError(f"{self.smp} CPUs: 1 to {SMP_MAX} can be had")
        if self.firmware is not None:
            self._check_firmware()
        check_memory(self.memory)

    def _check_firmware(self) -> None:
        if self.kaslr:
            raise UsageError("firmware with KASLR: its EFI stub could put the kernel anywhere")
        if self.encrypted_view and self.c_bit > C_BIT_MAX_EFI:
            raise UsageError(
                f"firmware with C-bit {self.c_bit}: EFI firmware cannot map so much memory; "
                f"{C_BIT_MIN} to {C_BIT_MAX_EFI} can be had"
            )

    @property
    def encrypted_view(self) -> bool:
        """Whether RAM is seen a second time at ``1 << c_bit``."""
        return self.encryption is not Encryption.NONE


@dataclass(frozen=True, slots=True)
class RamPart:
    """A piece of RAM without holes: ``size`` bytes at guest ``pa``, from ``offset`` in the file."""

    pa: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Dimm:
    """A second view: the first ``size`` bytes of the RAM file, at guest ``pa``."""

    pa: int
    size: int


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Where guest RAM is. ``enc_mask`` is ``1 << c_bit``, or 0 without a second view.

    ``dimms`` show the file again, so that byte ``pa | enc_mask`` is byte ``pa`` for every ``pa`` in
    ``parts``. ``maxmem`` is QEMU's, in bytes; 0 without a second view.
    """

    memory: int
    parts: tuple[RamPart, ...]
    enc_mask: int
    dimms: tuple[Dimm, ...]
    maxmem: int


def memory_layout(config: MachineConfig) -> MemoryLayout:
    """Return where QEMU's ``pc`` machine puts the RAM of ``config``, and where to show it again."""
    high_pa = TIB if config.encrypted_view else _FOUR_GIB
    parts = [RamPart(0, min(config.memory, LOW_RAM_MAX), 0)]
    if config.memory > LOW_RAM_MAX:
        parts.append(RamPart(high_pa, config.memory - LOW_RAM_MAX, LOW_RAM_MAX))
    if not config.encrypted_view:
        return MemoryLayout(config.memory, tuple(parts), 0, (), 0)
    enc_mask = 1 << config.c_bit
    dimms = tuple(Dimm(enc_mask + part.pa - part.offset, part.offset + part.size) for part in parts)
    # QEMU gives the space for DIMMs (maxmem - memory) bytes and starts it above all RAM, so one
    # that is as long as the highest address holds them wherever it starts.
    top = max(dimm.pa + dimm.size for dimm in dimms)
    maxmem = -(-(config.memory + top) // GIB) * GIB
    return MemoryLayout(config.memory, tuple(parts), enc_mask, dimms, maxmem)


def kernel_command_line(config: MachineConfig) -> str:
    """Return the kernel's command line: what the machine needs, the image's own, the user's last.

    ``earlyprintk`` shows a panic that comes before the console does. ``no_timer_check``: on a busy
    machine TCG delivers timer ticks too late for the kernel's check, which then panics.
    ``acpi_no_memhotplug`` keeps the kernel from taking the second view for new memory, which it
    does wherever ``1 << c_bit`` is below its MAXMEM (46 bits with 4-level, 52 with 5-level paging).
    """
    words = ["console=ttyS0", "earlyprintk=serial,ttyS0,115200", "no_timer_check"]
    if not config.kaslr:
        words.append("nokaslr")
    if config.encryption is Encryption.SME:
        words.append("mem_encrypt=on")
    if config.encrypted_view:
        words.append("acpi_no_memhotplug")
    own = [word for word in config.image.append.split() if word != "nokaslr" or not config.kaslr]
    return " ".join([*(word for word in words if word not in own), *own, *config.append.split()])


def machine_arguments(config: MachineConfig, ram_file: str) -> list[str]:
    """Return QEMU's arguments for machine, CPU, RAM and kernel, without stub, monitor and console.

    ``ram_file`` is the host file that holds guest RAM, of ``config.memory`` bytes (QEMU makes it
    when it is not there).
    """
    layout = memory_layout(config)
    cpu = f"EPYC,phys-bits={_PHYS_BITS}" + (",+la57" if config.la57 else "")
    memory = format_size(layout.memory)
    if layout.dimms:
        memory += f",slots={len(layout.dimms)},maxmem={format_size(layout.maxmem)}"
    args = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    args += ["-machine", f"pc,memory-backend=ram,max-ram-below-4g={format_size(LOW_RAM_MAX)}"]
    args += ["-accel", "tcg", "-cpu", cpu, "-smp", str(config.smp), "-m", memory]
    args += _backend("ram", ram_file, layout.memory)
    for number, dimm in enumerate(layout.dimms):
        args += _backend(f"enc{number}", ram_file, dimm.size)
        args += ["-device", f"pc-dimm,id=dimm{number},memdev=enc{number},addr={dimm.pa:#x}"]
    if config.firmware is not None:
        args += ["-bios", str(config.firmware)]
    args += ["-kernel", str(config.image.kernel)]
    if config.image.initrd is not None:
        args += ["-initrd", str(config.image.initrd)]
    return [*args, "-append", kernel_command_line(config), *config.qemu_args]


def _backend(name: str, ram_file: str, size: int) -> list[str]:
    path = ram_file.replace(",", ",,")
    spec = f"memory-backend-file,id={name},mem-path={path},size={format_size(size)},share=on"
    return ["-object", spec]


def qemu_command(config: MachineConfig, ram_file: str, directory: Path) -> list[str]:
    """Return the command that starts QEMU, stopped at reset.

    In ``directory`` it makes ``gdb.sock`` (gdb stub), ``qmp.sock`` (QEMU's monitor protocol),
    ``console.sock`` (the guest's first serial port), ``console.log`` (all that it printed) and, if
    asked for, ``kgdb.sock`` (the second one).
    """
    where = str(directory).replace(",", ",,")
    return [
        QEMU,
        *machine_arguments(config, ram_file),
        *("-chardev", f"socket,id=gdb,path={where}/gdb.sock,server=on,wait=off"),
        *("-gdb", "chardev:gdb", "-S"),
        *("-chardev", f"socket,id=qmp,path={where}/qmp.sock,server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", _console_chardev(where), "-serial", "chardev:console"),
        *(_second_serial(f"{where}/kgdb.sock") if config.kgdb else ()),
    ]


def _console_chardev(where: str) -> str:
    socket = f"socket,id=console,path={where}/console.sock,server=on,wait=off"
    return f"{socket},logfile={where}/console.log"


def _second_serial(path: str) -> tuple[str, ...]:
    # A Unix socket passes every byte on at once, where TCP would wait for more (Nagle).
    socket = f"socket,id=kgdb,path={path},server=on,wait=off"
    return ("-chardev", socket, "-serial", "chardev:kgdb")


def hand_command_line(config: MachineConfig, ram_file: str, gdb_socket: str) -> str:
    """Return a shell command that boots ``config`` by hand, with the console on the terminal.

    QEMU waits at reset for gdb (``target remote GDB_SOCKET``). ``ram_file`` is a plain file; QEMU
    makes it, and the user removes it afterwards.
    """
    words = [
        QEMU,
        *machine_arguments(config, ram_file),
        *("-serial", "mon:stdio"),
        *(_second_serial("kgdb.sock") if config.kgdb else ()),
        *("-chardev", f"socket,id=gdb,path={gdb_socket},server=on,wait=off"),
        *("-gdb", "chardev:gdb", "-S"),
    ]
    return join_options(words)


def join_options(words: Sequence[str]) -> str:
    """Return ``words`` quoted for a shell, one option with its value a line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)

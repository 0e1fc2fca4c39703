# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kgdb can put an int3 into the kernel, and take it back."""

from __future__ import annotations

from gdb_sme.core.ports import Symbols
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import initmem_freed, system_state_at_least
from gdb_sme.linux.symbols import find
from gdb_sme.target.code import function_bounds, instructions
from gdb_sme.target.connection import remote_connection, send_packet

INT3 = b"\xcc"

#: Code that serves exceptions, by section (include/linux/compiler_types.h and vmlinux.lds.S, 6.1
#: and 6.12), the early handlers by name, and kgdb itself by prefix.
_SECTIONS = ("noinstr", "entry", "kprobes")
_EARLY_HANDLERS = (
    "early_idt_handler_array",
    "early_idt_handler_common",
    "do_early_exception",
    "early_make_pgtable",
    "__early_make_pgtable",
    "early_fixup_exception",
    "fixup_exception",
)
_KGDBS_OWN = ("kgdb_", "__kgdb_", "kgdboc_", "dbg_", "gdb_", "gdbstub_")

#: From the first of these that a kernel has on, kgdb loses what it has set: the first two free
#: .init, the last write-protects the text. kgdb remembers how it has set an int3, and can then not
#: take back one that it had written into writable text (kgdb_arch_remove_breakpoint(),
#: arch/x86/kernel/kgdb.c, 6.1 and 6.12): the machine meets it for ever.
_LAST = ("kgdb_free_init_mem", "free_initmem", "mark_rodata_ro")

#: More than what is patched at the start of a function.
_START = 32
_FENTRY_SIZE = 5


def last_places(kernel: Kernel) -> tuple[str, ...]:
    """Functions at whose entry, the first that is there, all int3 must be taken back; or none."""
    if system_state_at_least(kernel, "SYSTEM_RUNNING"):
        return ()
    return _LAST[-1:] if initmem_freed(kernel) else _LAST


def serves_kgdb(symbols: Symbols, address: int) -> bool:
    """Whether kgdb cannot do without the code there: to answer one int3 it would meet another.

    Kernels with modules let kgdb refuse such places itself (KGDB_HONOUR_BLOCKLIST).
    """
    for section in _SECTIONS:
        start, end = (find(symbols, f"__{section}_text_{at}") for at in ("start", "end"))
        if start is not None and end is not None and start[1] <= address < end[1]:
            return True
    name = (symbols.nearest(address) or ("",))[0]
    return name in _EARLY_HANDLERS or (name.startswith(_KGDBS_OWN) and name not in _LAST)


def entry_of(address: int) -> int:
    """Where the function at ``address`` begins with what the kernel does not patch as it boots.

    Behind ENDBR64, which is sealed where it is not needed (apply_ibt_endbr(), 5.18), and the call
    of __fentry__, which becomes a no-op (ftrace_init()): both look for the bytes that they expect.
    Registers and stack are there as at the entry.
    """
    _, end = function_bounds(address) or (address, address + _START)
    for each in instructions(address, min(end, address + _START)):
        fentry = each.length == _FENTRY_SIZE and (
            each.mnemonic == "nopl" or "<__fentry__>" in each.operands
        )
        if each.mnemonic != "endbr64" and not fentry:
            return each.address
    return address


def takes_int3(va: int) -> bool:
    """Whether kgdb takes a breakpoint at run-time ``va``: it tries it out.

    gdb would ask when it continues, and then not continue.

    Raises:
        TargetError: the connection broke.
    """
    connection = remote_connection()
    assert connection is not None
    if send_packet(connection, f"Z0,{va:x},1") != b"OK":
        return False
    send_packet(connection, f"z0,{va:x},1")
    return True

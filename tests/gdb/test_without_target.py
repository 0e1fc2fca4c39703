# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension in a gdb without a guest: loading, help, completion, decoding, printing, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pexpect
import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb

NO_TARGET = "no target; connect first, for example: target remote /path/of/qemu-gdb.sock"
COMMANDS = (
    "audit", "cr3", "decode", "diff", "dump", "emulate", "find", "kaslr", "pte", "report",
    "snapshot", "status", "trace",
)  # fmt: skip


def batch(*commands: str, file: Path | None = None, **environment: str) -> str:
    """Standard output of a gdb without a terminal."""
    arguments = [word for command in commands for word in ("-ex", command)]
    return subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-ex", f"source {PLUGIN}", *arguments]
        + ([str(file)] if file else []),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout


def test_a_second_source_is_harmless(gdb: Gdb) -> None:
    gdb.execute("set sme c-bit 51")
    before = gdb.execute("help sme")
    assert gdb.execute(f"source {PLUGIN}") == ""
    assert gdb.execute("show sme c-bit") == "The position of the C-bit is 51.\n"
    assert gdb.execute("help sme") == before
    assert gdb.execute("info pretty-printer global sme").count("pgprot_t") == 1
    assert gdb.execute("print a_pmd").count("->") == 1


def test_loading_imports_what_registering_needs_and_no_more() -> None:
    """What takes long waits for the first command that needs it."""
    loaded = batch("python import sys; print(' '.join(sys.modules))").split()
    assert "gdb_sme.plugin" in loaded
    for late in (
        "argparse", "dataclasses", "json", "numpy", "pathlib", "pexpect", "pygments",
        "gdb_sme.core", "gdb_sme.encryption", "gdb_sme.harness", "gdb_sme.linux", "gdb_sme.render",
    ):  # fmt: skip
        assert not [name for name in loaded if name == late or name.startswith(f"{late}.")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_usage_and_an_example(gdb: Gdb, command: str) -> None:
    text = gdb.execute(f"help sme {command}")
    lines = text.splitlines()
    assert lines[0].endswith((".", "?"))
    assert lines[1].startswith(f"Usage: sme {command}")
    assert f"(gdb) sme {command}" in text.partition("Example:")[2]
    assert all(len(line) <= 100 for line in lines)
    assert f"sme {command} -- {lines[0].rstrip('.')}" in gdb.execute("help sme")


def test_every_command_is_known_here(gdb: Gdb) -> None:
    listed = re.findall(r"^sme (\S+) -- ", gdb.execute("help sme"), re.MULTILINE)
    assert tuple(listed) == COMMANDS


def test_the_prefixes_alone_show_what_can_follow(gdb: Gdb) -> None:
    assert gdb.execute("sme") == gdb.execute("help sme")
    assert gdb.execute("set sme") == gdb.execute("help set sme")
    gdb.execute("set sme target qemu")
    assert gdb.execute("show sme").splitlines() == [
        "The position of the C-bit is auto.",
        "The kind of the target is qemu.",
        "Kernel symbols are taken from gdb, or from the kernel itself.",
    ]


def test_help_of_the_settings_and_functions(gdb: Gdb) -> None:
    assert "from 32 to 51" in gdb.execute("help set sme c-bit")
    assert gdb.execute("show sme c-bit") == "The position of the C-bit is auto.\n"
    functions = gdb.execute("help function")
    for name in ("sme_pa", "sme_pa_nodebug", "sme_va", "sme_me_mask", "c_bit", "pte"):
        assert re.search(rf"^function {name} -- \$", functions, re.MULTILINE), name


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sme c", ["sme cr3"]),
        ("sme s", ["sme status"]),
        ("sme pte --", ["sme pte --json", "sme pte --root"]),
        ("sme pte a_swa", ["sme pte a_swapped_pte"]),
        ("sme pte --root a_swa", ["sme pte --root a_swapped_pte"]),
        ("sme cr3 --e", ["sme cr3 --expect"]),
        ("sme cr3 --expect a_swa", ["sme cr3 --expect a_swapped_pte"]),
        ("sme cr3 a_swa", []),
        ("sme decode --level p", [f"sme decode --level {n}" for n in ("p4d", "pgd", "pgprot")]),
        ("sme decode --c", ["sme decode --c-bit"]),
        ("sme decode a_swa", ["sme decode a_swapped_pte"]),
        ("sme emulate s", ["sme emulate sev", "sme emulate sme"]),
        ("sme emulate sme --r", ["sme emulate sme --reduction"]),
        ("set sme c", ["set sme c-bit"]),
    ],
)
def test_completion(gdb: Gdb, typed: str, expected: list[str]) -> None:
    completed = gdb.execute(f"complete {typed}").splitlines()
    assert set(expected) <= set(completed)
    if not expected:
        assert completed == []


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sme status", f"sme status: {NO_TARGET}"),
        ("sme cr3", f"sme cr3: {NO_TARGET}"),
        ("sme pte 0", f"sme pte: {NO_TARGET}"),
        ("sme emulate sme", f"sme emulate: {NO_TARGET}"),
        ("sme dump", f"sme dump: {NO_TARGET}"),
        ("sme find 0", f"sme find: {NO_TARGET}"),
        ("sme audit", f"sme audit: {NO_TARGET}"),
        ("sme snapshot a", f"sme snapshot: {NO_TARGET}"),
        ("sme diff a", "sme diff: no snapshot and no file 'a'; take one: sme snapshot NAME"),
        ("sme report a.txt", f"sme report: {NO_TARGET}"),
        ("sme kaslr", f"sme kaslr: {NO_TARGET}"),
        ("sme trace start", f"sme trace: {NO_TARGET}"),
        ("sme trace show", "sme trace: no trace; at reset, begin one with: sme trace start"),
        ("sme pre 0", 'Undefined sme command: "pre".  Try "help sme".'),
        ("show sme x", 'Undefined show sme command: "x".  Try "help show sme".'),
        ("print $c_bit(0)", f"$c_bit: {NO_TARGET}"),
        ("print $sme_pa()", "$sme_pa: takes 1 argument, not 0"),
        ("print $sme_me_mask(1)", "$sme_me_mask: takes 0 arguments, not 1"),
        ("sme pte", "sme pte: the following arguments are required: ADDRESS; see: help sme pte"),
        ("sme pte --root", "sme pte: argument --root: expected one argument; see: help sme pte"),
        ("sme status now", "sme status: unrecognized arguments: now; see: help sme status"),
        ("sme decode 1 --level pxd", "sme decode: argument --level: invalid choice: 'pxd' "
         "(choose from 'pgd', 'p4d', 'pud', 'pmd', 'pte', 'cr3', 'pgprot'); see: help sme decode"),
        ("sme decode 1 --c-bit 70",
         "sme decode: 70 is no bit of a page-table entry: give a C-bit from 32 to 51"),
        ("sme decode nonsense", "sme decode: 'nonsense' is not an address (No symbol \"nonsense\" "
         "in current context); give an expression such as 0xffffffff81000000 or &init_top_pgt"),
        ("sme decode 'x", "sme decode: 'x: no closing quotation; close the quotation"),
        ("set sme c-bit 31", "set sme c-bit: '31': give a bit from 32 to 51, or auto"),
        ("set sme c-bit x", "set sme c-bit: 'x': give a bit from 32 to 51, or auto"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(gdb: Gdb, command: str, error: str) -> None:
    gdb.execute("set sme c-bit 47")
    result = gdb.run(command)
    assert (result.output, (result.error or "").strip()) == ("", error)
    assert gdb.execute("show sme c-bit") == "The position of the C-bit is 47.\n"


def test_a_process_is_no_kernel(gdb: Gdb) -> None:
    gdb.execute("starti")
    for command in ("sme status", "sme cr3", "sme pte $sp", "sme emulate sme"):
        error = gdb.run(command).error
        assert error is not None
        assert error.startswith(f"{' '.join(command.split()[:2])}: the target (")
        assert "\n" not in error.strip()
    gdb.execute("kill")
    assert gdb.run("sme status").error == f"sme status: {NO_TARGET}"


def test_printers_show_the_c_bit_that_was_set(gdb: Gdb) -> None:
    gdb.execute("set sme c-bit 47")
    shown = {
        "a_pgd": "0x0000800002a15067 C -> 0x02a15000 RW USER ACCESSED DIRTY ENC",
        "a_p4d": "0x0000800002a15067 C -> 0x02a15000 RW USER ACCESSED DIRTY ENC",
        "a_pud": "0x0000800002a16063 C -> 0x02a16000 RW ACCESSED DIRTY ENC",
        "a_pmd": "0x8000800002a001e3 C -> 0x02a00000 RW ACCESSED DIRTY PSE GLOBAL NX ENC",
        "a_pte": "0x8000000003600163 - -> 0x03600000 RW ACCESSED DIRTY GLOBAL NX",
        "an_empty_pte": "0x0000000000000000 empty",
        "a_swapped_pte": "0x0fffffffffdbb600 swapped out, type 1, offset 0x1224",
    }
    for name, text in shown.items():
        assert gdb.execute(f"output {name}") == text
    assert gdb.execute("output a_pgprot").startswith("0x8000800000000163 PAGE_KERNEL")
    assert gdb.execute("output a_pgprot").endswith("NX ENC")
    assert "{0x0000800001234067 C -> 0x01234000" in gdb.execute("output some_ptes")
    assert "protection = 0x8000800000000163" in gdb.execute("output mixed")
    assert gdb.execute("output/x a_pte") == gdb.execute("output a_pte")
    assert gdb.execute("output/r a_pte").startswith("{pte = ")


def test_printers_without_a_c_bit(gdb: Gdb) -> None:
    assert gdb.execute("output a_pmd") == (
        "0x8000800002a001e3 - -> 0x800002a00000 RW ACCESSED DIRTY PSE GLOBAL NX"
    )
    gdb.execute("set sme c-bit 47")
    gdb.execute("set sme c-bit auto")
    assert " - -> " in gdb.execute("output a_pmd")
    gdb.execute("disable pretty-printer global sme")
    assert gdb.execute("output/x a_pmd") == "{pmd = 0x8000800002a001e3}"


def test_decode_without_a_target(gdb: Gdb) -> None:
    document = json.loads(gdb.execute("sme decode --json --c-bit 47 a_pmd.pmd"))
    assert document["command"] == "sme decode"
    assert document["value"] == "0x8000800002a001e3"
    (reading,) = document["readings"]
    assert reading["level"] == "pmd"
    assert reading["pa"] == "0x2a00000"
    assert reading["c_bit"] is True
    gdb.execute("set sme c-bit 47")
    assert json.loads(gdb.execute("sme decode --json a_pmd.pmd")) == document
    assert json.loads(gdb.execute("sme decode --c-bit 47 --json --level pmd a_pmd.pmd"))[
        "readings"
    ] == [reading]
    by_pte = json.loads(gdb.execute("sme decode --json --level pte a_pmd.pmd"))
    assert "PAT" in by_pte["readings"][0]["flags"]
    assert "__PAGE_KERNEL_LARGE" in gdb.execute("sme decode a_pmd.pmd")


def test_text_is_the_same_with_and_without_pygments() -> None:
    command = "sme decode 0x8000800002a001e3 --c-bit 47"
    with_it = batch(command)
    hidden = "python import sys; sys.modules['pygments'] = None"
    assert batch(hidden, command) == with_it
    assert "\033" not in with_it
    assert with_it.isascii()


def test_symbols_that_moved_are_asked_for_again(gdb: Gdb, program: Path) -> None:
    gdb.execute("python from gdb_sme.target.symbols import GdbSymbols")
    address = gdb.evaluate("(unsigned long)&main")

    def nearest(at: int) -> str:
        return gdb.execute(f"python print(GdbSymbols().nearest({at}))").strip()

    assert nearest(address) == "('main', 0)"
    gdb.execute(f"symbol-file -o 0x100000 {program}")
    assert nearest(address) == "None"
    assert nearest(address + 0x100000) == "('main', 0)"
    assert "main in section" in gdb.execute(f"info symbol {address + 0x100000}")


class Terminal:
    """gdb as a person has it, on a terminal that knows colours."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        clean = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        self.child: pexpect.spawn[str] = pexpect.spawn(
            "gdb",
            ["-nx", "-q", "-iex", f"source {PLUGIN}", *arguments],
            env={**clean, "TERM": "xterm-256color", **environment},
            encoding="utf-8",
            timeout=60,
            dimensions=(50, 200),
        )

    def decode(self) -> str:
        self.child.expect_exact("(gdb)")
        self.child.sendline("sme decode 0x8000800002a001e3 --c-bit 47")
        self.child.expect_exact("macro")
        text = str(self.child.before)
        self.child.sendline("quit")
        self.child.expect(pexpect.EOF)
        return text.partition("--c-bit 47")[2]


COLOUR = re.compile(r"\033\[[0-9;]*m")


def test_colour_on_a_terminal() -> None:
    assert len(COLOUR.findall(Terminal().decode())) > 5


@pytest.mark.parametrize("how", ["NO_COLOR", "style", "pygments"])
def test_no_colour_when_it_is_not_wanted(how: str) -> None:
    terminal = {
        "NO_COLOR": lambda: Terminal(NO_COLOR="1"),
        "style": lambda: Terminal("-iex", "set style enabled off"),
        "pygments": lambda: Terminal(
            "-iex", "python import sys; sys.modules['pygments'] = None"
        ),
    }[how]()  # fmt: skip
    text = terminal.decode()
    assert "bit 47: encrypted" in text
    # gdb colours its own prompt line in no case here; what is left is ours.
    assert COLOUR.findall(text) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""The arguments of scripts/sme-debug."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdb_sme.errors import UsageError
from gdb_sme.harness.boot import at_start, check_stop, emulate_command
from gdb_sme.harness.images import Image
from gdb_sme.harness.layout import GIB, Encryption, MachineConfig
from gdb_sme.harness.options import parse_arguments
from gdb_sme.harness.runner import USAGE, main


def test_all_options_are_taken(tmp_path: Path) -> None:
    script = tmp_path / "a.gdb"
    script.touch()
    words = (
        "--kernel bz --vmlinux vm --initrd ird --marker up --encryption sev --c-bit 51 --la57 "
        f"--smp 4 --memory 4G --kaslr --until shell -ex one -x {script} -ex three --batch "
        f"--firmware {script} --keep-logs logs --timeout 7.5"
    ).split()
    options = parse_arguments([*words, "--append", "a b"])
    assert (options.image, options.kernel, options.vmlinux) == (None, Path("bz"), Path("vm"))
    assert (options.initrd, options.marker) == (Path("ird"), "up")
    assert (options.encryption, options.c_bit, options.la57) == (Encryption.SEV, 51, True)
    assert (options.smp, options.memory, options.kaslr) == (4, 4 * GIB, True)
    assert options.firmware == script
    assert (options.until, options.append, options.batch) == ("shell", "a b", True)
    assert (options.keep_logs, options.timeout) == (Path("logs"), 7.5)
    assert options.commands == ("one", f"source {script}", "three")


def test_a_script_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gdb").touch()
    monkeypatch.chdir(tmp_path)
    options = parse_arguments(["--image", "i", "-x", "a.gdb"])
    assert options.commands == (f"source {tmp_path}/a.gdb",)


def test_what_is_left_out_has_a_default() -> None:
    options = parse_arguments(["--image", "debian-6.1"])
    assert (options.encryption, options.c_bit, options.smp) == (Encryption.NONE, 47, 1)
    assert (options.memory, options.until, options.batch) == (GIB // 2, "reset", False)
    assert options.commands == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "give one of --image NAME and --kernel BZIMAGE"),
        ("--image a --kernel b", "give one of --image NAME and --kernel BZIMAGE"),
        ("--image a --vmlinux b", "--vmlinux goes with --kernel"),
        ("--image a --initrd b", "--initrd goes with --kernel"),
        ("--image a --encryption tdx", "invalid choice: 'tdx'"),
        ("--image a --c-bit 52", "invalid choice: 52"),
        ("--image a --c-bit x", "invalid int value: 'x'"),
        ("--image a --smp 5", "invalid choice: 5"),
        ("--image a --memory 17G", "memory of 17G"),
        ("--image a --memory 1X", "size '1X'"),
        ("--image a --timeout 0", "--timeout is a number of seconds above 0"),
        ("--image a -x /nonexistent", "-x /nonexistent: no such file"),
        ("--image a --firmware /nonexistent", "--firmware /nonexistent: no such file"),
        ("--image a --what", "unrecognized arguments: --what"),
    ],
)
def test_wrong_arguments_get_one_line(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.startswith("sme-debug: ")
    assert captured.err.count("\n") == 1


def image(vmlinux: Path | None) -> Image:
    return Image("i", Path("bz"), vmlinux, None, "", None, "up", "")


@pytest.mark.parametrize("until", ["reset", "shell", "*0x100200", "start_kernel"])
def test_stops_that_can_be_reached(until: str) -> None:
    check_stop(MachineConfig(image(Path("vm"))), until)


def test_a_function_needs_symbols() -> None:
    with pytest.raises(UsageError, match="needs the kernel's symbols: give --vmlinux"):
        check_stop(MachineConfig(image(None)), "start_kernel")


def test_the_trace_starts_at_reset_behind_the_emulation() -> None:
    config = MachineConfig(image(None), encryption=Encryption.SME, c_bit=51)
    assert at_start(config, trace=True) == ["sme emulate sme --c-bit 51", "sme trace start"]
    assert at_start(config, trace=False) == ["sme emulate sme --c-bit 51"]
    assert at_start(MachineConfig(image(None)), trace=True) == ["sme trace start"]
    assert at_start(config, trace=True, kgdb=True) == ["sme trace start"]


def test_the_emulation_is_asked_for_by_its_command() -> None:
    config = MachineConfig(image(None), encryption=Encryption.SEV, c_bit=51)
    assert emulate_command(config) == "sme emulate sev --c-bit 51"
    assert emulate_command(MachineConfig(image(None))) is None

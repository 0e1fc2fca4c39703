# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/sme-debug on real kernels: stops, output, exit status, what it says when it fails."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.images import obtain
from gdb_sme.harness.layout import hand_command_line
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.conftest import DEADLINE, Runner

NO_USER_SPACE = "init=/nonexistent rdinit=/nonexistent"
LOGS = ["console.log", "qemu-command.txt", "qemu.log"]


def kept_logs(stderr: str) -> Path:
    """The directory that the last error message names."""
    match = re.search(r"; logs are in (\S+)\n\Z", stderr)
    assert match is not None, stderr
    path = Path(match[1])
    assert sorted(entry.name for entry in path.iterdir()) == LOGS
    return path


def test_batch_output_is_what_the_commands_print_and_nothing_else(runner: Runner) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--until", "start_kernel", "--batch"),
        *("-ex", "echo one\\n", "-ex", "print/x 16", "-ex", "python print('three')"),
    )
    assert (done.returncode, done.stdout) == (0, "one\n$1 = 0x10\nthree\n"), done.stderr
    assert runner.processes() == {}
    assert runner.left_behind() == []


def test_commands_and_scripts_run_in_the_order_given(runner: Runner, tmp_path: Path) -> None:
    script = tmp_path / "commands.gdb"
    script.write_text("echo two\\n\nprint 22\n")
    python = tmp_path / "commands.py"
    python.write_text("import gdb\nprint('four')\n")
    done = runner.run(
        *("--image", "rfc-v2", "--batch", "-ex", "echo one\\n", "-x", str(script)),
        *("-ex", "echo three\\n", "-x", str(python), "-ex", "echo five\\n"),
    )
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n$1 = 22\nthree\nfour\nfive\n")


def test_a_failed_command_gives_1_and_the_next_ones_run(runner: Runner) -> None:
    done = runner.run(
        *("--image", "rfc-v2", "--batch", "-ex", "echo one\\n", "-ex", "print no_such_symbol"),
        *("-ex", "echo three\\n"),
    )
    assert (done.returncode, done.stdout) == (1, "one\nthree\n")
    assert 'No symbol "no_such_symbol" in current context.' in done.stderr
    assert "sme-debug: `print no_such_symbol` failed; logs are in" in done.stderr
    assert "-machine" in (kept_logs(done.stderr) / "qemu-command.txt").read_text()


def test_a_script_that_fails_gives_1(runner: Runner, tmp_path: Path) -> None:
    script = tmp_path / "commands.gdb"
    script.write_text("echo one\\n\nprint no_such_symbol\necho never\\n\n")
    done = runner.run("--image", "rfc-v2", "--batch", "-x", str(script), "-ex", "echo two\\n")
    assert (done.returncode, done.stdout) == (1, "one\ntwo\n")


@pytest.mark.parametrize(("command", "status"), [("quit 7", 7), ("quit", 0)])
def test_quit_gives_its_status(runner: Runner, command: str, status: int) -> None:
    done = runner.run(
        *("--image", "rfc-v2", "--batch", "-ex", "echo one\\n", "-ex", command),
        *("-ex", "echo never\\n"),
    )
    assert (done.returncode, done.stdout) == (status, "one\n")
    assert runner.left_behind() == []


def test_without_until_it_stops_at_reset(runner: Runner) -> None:
    done = runner.run("--image", "debian-6.1", "--batch", "-ex", "output/x $pc", "-ex", "p $cs")
    assert (done.returncode, done.stdout) == (0, "0xfff0$1 = 61440\n")


def test_until_an_address(runner: Runner) -> None:
    done = runner.run(
        "--image", "debian-6.1", "--until", "*0x100200", "--batch", "-ex", "output/x $pc"
    )
    assert (done.returncode, done.stdout) == (0, "0x100200"), done.stderr


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
@pytest.mark.parametrize(
    ("arguments", "mask"),
    [
        ("", 0),
        ("--encryption sme", 1 << 47),
        ("--encryption sev --c-bit 51 --la57 --smp 2 --memory 4G", 1 << 51),
        ("--encryption sme --c-bit 43 --memory 5G", 1 << 43),
    ],
)
def test_until_shell_with_the_encryption_asked_for(
    runner: Runner, image: str, arguments: str, mask: int
) -> None:
    done = runner.run(
        *("--image", image, *arguments.split(), "--until", "shell", "--batch"),
        *("-ex", "output/x sme_me_mask", "-ex", "echo \\n", "-ex", "output/x $cr3 >> 43 << 43"),
        *("--keep-logs", str(runner.temporary / "logs")),
    )
    assert (done.returncode, done.stdout) == (0, f"{mask:#x}\n{mask:#x}"), done.stderr
    assert runner.left_behind() == ["logs"]
    console = (runner.temporary / "logs" / "console.log").read_text()
    active = re.findall(r"Memory Encryption Features active: AMD (\w+)", console)
    assert active == [word.upper() for word in arguments.split() if word in ("sme", "sev")]


def test_until_shell_with_kaslr(runner: Runner, tmp_path: Path) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--kaslr", "--until", "shell", "--batch"),
        *("-ex", "echo up\\n", "--keep-logs", str(tmp_path / "logs")),
    )
    assert (done.returncode, done.stdout) == (0, "up\n"), done.stderr
    assert "KASLR disabled" not in (tmp_path / "logs" / "console.log").read_text()


@pytest.mark.parametrize("more", ["", "panic=1", "panic=1 root=/dev/nonexistent"])
def test_a_panic_ends_the_boot_at_once(runner: Runner, more: str) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--append", f"{NO_USER_SPACE} {more}"),
        *("--until", "shell", "--batch", "-ex", "echo never\\n"),
    )
    assert (done.returncode, done.stdout) == (125, "")
    shown = [line for line in done.stderr.splitlines() if line.startswith("  [")]
    assert "Kernel panic - not syncing" in shown[0]
    assert any("Call Trace:" in line for line in shown)
    assert "sme-debug: the kernel gave up: " in done.stderr
    assert "Kernel panic" in (kept_logs(done.stderr) / "console.log").read_text()
    assert runner.processes() == {}


def test_a_panic_under_a_command_is_shown_and_can_be_looked_at(runner: Runner) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--append", NO_USER_SPACE, "--until", "start_kernel"),
        *("--batch", "-ex", "continue", "-ex", "info symbol panic", "-ex", "echo end\\n"),
    )
    assert done.returncode == 1
    assert "Program received signal SIGINT" in done.stdout
    assert done.stdout.endswith("panic in section .text\nend\n")
    assert "Kernel panic - not syncing" in done.stderr
    assert "sme-debug: the kernel gave up in `continue`; logs are in" in done.stderr


def test_a_guest_that_resets_under_a_command_fails_it(runner: Runner) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--append", f"{NO_USER_SPACE} panic=1"),
        *("--until", "start_kernel", "--batch", "-ex", "continue", "-ex", "echo end\\n"),
    )
    assert (done.returncode, done.stdout.endswith("end\n")) == (1, True), done.stderr


def test_a_triple_fault_under_a_command_fails_it(runner: Runner) -> None:
    # Nothing handles a page fault as early as that.
    done = runner.run(
        *("--image", "debian-6.1", "--until", "x86_64_start_kernel", "--batch"),
        *("-ex", "set $rip = 0", "-ex", "continue", "-ex", "info registers rip"),
    )
    assert done.returncode == 1, done.stderr
    assert "The program has no registers now." in done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [("poweroff", "the guest powered off"), ("reboot", "the guest reset itself")],
)
def test_a_guest_that_ends_while_booting(runner: Runner, command: str, told: str) -> None:
    done = runner.run(
        *("--image", "debian-6.1", "--append", f"rdinit=/bin/busybox -- {command} -f"),
        *("--until", "shell", "--batch", "-ex", "echo never\\n"),
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert f"sme-debug: QEMU ended before the kernel reached shell: {told}" in done.stderr
    kept_logs(done.stderr)


def test_a_boot_that_takes_too_long_is_ended(runner: Runner) -> None:
    done = runner.run(
        *("--image", "rfc-v2", "--until", "*0x1", "--timeout", "10"),
        *("--batch", "-ex", "echo never\\n"),
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "sme-debug: 10 s passed before the kernel reached *0x1" in done.stderr
    kept_logs(done.stderr)


def test_a_command_that_takes_too_long_is_ended(runner: Runner) -> None:
    done = runner.run(
        *("--image", "rfc-v2", "--timeout", "5", "--batch"),
        *("-ex", "echo one\\n", "-ex", "python import time; time.sleep(1000)"),
    )
    assert (done.returncode, done.stdout) == (1, "one\n")
    assert "time.sleep(1000)` took more than 5 s" in done.stderr


def test_a_location_that_the_kernel_lacks(runner: Runner) -> None:
    done = runner.run("--image", "debian-6.1", "--until", "no_such_function", "--batch")
    assert (done.returncode, done.stdout) == (125, "")
    assert "sme-debug: the kernel has no location no_such_function" in done.stderr


def test_an_image_that_is_not_there(runner: Runner) -> None:
    done = runner.run("--image", "no-such-image", "--batch")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert "no-such-image" in done.stderr


def test_the_users_own_kernel(runner: Runner) -> None:
    image = obtain("debian-6.12")
    done = runner.run(
        *("--kernel", str(image.kernel), "--vmlinux", str(image.vmlinux), "--encryption", "sme"),
        *("--until", "shell", "--batch", "-ex", "output/x sme_me_mask"),
    )
    assert (done.returncode, done.stdout) == (0, "0x800000000000"), done.stderr


def test_the_users_own_initramfs_and_no_symbols(runner: Runner) -> None:
    image = obtain("debian-6.12")
    done = runner.run(
        *("--kernel", str(image.kernel), "--initrd", str(image.initrd), "--batch"),
        *("--marker", "Run /init as init process", "--until", "shell", "-ex", "echo up\\n"),
    )
    assert (done.returncode, done.stdout) == (0, "up\n"), done.stderr


def test_a_kernel_file_that_is_not_there(runner: Runner) -> None:
    done = runner.run("--kernel", "/nonexistent/bzImage", "--batch")
    assert (done.returncode, done.stdout) == (125, "")
    assert "/nonexistent/bzImage" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_function_without_symbols_is_refused(runner: Runner) -> None:
    image = obtain("debian-6.12")
    done = runner.run("--kernel", str(image.kernel), "--until", "start_kernel", "--batch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs the kernel's symbols: give --vmlinux" in done.stderr


def test_a_person_can_do_the_same_by_hand(runner: Runner) -> None:
    config = machine_config("debian-6.1", "sme", memory="4G")
    command = hand_command_line(config, "guest-ram", "gdb.sock")
    socket = runner.temporary / "gdb.sock"
    with subprocess.Popen(
        ["sh", "-c", f"exec {command}"],
        cwd=runner.temporary,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=runner.environment,
    ) as qemu:
        try:
            while not socket.exists():
                assert qemu.poll() is None
            with Gdb([str(config.image.vmlinux)]) as gdb:
                gdb.execute(f"source {PLUGIN}")
                gdb.execute(f"target remote {socket}")
                gdb.execute("sme emulate sme --c-bit 47")
                gdb.execute("hbreak start_kernel")
                assert "start_kernel" in gdb.execute("continue")
                assert gdb.evaluate("sme_me_mask") == 1 << 47
                assert gdb.evaluate("$cr3") >> 43 << 43 == 1 << 47
                gdb.execute("kill")
            console, _ = qemu.communicate(timeout=DEADLINE)
        finally:
            qemu.kill()
    assert b"KASLR disabled" in console
    assert runner.left_behind() == ["guest-ram"]

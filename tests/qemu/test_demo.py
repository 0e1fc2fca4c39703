# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/demo: what it shows, its exit status, and what it leaves."""

from __future__ import annotations

import os
import sys

import pexpect
import pytest

from tests.qemu.conftest import DEADLINE, SCRIPTS, Runner


@pytest.mark.parametrize(
    ("image", "early"), [("debian-6.1", "early_top_pgt"), ("rfc-v2", "early_level4_pgt")]
)
def test_all_is_right(runner: Runner, image: str, early: str) -> None:
    done = runner.run("--image", image, script="demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CR3 == __sme_pa({early})" in done.stdout
    assert "AMD SME          active  C-bit 47" in done.stdout
    assert "ok  early_pmd_flags received the mask before the first early fault" in done.stdout
    assert "CR3 == __sme_pa(loaded_mm->pgd)" in done.stdout or image == "rfc-v2"
    assert ("The bug is found." in done.stdout) is (image == "rfc-v2")
    assert "\x1b" not in done.stdout
    assert runner.left_behind() == []


def test_a_kernel_with_a_bug_is_not_called_right(runner: Runner) -> None:
    done = runner.run("--image", "rfc-v2:no-protection-map", script="demo")
    assert done.returncode == 1
    assert "the C-bit of 0x400000 is wrong" in done.stderr
    assert "WRONG at: the whole early boot" in done.stdout
    assert "; the running system" in done.stdout
    assert "All of this is right" not in done.stdout


def test_interactive(runner: Runner) -> None:
    with pexpect.spawn(
        str(SCRIPTS / "demo"),
        ["--image", "rfc-v2", "--interactive"],
        env=runner.environment,
        encoding="utf-8",
        timeout=DEADLINE,
        dimensions=(50, 200),
    ) as terminal:
        terminal.logfile_read = sys.stdout
        terminal.expect_exact("(gdb) ")
        terminal.sendline("sme cr3 --expect init")
        # In colour, since this is a terminal.
        terminal.expect(r"\x1b\[\d+mCR3 == __sme_pa\(init_level4_pgt\)")
        terminal.expect_exact("(gdb) ")
        terminal.sendline("quit")
        terminal.expect_exact(pexpect.EOF)
        terminal.close()
        assert os.waitstatus_to_exitcode(terminal.status) == 0
    runner.wait_until_gone()
    assert runner.left_behind() == []

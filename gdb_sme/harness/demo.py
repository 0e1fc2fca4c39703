# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/demo``: the main job at two stops of one kernel, every step a command to repeat."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SME_DEBUG = "scripts/sme-debug"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Step:
    """A command of gdb, what it is given for, and whether it only verifies what was shown."""

    why: str
    command: str


def _check(condition: str, wrong: str) -> str:
    """A gdb command that fails with the text ``wrong`` unless the expression is not zero."""
    return f"python if not int(gdb.parse_and_eval({condition!r})): raise gdb.GdbError({wrong!r})"


@dataclass(frozen=True, slots=True)
class Stop:
    """A place of the boot and what is looked at there.

    Attributes:
        title: what it shows.
        image: the image to boot.
        until: where to stop.
        steps: the commands that are shown.
        checks: commands that only verify.
        finds: text of the error that the last step must end with, for a kernel that has a bug.
    """

    title: str
    image: str
    until: str
    steps: tuple[Step, ...]
    checks: tuple[str, ...] = ()
    finds: str = ""


def _stops(image: str) -> tuple[Stop, ...]:
    rfc = image.startswith("rfc-v2")
    early_table, init_table = (
        ("early_level4_pgt", "init_level4_pgt") if rfc else ("early_top_pgt", "init_top_pgt")
    )
    early = Stop(
        f"early boot: CR3 holds {early_table}",
        image,
        "start_kernel",
        (
            Step("The encryption state on one screen.", "sme status"),
            Step(
                f"Is CR3 == __sme_pa({early_table})? Address and C-bit.", "sme cr3 --expect early"
            ),
            Step(
                "The walk to the table that the kernel will switch to: every entry has the C-bit.",
                f"sme pte &{init_table}",
            ),
            Step(
                "early_pmd_flags, from which an early page fault makes its entry, has ENC by now.",
                "sme decode early_pmd_flags --level pmd",
            ),
        ),
        (
            _check(f"$c_bit(&{init_table})", f"{init_table} is not mapped encrypted"),
            _check("early_pmd_flags & $sme_me_mask()", "early_pmd_flags lacks the mask"),
        ),
    )
    if rfc:
        page, why = "0x400000", "A page of user space: protection_map gave it the C-bit."
    else:
        page = "&__start_bss_decrypted"
        why = ".bss..decrypted is shared with a hypervisor: no C-bit, by design."
    running = Stop(
        "the running system: user space is up",
        image,
        "shell",
        (
            Step("The same screen now.", "sme status"),
            Step("CR3 of every CPU against the tables that the kernel has loaded.", "sme cr3"),
            Step("Kernel text is encrypted.", "sme pte &_text"),
            Step(why, f"sme pte {page}"),
        ),
        (
            _check("$c_bit(&_text)", "the kernel's text is not mapped encrypted"),
            _check(f"$c_bit({page}) == {int(rfc)}", f"the C-bit of {page} is wrong"),
            "python import json; "
            "assert json.loads(gdb.execute('sme cr3 --json', to_string=True))['passed'], 'sme cr3'",
        ),
    )
    end = "cpu_startup_entry" if rfc else "rest_init"
    timeline = Stop(
        "the whole early boot: sme_me_mask, early_pmd_flags, CR3 and early faults in their order",
        image,
        "reset",
        _trace(end),
    )
    broken = Stop(
        "the same on a kernel that has a bug of the review: a page fault comes too early",
        "rfc-v2:late-flags",
        "reset",
        _trace("cpu_startup_entry"),
        finds="mapped without the C-bit",
    )
    return (early, timeline, broken, running) if rfc else (early, timeline, running)


def _trace(end: str) -> tuple[Step, ...]:
    return (
        Step(
            "Record from the kernel's entry on; the session is not stopped.",
            "sme trace start --quiet",
        ),
        Step("Where to look at it.", f"hbreak {end}"),
        Step("Boot.", "continue"),
        Step("The timeline, and the verdicts on it.", "sme trace check"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when everything shown is right."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--image", default="debian-6.1", help="an image that scripts/images lists")
    parser.add_argument(
        "--interactive", action="store_true", help="stay at gdb's prompt, in the running system"
    )
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    os.chdir(_ROOT)
    stops = _stops(args.image)
    _say(f"gdb_sme: {args.image} with AMD SME active, under plain QEMU. No AMD hardware is needed.")
    if args.interactive:
        return _interactive(args.image, stops[-1])
    wrong = [stop.title for stop in stops if not _show(stop)]
    _say("")
    if wrong:
        _say(f"WRONG at: {'; '.join(wrong)}")
        return 1
    _say("All of this is right. To go on by hand, with gdb's prompt:")
    _say(f"  scripts/demo --image {args.image} --interactive")
    _say(f"  {_command(args.image, 'start_kernel')}")
    _say("In any gdb that is attached to QEMU: source gdb_sme/plugin.py, then: help sme")
    return 0


def _command(image: str, until: str) -> str:
    return shlex.join([_SME_DEBUG, "--image", image, "--encryption", "sme", "--until", until])


def _show(stop: Stop) -> bool:
    """Show one stop; return whether all was as it should be."""
    command = _command(stop.image, stop.until)
    _say(f"\n== {stop.title}")
    _say(f"$ {command}")
    arguments = [sys.executable, *shlex.split(command), "--batch"]
    for step in stop.steps:
        arguments += ["-ex", f"echo \\n# {step.why}\\n(gdb) {step.command}\\n"]
        arguments += ["-ex", step.command]
    for check in stop.checks:
        arguments += ["-ex", check]
    if not stop.finds:
        return not subprocess.run(arguments, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="gdb-sme-demo-") as logs:  # of a failure that is wanted
        arguments += ["--keep-logs", logs]
        run = subprocess.run(arguments, check=False, stderr=subprocess.PIPE, text=True)
    found = run.returncode == 1 and stop.finds in run.stderr
    _say("The bug is found." if found else run.stderr)
    return found


def _interactive(image: str, stop: Stop) -> int:
    _say("At the prompt try: " + ", ".join(step.command for step in stop.steps) + ", help sme")
    arguments = shlex.split(_command(image, stop.until))
    os.execv(sys.executable, [sys.executable, *arguments])


def _say(text: str) -> None:
    print(text, flush=True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs make of a dump: crash, and libkdumpfile, which have walkers of their own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("vtop.c")

#: crash 8.0.2 does not know SLOB, the small kernels' allocator. From 6.2 on it is of no use: it
#: finds no size of the IRQ stacks (the symbols moved into pcpu_hot), allocates 0 bytes for one and
#: reads 8 KiB into them.
_CRASH = ("crash", "-s", "--no_kmem_cache")

_CRASH_LEVEL = re.compile(
    r"(?:PGD|P4D|PUD|PMD|PTE): [0-9a-f]+ => ([0-9a-f]+)|PAGE DIRECTORY: ([0-9a-f]+)"
)
_CRASH_ANSWER = re.compile(r"^([0-9a-f]+) +([0-9a-f]+) *$", re.MULTILINE)

#: The entries from the top level down to the last that is present, and the physical address.
Answer = tuple[list[int], int | None]


def answer(walk: dict[str, Any], mask: int = 0) -> Answer:
    """A walk of gdb_sme's as those of the others; ``mask`` is taken out of its entries."""
    raws = [int(level["raw"], 16) for level in walk["levels"]]
    pa = walk["pa"]
    return [raw & ~mask for raw in raws if raw & 1], None if pa is None else int(pa, 16)


def crash_walks(vmlinux: Path, dump: Path, addresses: Sequence[int]) -> list[Answer]:
    """How crash walks addresses of a kernel before 6.2.

    It shows entries without the encryption bit, whose place it has from the dump's VMCOREINFO. User
    addresses are beyond it: its mm_struct is that of kernels before 6.1.
    """
    commands = "".join(f"vtop -k {va:x}\n" for va in addresses)
    said = subprocess.run(
        [*_CRASH, vmlinux, dump],
        input=f"set scroll off\n{commands}quit\n",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    ).stdout
    answers = said.split("VIRTUAL  ")[1:]
    assert len(answers) == len(addresses), said
    walks: list[Answer] = []
    for va, answer in zip(addresses, answers, strict=True):
        entries = [int(raw or top, 16) for raw, top in _CRASH_LEVEL.findall(answer)]
        found = _CRASH_ANSWER.search(answer)
        assert found is None or int(found[1], 16) == va, answer
        walks.append((entries, int(found[2], 16) if found else None))
    return walks


def libkdumpfile_walks(
    directory: Path, dump: Path, root: int, addresses: Sequence[int]
) -> list[Answer]:
    """How libkdumpfile walks addresses, from the table at physical address ``root``.

    ``directory`` is for the program that asks it.
    """
    program = directory / "vtop"
    libraries = ("-lkdumpfile", "-laddrxlat")
    subprocess.run(["gcc", "-Wall", "-o", program, _SOURCE, *libraries], check=True)
    said = subprocess.run(
        [program, dump, f"{root:#x}", *(f"{va:#x}" for va in addresses)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    walks: list[Answer] = []
    for line in said.splitlines():
        entries, found, pa = line.partition("-> ")
        words = entries.split() if found else re.findall(r"^(?:0x[0-9a-f]+ )*", line)[0].split()
        walks.append(([int(word, 16) for word in words], int(pa, 16) if found else None))
    assert len(walks) == len(addresses), said
    return walks

# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/json.md against the documents: every member is described, and none that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import LEVEL4
from gdb_sme.linux.cr3check import check_cr3
from gdb_sme.linux.decode import decode
from gdb_sme.linux.status import status
from gdb_sme.linux.translate import root_of_cpu, translate
from gdb_sme.render import cr3, walk
from gdb_sme.render import decode as decode_view
from gdb_sme.render import json as documents
from gdb_sme.render import status as status_view
from tests.unit.boot_kernel import Booting
from tests.unit.fake_kernel import TEXT, C

DOCS = Path(__file__).resolve().parents[2] / "docs" / "json.md"
Payload = dict[str, object]


def status_documents() -> Iterator[Payload]:
    machine = Booting()
    yield status_view.payload(status(machine.kernel(), "data", "vmlinux"))
    yield status_view.payload(status(machine.kernel(place=False), "data", None))
    machine.run_task()
    blind = machine.kernel()
    blind.cpus = tuple(replace(cpu, cr3=None) for cpu in blind.cpus)
    yield status_view.payload(status(blind, "data", "vmlinux"))


def pte_documents() -> Iterator[Payload]:
    machine = Booting()
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    for va in (TEXT, 0x1000):
        yield walk.payload(translate(kernel, va, cpu, root_of_cpu(kernel, cpu)))


def cr3_documents() -> Iterator[Payload]:
    machine = Booting()
    yield cr3.payload(check_cr3(machine.kernel()))
    machine.cpu["cr0"] = 0x11
    yield cr3.payload(check_cr3(machine.kernel()))


def decode_documents() -> Iterator[Payload]:
    for value in (0x8000800002A001E3, 0x0FFFFFFFFFDBB600, 0x800002A10000):
        yield decode_view.payload(decode(value, None, EncryptionBit(C), LEVEL4))


DOCUMENTS = {
    "sme status": status_documents,
    "sme pte": pte_documents,
    "sme cr3": cr3_documents,
    "sme decode": decode_documents,
}


def members(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every member below ``value`` by its path, as docs/json.md writes it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            at = f"{path}.{name}" if path else name
            yield at, inner
            yield from members(inner, at)
    if isinstance(value, list):
        for inner in value:
            yield from members(inner, f"{path}[]")


def described(command: str) -> dict[str, str]:
    """Members and their types as docs/json.md has them."""
    section = DOCS.read_text().partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (\w+) \|", section, re.MULTILINE))


TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "hex": (str,),
    "number": (int,),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}


@pytest.mark.parametrize("command", DOCUMENTS)
def test_documents_are_as_described(command: str) -> None:
    known = described(command)
    seen: dict[str, object] = {}
    for payload in DOCUMENTS[command]():
        for path, value in members(payload):
            seen.setdefault(path, None)
            if value is None:
                continue
            seen[path] = value
            kind = known.get(path, "nothing")
            assert kind in TYPES, f"{command}: {path} is not described"
            assert isinstance(value, TYPES[kind]), f"{path}: {value!r} is no {kind}"
            assert kind == "boolean" or not isinstance(value, bool), f"{path}: {value!r}"
            if kind == "hex":
                assert re.fullmatch(r"0x[0-9a-f]+", str(value)), f"{path}: {value!r}"
    assert sorted(known) == sorted(seen)


def test_one_line_with_schema_and_command_first() -> None:
    payload = next(status_documents())
    text = documents.render("sme status", payload)
    assert "\n" not in text
    assert list(json.loads(text))[:2] == ["schema", "command"]
    assert json.loads(text)["schema"] == "gdb_sme/1"
    assert set(described("Every document")) == {"schema", "command"}


def test_the_words_for_stages_are_those_of_the_docs() -> None:
    from gdb_sme.linux.stage import Stage

    text = DOCS.read_text()
    for stage in Stage:
        assert f"`{stage.name.lower()}`" in text


def test_a_member_more_is_noticed() -> None:
    machine = Booting()
    found = status(machine.kernel(), "data", "vmlinux")
    payload = {**status_view.payload(replace(found, target="x")), "new": 1}
    assert "new" not in described("sme status")
    assert "new" in dict(members(payload))

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from gdb_sme.render import json as json_output
from gdb_sme.render import terminal
from gdb_sme.render.document import (
    Document,
    Line,
    bad,
    comment,
    good,
    keyword,
    name,
    number,
    plain,
    spaced,
    table,
    verdict,
)

DOCUMENT = Document(
    (
        (number("0x1000"), plain("  "), name("init_top_pgt")),
        (keyword("pgd"), plain(" is "), bad("wrong")),
        (),
        (comment("by design"), plain(" and "), good("ok")),
    )
)
TEXT = "0x1000  init_top_pgt\npgd is wrong\n\nby design and ok"


def test_plain_text() -> None:
    assert str(DOCUMENT) == TEXT
    assert terminal.render(DOCUMENT) == TEXT


def test_documents_add_up() -> None:
    assert str(DOCUMENT + Document(((plain("end"),),))) == TEXT + "\nend"


def test_colour_changes_nothing_but_colour() -> None:
    coloured = terminal.render(DOCUMENT, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == TEXT


def test_what_is_wrong_has_a_colour_of_its_own() -> None:
    one = [terminal.render(Document(((span("x"),),)), colour=True) for span in (plain, bad, good)]
    assert len(set(one)) == 3


def test_without_pygments_the_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m == "pygments" or m.startswith("pygments.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pygments", None)  # as when it is not installed
    assert terminal.render(DOCUMENT, colour=True) == TEXT


def test_importing_the_views_imports_no_pygments() -> None:
    code = (
        "import sys, gdb_sme.render.terminal, gdb_sme.render.walk, gdb_sme.render.decode; "
        "sys.exit('pygments' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("ok", "Generic.Inserted"),
        ("pass", "Generic.Inserted"),
        ("FAIL", "Generic.Error"),
        ("by design", "Comment"),
        ("n/a", "Comment"),
    ],
)
def test_verdict(word: str, token: str) -> None:
    assert verdict(word) == (token, word)


def test_spaced() -> None:
    assert str(Document((spaced([name("RW"), name("NX")]),))) == "RW NX"
    assert str(Document((spaced([name("RW"), name("NX")], ", "),))) == "RW, NX"
    assert spaced([]) == ()


def test_table_aligns_and_leaves_nothing_trailing() -> None:
    rows: list[list[Line]] = [
        [(), (plain("index"),), (plain("flags"),)],
        [(keyword("CR3"),), (), (name("init_top_pgt"),), ()],
        [(keyword("p4d"),), (plain("5"),)],
    ]
    lines = str(Document(table(rows, right=frozenset({1})))).split("\n")
    assert lines == ["     index  flags", "CR3         init_top_pgt", "p4d      5"]


def test_an_empty_table() -> None:
    assert table([]) == ()


def test_json_is_one_versioned_line() -> None:
    text = json_output.render("sme pte", {"va": "0x1000", "encrypted": None})
    assert "\n" not in text
    document = json.loads(text)
    assert document == {
        "schema": "gdb_sme/1", "command": "sme pte", "va": "0x1000", "encrypted": None,
    }  # fmt: skip
    assert list(document) == ["schema", "command", "va", "encrypted"]


def test_json_hexadecimal() -> None:
    assert json_output.hexadecimal(0x8000030B6000) == "0x8000030b6000"
    assert json_output.hexadecimal(0) == "0x0"
    assert json_output.hexadecimal(None) is None

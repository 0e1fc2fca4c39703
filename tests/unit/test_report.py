# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's map, and its three forms: well-formed, escaped, complete, alone."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gdb_sme.linux import addressmap
from gdb_sme.linux.addressmap import Piece, Row, State
from gdb_sme.linux.audit import audit
from gdb_sme.linux.audit.model import Audit, Outcome, Place, Result, Verdict
from gdb_sme.linux.cr3check import check_cr3
from gdb_sme.linux.layout import Region
from gdb_sme.linux.status import status
from gdb_sme.linux.trace import Timeline
from gdb_sme.render import audit as audit_view
from gdb_sme.render import html, report, svg
from gdb_sme.render.report import Report
from tests.unit.fake_kernel import DIRECT, LARGE, PAGE, VMALLOC, C, Machine


def made(machine: Machine, target: str = "data", trace: Timeline | None = None) -> Report:
    kernel = machine.kernel()
    result, view = audit(kernel, kernel.cpus[0])
    return Report(
        "Linux version <6.1> & more",
        status(kernel, target, "vmlinux"),
        check_cr3(kernel),
        result,
        addressmap.rows(view, result),
        trace,
    )


def broken() -> Machine:
    machine = Machine()
    machine.flip(DIRECT + 0xA00000, C, 3)
    return machine


_VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words += data


def test_the_map_has_a_row_a_region_and_the_fault_in_its_place() -> None:
    rows = made(broken()).rows
    names = [row.region.name for row in rows]
    assert names == ["user space", "direct map", "vmalloc", "kernel image", "fixmap"]
    (fault,) = [p for row in rows for p in row.pieces if p.state is State.FAULT]
    assert (fault.va, fault.end) == (DIRECT + 0xA00000, DIRECT + 0xC00000)
    assert fault.note.startswith("direct-map-encrypted")
    direct = rows[1]
    assert {p.note for p in direct.pieces if p.state is State.OPEN} == {
        "real-mode trampoline", "VGA window", "atomic_pool_kernel", "swiotlb",
    }  # fmt: skip
    image = rows[3]
    assert [p.note for p in image.pieces if p.state is State.OPEN] == [".bss..decrypted"]


def test_a_fault_inside_a_range_is_cut_out_of_it() -> None:
    machine = Machine()
    kernel = machine.kernel()
    result, view = audit(kernel, kernel.cpus[0])
    place = Place(VMALLOC + 0x9000, None, PAGE, "made up")
    failing = replace(
        result,
        results=(Result(result.results[0].rule, Outcome(Verdict.FAIL, "1 place", (place,))),),
    )
    row = next(r for r in addressmap.rows(view, failing) if r.region.name == "vmalloc")
    assert [(p.va, p.state) for p in row.pieces][-3:] == [
        (VMALLOC + 0x8000, State.ENCRYPTED),
        (VMALLOC + 0x9000, State.FAULT),
        (VMALLOC + 0xA000, State.ENCRYPTED),
    ]


def test_what_lies_between_the_regions_is_drawn_too() -> None:
    machine = Machine()
    machine.map(0xFFFF900000000000 + (1 << 46), 0x1A00000, PAGE)
    machine.map(0xFFFFFF8000000000, 0x1A00000, PAGE)
    assert "elsewhere" in [row.region.name for row in made(machine).rows]


def test_without_encryption_nothing_is_called_a_fault_or_by_design() -> None:
    states = {p.state for row in made(Machine(mask=0)).rows for p in row.pieces}
    assert states == {State.PLAIN}


def test_a_crowded_row_is_drawn_coarser_and_keeps_its_sums() -> None:
    machine = Machine()
    for number in range(40):
        machine.map(VMALLOC + 0x100000 + number * 0x2000, 0x1A00000, PAGE)
    kernel = machine.kernel()
    result, view = audit(kernel, kernel.cpus[0])
    fine, rough, roughest = (
        next(r for r in addressmap.rows(view, result, most) if r.region.name == "vmalloc")
        for most in (600, 8, 1)
    )
    assert not fine.coarse
    assert rough.coarse
    assert len(roughest.pieces) <= len(rough.pieces) < len(fine.pieces)
    for row in (rough, roughest):
        assert row.mapped(*State) == fine.mapped(*State)


def test_rights_put_together_are_the_most_of_any() -> None:
    pieces = tuple(
        Piece(n * LARGE, n * LARGE + PAGE, PAGE, State.ENCRYPTED, rights, False)
        for n, rights in enumerate(("r--", "rw-", "r-x"))
    )
    row = addressmap._row(Region("x", 0, 1 << 40), pieces, 1)
    assert [p.rights for p in row.pieces] == ["rwx"]


def test_pieces_fill_the_bar_in_order_without_overlap() -> None:
    for row in made(Machine()).rows:
        drawn = svg.layout(row)
        assert drawn[0].x == 0
        for one, other in itertools.pairwise(drawn):
            assert one.width > 0
            assert other.x >= one.x + one.width - 1e-6
        assert drawn[-1].x + drawn[-1].width == pytest.approx(svg.BAR_WIDTH)


def test_the_svg_is_well_formed_alone_and_escaped() -> None:
    drawing = svg.document(made(broken()).rows, 'a <b> & "c"', "<sub>")
    root = ET.fromstring(drawing)
    assert root.get("aria-label") == 'a <b> & "c"'
    assert "script" not in drawing
    assert not re.search(r"(href|src|url)\s*[=(]", drawing)
    titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any("direct-map-encrypted: no C-bit" in each for each in titles)
    assert "prefers-color-scheme:dark" in drawing


def test_the_page_nests_loads_nothing_and_escapes() -> None:
    text = html.page(made(broken(), target='<script>alert("x")</script>'))
    page = Page(text)
    assert '<script>alert("x")</script>' in page.words
    assert "Linux version <6.1> & more" in page.words
    assert [tag for tag, _ in page.attributes].count("script") == 1
    for _, attributes in page.attributes:
        assert not {"src", "href", "onclick", "onload"} & attributes.keys()
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text


def test_the_page_has_every_rule_and_every_piece() -> None:
    result = made(broken())
    page = Page(html.page(result))
    for each in result.audit.results:
        assert each.rule.name in page.words
        assert each.rule.source in page.words
    for row in result.rows:
        for piece in row.pieces:
            assert f"{piece.va:#018x}" in page.words
    assert "1 fail" in page.words
    labels = [a.get("aria-label") or "" for tag, a in page.attributes if tag == "svg"]
    assert any(each.startswith("direct map: ") for each in labels)


def test_the_page_has_the_trace_if_there_is_one() -> None:
    assert "Trace of early boot" not in html.page(made(Machine()))
    trace = Timeline((), True, "ended", ("nothing happened & was seen",))
    assert "nothing happened &amp; was seen" in html.page(made(Machine(), trace=trace))


def test_the_text_has_all_sections() -> None:
    text = report.text(made(broken()))
    for title in ("Address space", "Audit", "Status", "CR3"):
        assert f"\n{title}\n{'-' * len(title)}\n" in text
    assert "FAIL  direct-map-encrypted" in text
    assert "direct map: " in text


def test_a_coarse_row_says_so() -> None:
    row = Row(
        Region("r", 0, PAGE), (Piece(0, PAGE, PAGE, State.OPEN, "-w-", True, "n"),), coarse=True
    )
    page = Page(html.page(replace(made(Machine()), rows=(row,))))
    assert "pieces put together" in page.words
    assert "r: 4 KiB not encrypted, by design" in svg.summary(row)
    assert svg.describe(row.pieces[0]).endswith("(n)")


def many(result: Audit, count: int) -> Audit:
    places = tuple(Place(n * PAGE, n * PAGE, PAGE, "bad") for n in range(count))
    first = result.results[0]
    return replace(
        result, results=(Result(first.rule, Outcome(Verdict.FAIL, f"{count} places", places)),)
    )


def test_the_screen_shows_some_places_and_json_all() -> None:
    result = many(made(Machine()).audit, 20)
    text = str(audit_view.text(result))
    assert text.count(": bad") == audit_view.SHOWN
    assert "and 4 more" in text
    assert "0 pass, 1 fail, 0 not applicable" in text
    payload = json.loads(json.dumps(audit_view.payload(result)))
    assert len(payload["rules"][0]["places"]) == 20
    assert payload["passed"] is False
    assert "and 4 more" in html.page(replace(made(Machine()), audit=result))


def test_the_audit_on_the_screen() -> None:
    machine = broken()
    text = str(audit_view.text(made(machine).audit))
    entry = machine.entry(DIRECT + 0xA00000, 3)
    raw = machine.get(entry)
    assert (
        "0xffff888000a00000-0xffff888000bfffff -> 0x00a00000 "
        f"(2 MiB pmd at {entry:#010x} = {raw:#018x}): no C-bit" in text
    )
    assert "source: PAGE_KERNEL" in text
    machine.set("early_pmd_flags", 0xE3)
    assert "0x01200028: early_pmd_flags 0xe3 lacks" in str(audit_view.text(made(machine).audit))


def test_the_rules_explained() -> None:
    rules = tuple(each.rule for each in made(Machine()).audit.results)
    text = str(audit_view.explained(rules))
    payload = audit_view.rules_payload(rules)
    assert len(json.loads(json.dumps(payload))["rules"]) == len(rules)
    assert all(rule.why in text and rule.source in text for rule in rules)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one HTML page: nothing is loaded from elsewhere, light and dark as the reader has.

Without scripts everything is there; the script only zooms the map and shows a piece's description.
"""

from __future__ import annotations

from html import escape

from gdb_sme.core.address import hex_va
from gdb_sme.linux.addressmap import Row
from gdb_sme.linux.audit.model import Result, Verdict
from gdb_sme.render import audit as audit_view
from gdb_sme.render import svg
from gdb_sme.render.document import Document, Line
from gdb_sme.render.report import Report

#: Style class by token.
_TOKENS = {
    "Number.Hex": "num",
    "Keyword": "key",
    "Name.Function": "sym",
    "Generic.Inserted": "good",
    "Generic.Error": "bad",
    "Comment": "dim",
}
_VERDICTS = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.NOT_APPLICABLE: "dim"}

_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:20px 24px 48px;max-width:1320px;background:var(--page);
color:var(--ink);font:14px/1.45 system-ui,sans-serif;
font-variant-ligatures:none}
h1{font-size:20px;margin:0}h2{font-size:15px;margin:28px 0 8px}
p{margin:4px 0}code,pre,output,.mono{font:12.5px/1.5 ui-monospace,monospace}
pre{margin:0;padding:10px 12px;border:1px solid var(--line);border-radius:4px;overflow-x:auto}
.dim{color:var(--dim)}.num,.sym{color:inherit}.key{font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;padding:0;margin:6px 0;list-style:none;
font-size:12.5px}.legend svg{vertical-align:-1px;margin-right:6px}
.map{border:1px solid var(--line);border-radius:4px;padding:8px 12px}
.row{display:grid;grid-template-columns:190px minmax(0,1fr);gap:12px;align-items:center;
padding:3px 0}.row .mono{font-size:11px;color:var(--dim)}
.row svg{display:block;width:100%;height:40px;border-radius:3px;outline-offset:2px}
.row.chosen svg{outline:2px solid var(--dim)}.row svg:focus-visible{outline:2px solid var(--ink)}
g:hover rect{stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}
.tools{display:none;gap:6px;align-items:center;margin:6px 0}.tools.on{display:flex}
button{font:inherit;font-size:13px;min-width:32px;padding:2px 9px;color:inherit;
background:transparent;border:1px solid var(--dim);border-radius:4px;cursor:pointer}
output{display:block;min-height:1.6em;flex:1;overflow-wrap:anywhere}
.scroll{overflow-x:auto}.scroll table{min-width:760px}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{text-align:left;vertical-align:top;padding:3px 14px 3px 0;
border-bottom:1px solid var(--line)}th{font-weight:600;color:var(--dim)}
td.mono{white-space:nowrap}details summary{cursor:pointer}
td ul{margin:2px 0;padding-left:16px}
"""

#: Colours of words, light and dark: dark enough on the page for small text.
_WORDS = (
    ":root{--good:#22701f;--bad:#b00f1b}"
    "@media (prefers-color-scheme:dark){:root{--good:#86c56f;--bad:#ff8585}}"
)

_SCRIPT = """
(function () {
  'use strict';
  var map = document.querySelector('.map'), out = document.querySelector('output');
  if (!map) return;
  document.querySelector('.tools').classList.add('on');
  var full = WIDTH, rows = Array.from(map.querySelectorAll('.row')), chosen = rows[0];
  function box(row) { return row.querySelector('svg').viewBox.baseVal; }
  function show(row, x, w) {
    w = Math.min(full, Math.max(full / 4096, w));
    x = Math.min(full - w, Math.max(0, x));
    row.querySelector('svg').setAttribute('viewBox', x + ' 0 ' + w + ' HEIGHT');
  }
  function zoom(row, factor, at) {
    var b = box(row), w = Math.min(full, b.width * factor);
    show(row, b.x + (b.width - w) * at, w);
  }
  function choose(row) {
    if (chosen) chosen.classList.remove('chosen');
    chosen = row; row.classList.add('chosen');
  }
  function place(row, event) {
    var r = row.querySelector('svg').getBoundingClientRect();
    return (event.clientX - r.left) / r.width;
  }
  rows.forEach(function (row) {
    var bar = row.querySelector('svg'), from = null;
    bar.addEventListener('wheel', function (event) {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault(); choose(row);
      zoom(row, event.deltaY < 0 ? 0.8 : 1.25, place(row, event));
    }, { passive: false });
    bar.addEventListener('pointerdown', function (event) {
      choose(row); from = { at: event.clientX, x: box(row).x };
      var piece = event.target.closest('g');
      if (piece) out.textContent = piece.querySelector('title').textContent;
    });
    bar.addEventListener('pointermove', function (event) {
      var piece = event.target.closest('g');
      if (from && event.buttons) {
        var b = box(row);
        show(row, from.x - (event.clientX - from.at) * b.width / bar.clientWidth, b.width);
      } else if (piece) out.textContent = piece.querySelector('title').textContent;
    });
    bar.addEventListener('pointerup', function () { from = null; });
    bar.addEventListener('dblclick', function (event) { zoom(row, 0.4, place(row, event)); });
    bar.addEventListener('focus', function () { choose(row); });
    bar.addEventListener('keydown', function (event) {
      var b = box(row), key = event.key;
      if (key === '+' || key === '=') zoom(row, 0.6, 0.5);
      else if (key === '-') zoom(row, 1.7, 0.5);
      else if (key === '0') show(row, 0, full);
      else if (key === 'ArrowLeft') show(row, b.x - b.width / 5, b.width);
      else if (key === 'ArrowRight') show(row, b.x + b.width / 5, b.width);
      else return;
      event.preventDefault();
    });
  });
  document.getElementById('in').onclick = function () { zoom(chosen, 0.5, 0.5); };
  document.getElementById('out').onclick = function () { zoom(chosen, 2, 0.5); };
  document.getElementById('all').onclick = function () {
    rows.forEach(function (row) { show(row, 0, full); });
  };
})();
"""


def page(report: Report) -> str:
    """The page."""
    script = _SCRIPT.replace("WIDTH", f"{svg.BAR_WIDTH:g}").replace("HEIGHT", f"{svg.BAR_HEIGHT:g}")
    style = f"{svg.variables()}{_WORDS}{svg.fills()}{_STYLE}"
    body = [
        f"<header><h1>{escape(report.title)}</h1>",
        f"<p>{escape(report.kernel)}</p>" if report.kernel else "",
        f'<p class="dim">{escape(report.audit.root)}; {escape(report.audit.stage)}</p>',
        f'<p class="{"bad" if report.audit.failed else "good"}">{escape(report.verdict)}</p>',
        "</header><main>",
        _map(report.rows),
        _audit(report),
        *(_section(title, document) for title, document in report.sections),
        _pieces(report.rows),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body>"
        f"{''.join(body)}<script>{script}</script></body></html>\n"
    )


def _section(title: str, document: Document) -> str:
    lines = "\n".join(map(_line, document.lines))
    return f'<section><h2>{escape(title)}</h2><pre tabindex="0">{lines}</pre></section>'


def _line(line: Line) -> str:
    """A line of tokens, escaped, each in the class of its token."""
    return "".join(_span(token, text) for token, text in line)


def _span(token: str, text: str) -> str:
    name = _TOKENS.get(token)
    return f'<span class="{name}">{escape(text)}</span>' if name else escape(text)


def _map(rows: tuple[Row, ...]) -> str:
    swatch = (
        '<svg width="12" height="10" aria-hidden="true">'
        '<rect class="{}" width="12" height="10"/></svg>'
    )
    legend = "".join(
        f"<li>{swatch.format(name)}{escape(words)}</li>"
        for name, words in (*svg.LEGEND, *svg.RIGHTS_LEGEND)
    )
    return (
        "<section><h2>Address space</h2>"
        '<p class="dim">A bar a region, in address order; a piece is the wider the more memory it '
        "has, by the logarithm. Full height: encrypted; half: not. The band below: "
        "permissions.</p>"
        f'<ul class="legend">{legend}</ul>'
        f'<div class="map">{"".join(map(_row, rows))}</div>'
        '<div class="tools"><button id="in" aria-label="zoom in">+</button>'
        '<button id="out" aria-label="zoom out">\N{MINUS SIGN}</button>'
        '<button id="all">all</button>'
        '<output aria-live="polite"><span class="dim">Point at a piece. Click a bar to choose it; '
        "zoom with the buttons, Ctrl and wheel, double click or + and \N{MINUS SIGN}; "
        "drag to move.</span></output></div></section>"
    )


def _row(row: Row) -> str:
    coarse = " (pieces put together)" if row.coarse else ""
    return (
        f'<div class="row"><div>{escape(row.region.name)}{coarse}'
        f'<div class="mono">{hex_va(row.pieces[0].va)}</div></div>'
        f'<svg viewBox="0 0 {svg.BAR_WIDTH:g} {svg.BAR_HEIGHT:g}" preserveAspectRatio="none" '
        f'role="img" tabindex="0" aria-label="{escape(svg.summary(row))}">'
        f"{svg.bar(row)}</svg></div>"
    )


def _audit(report: Report) -> str:
    rows = "".join(map(_rule, report.audit.results))
    return (
        '<section><h2>Audit</h2><div class="scroll"><table><thead><tr><th scope="col">verdict</th>'
        '<th scope="col">rule</th><th scope="col">found</th><th scope="col">must hold</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _rule(result: Result) -> str:
    outcome, rule = result.outcome, result.rule
    places = "".join(
        f'<li class="mono">{_line(audit_view.place_line(each))}</li>'
        for each in outcome.places[: audit_view.SHOWN]
    )
    more = len(outcome.places) - audit_view.SHOWN
    if more > 0:
        places += f"<li>and {more} more</li>"
    found = escape(outcome.text) + (f"<ul>{places}</ul>" if places else "")
    return (
        f'<tr><td class="{_VERDICTS[outcome.verdict]}">{outcome.verdict.value}</td>'
        f'<td class="mono">{escape(rule.name)}</td><td>{found}</td>'
        f"<td><details><summary>{escape(rule.what)}</summary>{escape(rule.why)}.<br>"
        f'<span class="dim">{escape(rule.source)}</span></details></td></tr>'
    )


def _pieces(rows: tuple[Row, ...]) -> str:
    """The map as a table, for those who cannot see it and those who search."""
    lines = "".join(
        f'<tr><td>{escape(row.region.name)}</td><td class="mono">{hex_va(piece.va)}</td>'
        f'<td class="mono">{hex_va(piece.end - 1)}</td><td class="mono">{piece.rights}</td>'
        f"<td>{escape(piece.state.value)}</td><td>{escape(piece.note)}</td></tr>"
        for row in rows
        for piece in row.pieces
    )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("region", "first", "last", "rights", "encryption", "note")
    )
    return (
        "<section><h2>The map as a table</h2><details><summary>all pieces</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        "</div></details></section>"
    )

"""The report as one HTML file: everything is inside, nothing is fetched."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..results.archive import Archive
from ..results.plugins import describe
from . import failures
from .content import Content
from .drawings import Drawing
from .numbers import plural
from .table import TextTable

BAND = re.compile(r" (\[[^\]]*, [^\]]*\])")  # an interval goes below its estimate, in a smaller hand
CODE = re.compile(r"`([^`]+)`")
SENTENCE = re.compile(r"(?<=[a-z0-9)`×][.]) (?=\S)")
WIDTH = re.compile(rb'<svg [^>]*?width="([0-9.]+pt)"')
SMALL = r"<span class=band>\1</span>"


@dataclass(frozen=True)
class Page:
    """What the report says, in the order of the page."""

    title: str
    command: str
    content: Content
    drawings: Sequence[Drawing]
    archive: Archive

    def html(self) -> str:
        """The whole file."""
        tables = {self.content.titles[name]: _table(table) for name, table in self.content.tables.items()}
        sections = {
            "Summary": _list(self.content.said) + _notices(self.content.warned),
            **tables,
            "Figures": _drawings(self.drawings),
            "Methods": "".join(map(_method, sorted(map(str, self.archive.lean["method"].unique())))),
            "Cells that failed": _failed(self.archive),
            "Provenance": _origins(self.content.origins),
        }
        links = "".join(f'<a href="#{_anchor(name)}">{name}</a> ' for name in sections)
        bodies = [f'<section id="{_anchor(n)}"><h2>{n}</h2>\n{body}</section>' for n, body in sections.items()]
        again = f"<p class=small>To run it again:</p><pre>{_safe(self.command)}</pre>"
        head = f"<header><h1>{_safe(self.title)}</h1>{again}<nav>{links}</nav></header>"
        template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        return template.substitute(title=_safe(self.title), body="\n".join([head, "<main>", *bodies, "</main>"]))


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _marked(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", _safe(text))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_safe(item)}</li>" for item in items) + "</ul>"


def _notices(items: Sequence[str]) -> str:
    return f"<div class=notice><p>Before comparing:</p>{_list(items)}</div>" if items else ""


def _table(table: TextTable) -> str:
    titles = "".join(f"<th{' class=name' * (i < table.names)}>{_safe(t)}</th>" for i, t in enumerate(table.headings))
    rows = "".join(_row(row, table.names) for row in table.rows)
    body = f"<table class=measures><thead><tr>{titles}</tr></thead>\n<tbody>{rows}</tbody></table>"
    about = "".join(f"<li>{_marked(sentence)}</li>" for sentence in SENTENCE.split(table.about))
    notes = "".join(f"<p class=small>{_safe(note)}</p>" for note in table.notes)
    return f"<div class=scroll tabindex=0>{body}</div>{notes}<ul class='small about'>{about}</ul>"


def _row(row: Sequence[str], names: int) -> str:
    heads = "".join(f"<th scope=row>{_safe(text)}</th>" for text in row[:names])
    cells = "".join(f"<td>{BAND.sub(SMALL, _safe(text))}</td>" for text in row[names:])
    return f"<tr>{heads}{cells}</tr>\n"


def _drawings(drawings: Sequence[Drawing]) -> str:
    """Those that are there; then, folded away, what the others need."""
    there = "".join(_drawing(drawing) for drawing in drawings if not drawing.missing)
    absent = [drawing for drawing in drawings if drawing.missing]
    items = "".join(f"<li>{_safe(one.title)}<br>Not drawn: {_safe(one.missing)}.</li>" for one in absent)
    said = f"{plural(len(absent), 'figure')} not drawn, for want of records"
    return there + (f"<details><summary>{said}</summary><ul class=small>{items}</ul></details>" if absent else "")


def _drawing(drawing: Drawing) -> str:
    title, svg = f"<h3>{_safe(drawing.title)}</h3>", drawing.images["svg"]
    found = WIDTH.search(svg)
    wide = f' style="--paper: {found[1].decode()}"' if found else ""  # as wide as on paper; a screen is farther away
    data = base64.b64encode(svg).decode()
    image = f'<img alt="{_safe(drawing.title)}"{wide} src="data:image/svg+xml;base64,{data}">'
    files = ", ".join(f'<a href="figures/{drawing.name}.{kind}">{kind}</a>' for kind in ("pdf", "svg", "png"))
    caption = f"<figcaption>{_marked(drawing.caption)} ({files})</figcaption>"
    return f"{title}<figure><div class=scroll tabindex=0>{image}</div>{caption}</figure>"


def _method(name: str) -> str:
    try:
        doc = describe("methods", name).doc
    except ValueError:
        doc = "This version has no file for this method."
    first, _, rest = doc.strip().partition("\n")
    summary = f"<summary><b>{_safe(name)}</b> {_marked(first)}</summary>"
    return f"<details>{summary}<p class=doc>{_marked(rest.strip())}</p></details>"


def _failed(archive: Archive) -> str:
    bad = failures.listed(archive)
    if bad.empty:
        return "<p>None.</p>"
    texts = zip(bad["key"], bad["status"], bad["reason"], bad["trace"], bad["cell_json"], strict=True)
    rows = "".join(_failure(*text) for text in texts)
    titles = "<th class=name>status</th><th class=name>cell</th><th class=name>reason</th>"
    table = f"<table class=failed><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{_list(failures.counted(archive))}<div class=scroll tabindex=0>{table}</div>"


def _failure(key: str, status: str, reason: str, trace: str, cell_json: str) -> str:
    more = f"<details><summary>trace</summary><pre>{_safe(trace)}</pre></details>" if trace else ""
    who = f"{_safe(failures.name(cell_json))}<br><span class=small>{_safe(key)}</span>"
    return (
        f"<tr><td>{_safe(status)}</td><td>{who}</td><td>{_safe(reason or 'no reason was recorded')}{more}</td></tr>\n"
    )


def _origins(origins: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th scope=row>{_safe(name)}</th><td>{_safe(value)}</td></tr>\n" for name, value in origins)
    return f"<table class=facts><tbody>{rows}</tbody></table>"

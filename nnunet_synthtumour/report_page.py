"""A self-contained HTML page from headings, paragraphs, tables and pictures; made to be read on screen and on paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 Georgia,'Times New Roman',serif;color:#1a1a1a;max-width:58rem;margin:2.5rem auto;padding:0 1.2rem}
h1,h2,h3,th,figcaption,.number{font-family:system-ui,'Helvetica Neue',Arial,sans-serif}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #bbb}
h3{font-size:1rem;margin:1.2rem 0 .3rem}table{border-collapse:collapse;margin:.6rem 0;font-size:.86rem}
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}th{border-bottom:1px solid #555}
td:first-child,th:first-child{text-align:left}figure{margin:.8rem 0;break-inside:avoid}img{max-width:100%}
figcaption{font-size:.8rem;color:#555}.numbers{display:flex;gap:2.5rem;margin:1rem 0}
.number b{display:block;font-size:1.9rem;font-weight:600}.number{font-size:.8rem;color:#555}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.6rem}code{font-size:.85em}
pre{background:#f5f5f5;padding:.6rem;overflow-x:auto;font-size:.78rem;white-space:pre-wrap;overflow-wrap:anywhere}
@page{size:A4;margin:16mm}
@media print{body{font-size:10.5pt;margin:0;max-width:none;padding:0}h2,h3{break-after:avoid}tr{break-inside:avoid}
figure img{max-height:11cm}.cases{grid-template-columns:repeat(3,1fr)}}
"""


class Page:
    """Collects what stands on the page; every text is escaped here and nowhere else."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(subtitle)}</p>"]

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def numbers(self, pairs: Sequence[tuple[str, str]]) -> None:
        """A row of figures that matter, each with what it is."""
        cells = "".join(f"<div class='number'><b>{html.escape(v)}</b>{html.escape(t)}</div>" for v, t in pairs)
        self._parts.append(f"<div class='numbers'>{cells}</div>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell_of(v))}</td>" for v in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, file: Path, caption: str) -> None:
        self._parts.append(_figure(file, caption))

    def pictures(self, files: Sequence[tuple[Path, str]]) -> None:
        """Small ones side by side."""
        self._parts.append(f"<div class='cases'>{''.join(_figure(file, caption) for file, caption in files)}</div>")

    def text(self) -> str:
        return (
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(self.title)}</title>"
            f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>"
            f"<body>{''.join(self._parts)}</body></html>\n"
        )


def cell_of(value: object) -> str:
    """Numbers with three digits behind the point at most, nothing for what is undefined."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash stands for an empty cell
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"
    return str(value)


def _figure(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    words = html.escape(caption)
    return f"<figure><img alt='{words}' src='data:image/png;base64,{data}'><figcaption>{words}</figcaption></figure>"

"""One self-contained HTML page in the reader's choice of light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --rule: #dfe3ea;
  --ground: #fbfbfd; --card: #ffffff; --mark: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #98a2b3; --rule: #333b49;
  --ground: #12151b; --card: #1a1f28; --mark: #7aa7ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 980px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 0 0 .2rem; }
p { margin: .2rem 0 .8rem; color: var(--soft); max-width: 72ch; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1rem 1.2rem 1.2rem; margin: 1.2rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1rem 0 .4rem; }
.facts div { font-size: 1.35rem; font-weight: 600; } .facts span { display: block;
  font-size: .8rem; font-weight: 400; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.strip { display: flex; flex-wrap: wrap; gap: 10px; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } svg .name { fill: var(--ink); }
svg .title { font-size: 13px; font-weight: 600; fill: var(--ink); }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .even { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg image, svg .pixel { image-rendering: pixelated; }
svg .bar { fill: var(--mark); shape-rendering: crispEdges; } svg .cell { stroke: var(--card); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 500; }
"""


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: its heading.
      text: what is to be seen there, in a sentence or two.
      parts: SVG or HTML, side by side where there is room.
    """

    title: str
    text: str
    parts: tuple[str, ...]


def page(title: str, subtitle: str, facts: Mapping[str, str], sections: Iterable[Section]) -> str:
    """The page's HTML; texts are escaped, the sections' parts are taken as they are."""
    told = "".join(
        f"<div>{escape(value)}<span>{escape(name)}</span></div>" for name, value in facts.items()
    )
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n"
        f'<div class="facts">{told}</div>\n{body}\n</body></html>\n'
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; the first column is text, the others numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{lines}</table>"


def _section(section: Section) -> str:
    parts = "\n".join(f"<div>{part}</div>" for part in section.parts)
    return (
        f"<section><h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n"
        f'<div class="row">{parts}</div></section>'
    )

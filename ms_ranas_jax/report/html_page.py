"""A self-contained HTML page: sections, paragraphs, tables, figures.

Figures are in the page, and it asks no network for anything.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
import html
import os

from matplotlib.figure import Figure

from ms_ranas_jax.report import style

FIGURES_DIRECTORY = 'figures'

_CSS_PIXELS_PER_INCH = 96

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5a5a5a;
  --paper: #fafafa; --card: #ffffff; --line: #dcdcdc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #b4b4b4; --paper: #17191c; --card: #202327;
    --line: #3d4248; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 48px;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
    sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2em 0 .5em; padding-top: .6em;
  border-top: 1px solid var(--line); }
p { margin: .5em 0; max-width: 70ch; }
a { color: inherit; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.1em; margin: .8em 0; }
.missing { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 16px; margin: 14px 0; }
figure { margin: 0; min-width: 0; border: 1px solid var(--line);
  border-radius: 8px; background: var(--card); overflow: hidden; }
figcaption { padding: 8px 12px 10px; font-size: .95rem; color: var(--soft); }
/* The figures are drawn on white and stay on white in the dark. */
.scroll { overflow-x: auto; }
figure .scroll { background: #ffffff; padding: 8px; }
figure img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
table.config th, table.config td { text-align: left; font-weight: 400;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85rem;
  padding: .2em .8em .2em 0; white-space: normal;
  overflow-wrap: anywhere; vertical-align: top; }
summary { cursor: pointer; }
@media (max-width: 600px) {
  body { padding: 14px 10px 32px; }
  figure .scroll { padding: 3px; }
}
"""


class Page:
  """Collects the sections of the page, and saves figures on the way."""

  def __init__(self, workdir: str) -> None:
    self._figures = os.path.join(workdir, FIGURES_DIRECTORY)
    self._parts: list[str] = []
    self._sections: list[tuple[str, str]] = []
    self._row: list[str] = []

  def section(self, title: str) -> None:
    """Opens a section."""
    name = title.lower().replace(' ', '-')
    self._sections.append((name, title))
    self._add(f'<h2 id="{name}">{html.escape(title)}</h2>')

  def text(self, text: str) -> None:
    """Adds a paragraph."""
    self._add(f'<p>{html.escape(text)}</p>')

  def missing(self, text: str) -> None:
    """Adds a sentence about a part that is left out."""
    self._add(f'<p class="missing">{html.escape(text)}</p>')

  def table(
    self,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    folded: str = '',
  ) -> None:
    """Adds a table with a line of heads, that a click on `folded` opens."""
    body = ''.join(f'<tr>{_cells(row)}</tr>' for row in rows)
    markup = (
      '<div class="scroll" tabindex="0"><table><thead><tr>'
      f'{_cells(heads, "col")}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    if folded:
      summary = f'<summary>{html.escape(folded)}</summary>'
      markup = f'<details>{summary}{markup}</details>'
    self._add(markup)

  def folded_table(self, summary: str, values: Mapping[str, str]) -> None:
    """Adds a table of names and values that a click on its summary opens."""
    body = ''.join(
      f'<tr>{_cells([name], "row")}{_cells([value])}</tr>'
      for name, value in values.items()
    )
    self._add(
      f'<details><summary>{html.escape(summary)}</summary>'
      f'<table class="config"><tbody>{body}</tbody></table></details>'
    )

  def figure(self, figure: Figure, name: str, alt: str, caption: str) -> None:
    """Saves a figure and adds it; neighbours share a row where they fit."""
    svg = style.save(figure, self._figures, name)
    data = base64.b64encode(svg.encode('utf-8')).decode('ascii')
    width = figure.get_figwidth() * _CSS_PIXELS_PER_INCH
    self._row.append(
      f'<figure style="flex: 1 1 {width:.0f}px; max-width: '
      f'{1.25 * width:.0f}px"><div class="scroll" tabindex="0">'
      f'<img src="data:image/svg+xml;base64,{data}" '
      f'alt="{html.escape(alt)}" style="min-width: {0.7 * width:.0f}px">'
      f'</div><figcaption>{html.escape(caption)}</figcaption></figure>'
    )

  def markup(
    self, title: str, lead: Sequence[str], reload_seconds: int = 0
  ) -> str:
    """Returns the whole page.

    Args:
      title: of the page.
      lead: paragraphs under it.
      reload_seconds: a browser loads it again so often; 0 is never.
    """
    self._close_row()
    reload = ''
    if reload_seconds:
      reload = f'<meta http-equiv="refresh" content="{reload_seconds}">\n'
    links = ''.join(
      f'<a href="#{name}">{html.escape(text)}</a>'
      for name, text in self._sections
    )
    paragraphs = ''.join(f'<p>{html.escape(text)}</p>\n' for text in lead)
    body = '\n'.join(self._parts)
    return (
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f'{reload}'
      f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n'
      f'</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{paragraphs}'
      f'<nav>{links}</nav>\n{body}\n</body>\n</html>\n'
    )

  def _add(self, markup: str) -> None:
    self._close_row()
    self._parts.append(markup)

  def _close_row(self) -> None:
    if self._row:
      self._parts.append(f'<div class="figures">{"".join(self._row)}</div>')
      self._row = []


def _cells(texts: Iterable[str], scope: str = '') -> str:
  """Returns the cells of a table; with a scope, heads of it."""
  start, end = (
    (f'<th scope="{scope}">', '</th>') if scope else ('<td>', '</td>')
  )
  return ''.join(f'{start}{html.escape(text)}{end}' for text in texts)

"""The page that shows what a work directory holds.

`write_report` reads the files of the stages that have run, draws what they
allow, and leaves out the rest with a sentence. The page is one file: figures
are in it, and it asks no network for anything.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import json
import os
from typing import Any
import zipfile

from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import alphas
from ms_ranas_jax.report import cells
from ms_ranas_jax.report import curves
from ms_ranas_jax.report import figures
from ms_ranas_jax.report import grid_picture
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.space import genotype as genotype_lib
from ms_ranas_jax.space import grid

FIGURES_DIRECTORY = 'figures'
PAGE_NAME = 'report.html'

_CSS_PIXELS_PER_INCH = 96
_KINDS = ('normal', 'reduction')

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


@dataclasses.dataclass(frozen=True)
class _Column:
  """A column of the table of exits.

  Attributes:
    field: of the exit's record.
    head: what the table says above it.
    scale: what the value is multiplied by.
    decimals: of the number; None for as many as give the largest number of
      the column four digits.
  """

  field: str
  head: str
  scale: float = 1.0
  decimals: int | None = 0


_COLUMNS = (
  _Column('exit', 'exit'),
  _Column('layer', 'layer'),
  _Column('accuracy', 'accuracy, %', 100.0, 2),
  _Column('loss', 'loss', 1.0, 3),
  _Column('macs', 'macs, 10⁶', 1e-6, None),
  _Column('share', 'macs, % of last', 100.0, 1),
  _Column('flops_msdnet', 'flops (MSDNet), 10⁶', 1e-6, None),
  _Column('params', 'params so far'),
  _Column('total_params', 'params in all'),
  _Column('peak_activation_bytes', 'peak activations, KiB', 1 / 1024),
)


class _Page:
  """Collects the sections of the page, and saves figures on the way."""

  def __init__(self, workdir: str) -> None:
    self._figures = os.path.join(workdir, FIGURES_DIRECTORY)
    self._parts: list[str] = []
    self._sections: list[tuple[str, str]] = []
    self._row: list[str] = []

  def section(self, title: str) -> None:
    """Opens a section."""
    self._close_row()
    name = title.lower().replace(' ', '-')
    self._sections.append((name, title))
    self._parts.append(f'<h2 id="{name}">{html.escape(title)}</h2>')

  def text(self, text: str) -> None:
    """Adds a paragraph."""
    self._close_row()
    self._parts.append(f'<p>{html.escape(text)}</p>')

  def missing(self, text: str) -> None:
    """Adds a sentence about a part that is left out."""
    self._close_row()
    self._parts.append(f'<p class="missing">{html.escape(text)}</p>')

  def raw(self, markup: str) -> None:
    """Adds markup whose text is escaped already."""
    self._close_row()
    self._parts.append(markup)

  def figure(self, figure: Figure, name: str, alt: str, caption: str) -> None:
    """Saves a figure and adds it; neighbours share a row where they fit."""
    svg = figures.save(figure, self._figures, name)
    data = base64.b64encode(svg.encode('utf-8')).decode('ascii')
    width = figure.get_figwidth() * _CSS_PIXELS_PER_INCH
    self._row.append(
      f'<figure style="flex: 1 1 {width:.0f}px; max-width: '
      f'{1.25 * width:.0f}px"><div class="scroll" tabindex="0">'
      f'<img src="data:image/svg+xml;base64,{data}" '
      f'alt="{html.escape(alt)}" style="min-width: {0.7 * width:.0f}px">'
      f'</div><figcaption>{html.escape(caption)}</figcaption></figure>'
    )

  def markup(self, title: str, lead: Sequence[str]) -> str:
    """Returns the whole page."""
    self._close_row()
    links = ''.join(
      f'<a href="#{name}">{html.escape(text)}</a>'
      for name, text in self._sections
    )
    paragraphs = ''.join(f'<p>{html.escape(text)}</p>\n' for text in lead)
    body = '\n'.join(self._parts)
    return (
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n'
      f'</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{paragraphs}'
      f'<nav>{links}</nav>\n{body}\n</body>\n</html>\n'
    )

  def _close_row(self) -> None:
    if self._row:
      self._parts.append(f'<div class="figures">{"".join(self._row)}</div>')
      self._row = []


def _read_json(workdir: str, name: str) -> Any:
  """Returns the content of a file of the work directory, or None."""
  path = os.path.join(workdir, name)
  return files.read_json(path) if os.path.isfile(path) else None


def _read_object(
  workdir: str, name: str, field: str, needed: Sequence[str]
) -> dict[str, Any] | None:
  """Reads a JSON object with a list of records under `field`, or None."""
  content = _read_json(workdir, name)
  if content is None:
    return None
  path = os.path.join(workdir, name)
  records = content.get(field) if isinstance(content, dict) else None
  if not isinstance(records, list) or not records:
    raise UsageError(
      f'{path} has no list "{field}"; run the stage that writes it again.'
    )
  for index, record in enumerate(records):
    for key in needed:
      value = record.get(key) if isinstance(record, dict) else None
      if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(
          f'{path}, "{field}" {index}: "{key}" is not a number; run the stage '
          'that writes it again.'
        )
  return content


def _read_genotype(workdir: str, name: str) -> genotype_lib.Genotype | None:
  path = os.path.join(workdir, name)
  return genotype_lib.load_genotype(path) if os.path.isfile(path) else None


def _read_metrics(workdir: str, name: str) -> list[dict[str, Any]]:
  path = os.path.join(workdir, name)
  return metrics.read_metrics(path) if os.path.isfile(path) else []


def _read_alphas(
  workdir: str, primitives: Sequence[str]
) -> dict[str, np.ndarray] | None:
  """Returns the alphas, (epochs + 1, edges, operations) by kind, or None."""
  path = os.path.join(workdir, 'search', 'alphas.npz')
  if not os.path.isfile(path):
    return None
  again = 'run the search stage again.'
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found = {kind: arrays[kind] for kind in _KINDS}
  except KeyError as error:
    raise UsageError(
      f'{path} does not hold "normal" and "reduction"; {again}'
    ) from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(f'{path} cannot be read ({error}); {again}') from error
  for kind, array in found.items():
    if (
      array.ndim != 3
      or not array.size
      or array.dtype.kind != 'f'
      or not np.isfinite(array).all()
    ):
      raise UsageError(
        f'{path}, "{kind}": expected finite numbers, (epochs + 1, edges, '
        f'operations), not {array.dtype} {array.shape}; {again}'
      )
    if array.shape[2] != len(primitives):
      raise UsageError(
        f'{path}, "{kind}" has {array.shape[2]} operations, but '
        f'{len(primitives)} primitives were given; give those that it was '
        'searched with.'
      )
    try:
      alphas.edge_list(array.shape[1])
    except UsageError as error:
      raise UsageError(f'{path}, "{kind}": {error}') from error
  return found


def _exit_table(exits: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of exits; columns that nobody has are left out."""
  last = exits[-1].get('macs')
  rows = [
    {**exit_, 'share': exit_['macs'] / last if last else None}
    for exit_ in exits
  ]
  columns = {}
  for column in _COLUMNS:
    values = [row.get(column.field) for row in rows]
    if any(value is not None for value in values):
      columns[column.head] = _column_texts(values, column)
  head = ''.join(
    f'<th scope="col">{html.escape(name)}</th>' for name in columns
  )
  body = ''.join(
    '<tr>' + ''.join(f'<td>{text}</td>' for text in texts) + '</tr>'
    for texts in zip(*columns.values())
  )
  return (
    '<div class="scroll" tabindex="0"><table><thead><tr>'
    f'{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _column_texts(values: Sequence[Any], column: _Column) -> list[str]:
  """Returns the texts of a column, with a dash where there is no number."""
  numbers = [
    value * column.scale if isinstance(value, (int, float)) else None
    for value in values
  ]
  decimals = column.decimals
  if decimals is None:
    largest = max((number or 0 for number in numbers), default=0)
    decimals = 0
    while decimals < 9 and largest * 10**decimals < 1000:
      decimals += 1
  return [
    '–' if number is None else f'{number:,.{decimals}f}' for number in numbers
  ]


def _flat(value: Any, prefix: str = '') -> list[tuple[str, str]]:
  """Flattens a nested config to (dotted name, JSON text)."""
  if isinstance(value, dict) and value:
    return [
      line
      for key, inner in value.items()
      for line in _flat(inner, f'{prefix}.{key}' if prefix else str(key))
    ]
  return [(prefix, json.dumps(value, ensure_ascii=False))]


def _results(
  page: _Page,
  anytime: Mapping[str, Any] | None,
  budgeted: Mapping[str, Any] | None,
) -> None:
  page.section('Results')
  if anytime is None:
    page.missing(
      'The network has not been evaluated in this work directory; the stage '
      '"evaluate" does that.'
    )
  else:
    exits = anytime['exits']
    page.raw(_exit_table(exits))
    page.text(
      'Costs are cumulative: what it takes to come from the image to this '
      'exit. macs counts convolutions and dense layers; flops (MSDNet) follows '
      'the convention of the MSDNet op counter.'
    )
    expected = anytime.get('expected_accuracy')
    if isinstance(expected, (int, float)):
      page.text(
        f'Expected accuracy under {_budget(anytime.get("budget_range"))}: '
        f'{100 * expected:.2f} % (a budget below exit 0 earns chance).'
      )
    page.figure(
      curves.draw_anytime(exits),
      'anytime',
      'Step curve of test accuracy against the budget per image.',
      'Anytime: the accuracy of the last exit that a budget reaches. The '
      'numbers are the exits; in the grey range no exit is reached.',
    )
  if budgeted is None:
    page.missing(
      'There is no budgeted batch curve (evaluate/budgeted.json) in this work '
      'directory.'
    )
    return
  page.figure(
    curves.draw_budgeted(
      budgeted['points'], () if anytime is None else anytime['exits']
    ),
    'budgeted',
    'Test accuracy against the average cost per image.',
    'Budgeted batch: an image leaves at the first exit that is sure enough. '
    'The thresholds were set on held-out images.'
    + ('' if anytime is None else ' The numbers are the exits.'),
  )


def _budget(budget_range: Any) -> str:
  """Returns the words for the budgets of the expected accuracy."""
  try:
    low, high = (value / 1e6 for value in budget_range)
  except (TypeError, ValueError):
    return 'a random budget'
  return f'a budget drawn evenly from {low:,.4g} to {high:,.4g} · 10⁶ macs'


def _cells(
  page: _Page,
  found: genotype_lib.Genotype | None,
  trained: genotype_lib.Genotype | None,
  styles: Mapping[str, tuple[str, object]],
) -> None:
  page.section('Cells')
  if found is None and trained is None:
    page.missing('There is no genotype in this work directory yet.')
    return
  page.text(
    'A cell reads the outputs of the two cells before it, c(k-2) and c(k-1). '
    'Each node (a circle) sums its two incoming edges; dashed lines lead to '
    'the concatenation that is the output. In a reduction cell the operations '
    'on the two inputs have stride 2.'
  )
  if found == trained:
    shown = [('search', 'found by the search, and trained', found)]
  else:
    shown = [
      ('train', 'that was trained', trained),
      ('search', 'that the search found', found),
    ]
  for stage, what, genotype in shown:
    if genotype is None:
      continue
    for kind in _KINDS:
      edges = genotype.edges(kind == 'reduction')
      spoken = '; '.join(
        f'node {index // 2}: {operation} of {_spoken_state(state)}'
        for index, (operation, state) in enumerate(edges)
      )
      page.figure(
        cells.draw(edges, genotype.concat(kind == 'reduction'), styles),
        f'{stage}_cell_{kind}',
        f'Graph of the {kind} cell. {spoken}.',
        f'The {kind} cell {what}.',
      )


def _spoken_state(state: int) -> str:
  return ('c(k-2)', 'c(k-1)')[state] if state < 2 else f'node {state - 2}'


def _grid_figure(
  page: _Page,
  plan: grid.Plan,
  stage: str,
  what: str,
  cost: Mapping[str, Any] | None,
) -> None:
  caption = (
    f'The network {what}: layers to the right, scales downwards. Colours tell '
    'the step of computation, that is the first exit that needs a cell; a '
    'dotted cell is needed by none and not built. Numbers: height × width, '
    'and channels. Dark links come from the layer before, light ones from the '
    'layer before that.'
  )
  if cost is not None and {'params', 'macs'} <= set(cost):
    caption += (
      f' {cost["params"]:,} params, {cost["macs"] / 1e6:,.4g} · 10⁶ macs.'
    )
  spec = plan.spec
  page.figure(
    grid_picture.draw(plan),
    f'{stage}_grid',
    f'Grid of {spec.layers} layers and {spec.scales} scales with '
    f'{len(plan.exits)} exits.',
    caption,
  )


def _network(
  page: _Page,
  plan: grid.Plan | None,
  cost: Mapping[str, Any] | None,
  evaluated: bool,
) -> None:
  page.section('Network')
  if plan is None and cost is None:
    page.missing('No network to train has been planned yet.')
  if plan is not None:
    _grid_figure(page, plan, 'train', 'that is trained', cost)
  if cost is not None and not evaluated:
    page.raw(_exit_table(cost['exits']))


def _training(page: _Page, records: Sequence[Mapping[str, Any]]) -> None:
  page.section('Training')
  figure = curves.draw_learning(records, 'holdout', 'held-out images')
  if figure is None:
    page.missing(
      'No training has been recorded in this work directory; the stage '
      '"train" does that.'
    )
    return
  page.figure(
    figure,
    'train_learning',
    'Accuracy per exit and loss against epochs of the training.',
    'Training, means over each epoch. Colours from dark to light are the '
    'exits; the loss is the weighted sum over exits.',
  )


def _search(
  page: _Page,
  records: Sequence[Mapping[str, Any]],
  found_alphas: Mapping[str, np.ndarray] | None,
  found: genotype_lib.Genotype | None,
  plan: grid.Plan | None,
  cost: Mapping[str, Any] | None,
  primitives: Sequence[str],
  styles: Mapping[str, tuple[str, Any]],
) -> None:
  page.section('Search')
  learning = curves.draw_learning(records, 'valid', 'validation half')
  if learning is None and found_alphas is None and plan is None:
    page.missing(
      'No search has been recorded in this work directory; the stage '
      '"search" does that.'
    )
    return
  if learning is not None:
    page.figure(
      learning,
      'search_learning',
      'Accuracy per exit and loss against epochs of the search.',
      'Search, means over each epoch. Params learn on the training half of '
      'the images, alphas on the validation half. Colours from dark to light '
      'are the exits; the loss is the weighted sum over exits.',
    )
  if plan is not None:
    _grid_figure(page, plan, 'search', 'that is searched', cost)
  if found_alphas is None:
    page.missing('No alphas have been recorded in this work directory yet.')
    return
  weights = {kind: alphas.weights_of(found_alphas[kind]) for kind in _KINDS}
  for kind in _KINDS:
    page.figure(
      alphas.draw_history(weights[kind], primitives, styles),
      f'search_weights_{kind}',
      f'Weights of each operation per edge of the {kind} cell over epochs.',
      f'Weights (softmax of alphas) of the {kind} cell, one panel per edge, '
      'with the operation that is strongest at the end. The pale line is '
      'where all weigh the same.',
    )
  for kind in _KINDS:
    kept = () if found is None else found.edges(kind == 'reduction')
    page.figure(
      alphas.draw_final(weights[kind][-1], primitives, kept),
      f'search_final_{kind}',
      f'Table of the final weights of the {kind} cell.',
      f'Final weights of the {kind} cell in %.'
      + (' Frames mark what the genotype keeps.' if kept else ''),
    )


def _config(page: _Page, config: Any) -> None:
  page.section('Config')
  if config is None:
    page.missing('There is no config.json in this work directory.')
    return
  rows = ''.join(
    f'<tr><th scope="row">{html.escape(name)}</th>'
    f'<td>{html.escape(value)}</td></tr>'
    for name, value in _flat(config)
  )
  page.raw(
    '<details><summary>All fields of the config that ran</summary>'
    f'<table class="config"><tbody>{rows}</tbody></table></details>'
  )


def _lead(anytime: Mapping[str, Any] | None, config: Any) -> list[str]:
  """Returns the sentences under the title."""
  if anytime is None:
    dataset = config.get('dataset') if isinstance(config, dict) else None
    name = dataset.get('name') if isinstance(dataset, dict) else None
    return [f'Dataset: {name}.'] if name else []
  first, last = anytime['exits'][0], anytime['exits'][-1]
  lead = (
    f'Dataset: {anytime.get("dataset", "unknown")}, '
    f'{anytime.get("num_examples", 0):,} test images. The last exit is right '
    f'on {100 * last["accuracy"]:.2f} %, with {last["macs"] / 1e6:,.4g} · 10⁶ '
    'macs per image'
  )
  if len(anytime['exits']) > 1 and last['macs']:
    lead += (
      f'; the first on {100 * first["accuracy"]:.2f} %, with '
      f'{100 * first["macs"] / last["macs"]:.1f} % of them'
    )
  return [lead + '.']


def write_report(
  workdir: str,
  plan_search: grid.Plan | None,
  plan_train: grid.Plan | None,
  primitives: Sequence[str],
) -> str:
  """Writes `figures/` and `report.html` from what a work directory holds.

  Args:
    workdir: the work directory; read where the stages write, see the README.
    plan_search: the network of the search, or None to leave it out.
    plan_train: the derived network, or None to leave it out.
    primitives: the operations of the search, in the order of the alphas.

  Returns:
    The path of `report.html`.

  Raises:
    UsageError: the work directory is not there, or a file in it is broken;
      the message names the file.
  """
  if not os.path.isdir(workdir):
    raise UsageError(
      f'the work directory {workdir} is not there; run a stage that makes it '
      'or correct the path.'
    )
  # Everything is read, and refused, before anything is written.
  config = _read_json(workdir, 'config.json')
  found = _read_genotype(workdir, 'search/genotype.json')
  trained = _read_genotype(workdir, 'train/genotype.json')
  found_alphas = _read_alphas(workdir, primitives)
  anytime = _read_object(
    workdir, 'evaluate/anytime.json', 'exits', ('accuracy', 'macs')
  )
  budgeted = _read_object(
    workdir, 'evaluate/budgeted.json', 'points', ('accuracy', 'macs')
  )
  cost_search = _read_object(
    workdir, 'describe/search_network.json', 'exits', ('macs',)
  )
  cost_train = _read_object(
    workdir, 'describe/train_network.json', 'exits', ('macs',)
  )
  search_records = _read_metrics(workdir, 'search/metrics.jsonl')
  train_records = _read_metrics(workdir, 'train/metrics.jsonl')
  genotypes = [genotype for genotype in (found, trained) if genotype]
  # One style per operation on the whole page, published ones included.
  operations = list(primitives)
  operations += sorted(
    {name for genotype in genotypes for name in genotype.operations()}
    - set(primitives)
  )
  styles = figures.operation_styles(operations)

  page = _Page(workdir)
  _results(page, anytime, budgeted)
  _network(page, plan_train, cost_train, evaluated=anytime is not None)
  _cells(page, found, trained, styles)
  _training(page, train_records)
  _search(
    page,
    search_records,
    found_alphas,
    found,
    plan_search,
    cost_search,
    primitives,
    styles,
  )
  _config(page, config)
  name = os.path.basename(os.path.abspath(workdir))
  path = os.path.join(workdir, PAGE_NAME)
  files.write_text(
    path, page.markup(f'An anytime network: {name}', _lead(anytime, config))
  )
  return path

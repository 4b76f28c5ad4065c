"""The page that shows what a work directory holds.

`write_report` reads the files of the stages that have run, draws what they
allow, and leaves out the rest with a sentence. The page is one file: figures
are in it, and it asks no network for anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import jax

from ms_ranas_jax import fields
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import alphas
from ms_ranas_jax.report import cells
from ms_ranas_jax.report import classes
from ms_ranas_jax.report import curves
from ms_ranas_jax.report import grid_picture
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import images
from ms_ranas_jax.report import inputs
from ms_ranas_jax.report import milliseconds
from ms_ranas_jax.report import selection
from ms_ranas_jax.report import style
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space import genotype as genotype_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import protocol


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
  _Column('top5_accuracy', 'top-5 accuracy, %', 100.0, 2),
  _Column('loss', 'loss', 1.0, 3),
  _Column('calibration_error', 'calibration error, %', 100.0, 2),
  _Column('macs', 'macs, 10⁶', 1e-6, None),
  _Column('share', 'macs, % of last', 100.0, 1),
  _Column('flops_msdnet', 'flops (MSDNet), 10⁶', 1e-6, None),
  _Column('params', 'params so far'),
  _Column('total_params', 'params in all'),
  _Column('params_deployed', 'params deployed'),
  _Column('peak_activation_bytes', 'peak activations, KiB', 1 / 1024),
)


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network to train, or that was trained.

  Attributes:
    plan: the network as data.
    genotype: its cells; None where the family has none.
    cost: as `describe` writes it; None to leave it out.
  """

  plan: protocol.Plan
  genotype: genotype_lib.Genotype | None = None
  cost: Mapping[str, Any] | None = None


def _exit_table(
  page: html_page.Page, exits: Sequence[Mapping[str, Any]]
) -> None:
  """Adds the table of exits; columns that nobody has are left out."""
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
  page.table(list(columns), zip(*columns.values()))


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


def _evaluation(page: html_page.Page, results: inputs.Results) -> None:
  anytime, budgeted = results.anytime, results.budgeted
  page.section('Results')
  if anytime is None:
    page.missing(
      'The network has not been evaluated in this work directory; the stage '
      '"evaluate" does that.'
    )
  else:
    exits = anytime['exits']
    _exit_table(page, exits)
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
  if not budgeted['points']:
    page.missing(
      'No images were held out from the training (dataset.holdout = 0), so '
      'there are no thresholds and no budgeted batch curve.'
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


def _classes(page: html_page.Page, results: inputs.Results) -> None:
  if results.anytime is None:
    return
  page.section('Classes')
  if results.classes is None:
    page.missing(
      'There is no evaluate/classes.json in this work directory; run the stage '
      '"evaluate" again.'
    )
  else:
    classes.add(page, results.classes)


def _budget(budget_range: Any) -> str:
  """Returns the words for the budgets of the expected accuracy."""
  try:
    low, high = (value / 1e6 for value in budget_range)
  except (TypeError, ValueError):
    return 'a random budget'
  return f'a budget drawn evenly from {low:,.4g} to {high:,.4g} · 10⁶ macs'


def _cells(
  page: html_page.Page,
  found: genotype_lib.Genotype | None,
  trained: genotype_lib.Genotype | None,
  styles: Mapping[str, tuple[str, style.Dashes]],
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
  texts = {}
  for stage, what, genotype in shown:
    if genotype is None:
      continue
    texts[what] = genotype.to_darts()
    for kind in edges_lib.KINDS:
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
  page.folded_table('As DARTS prints them', texts)


def _spoken_state(state: int) -> str:
  return ('c(k-2)', 'c(k-1)')[state] if state < 2 else f'node {state - 2}'


def _grid_figure(
  page: html_page.Page,
  plan: protocol.Plan,
  stage: str,
  what: str,
  cost: Mapping[str, Any] | None,
) -> None:
  if not isinstance(plan, grid_picture.AnyPlan):
    return  # of a family of one's own, which has no picture here
  caption = (
    f'The network {what}: layers to the right, scales downwards. Numbers: '
    'height × width, and channels. Colours tell the step of computation, '
  )
  if isinstance(plan, grid.Plan):
    caption += (
      'that is the first exit that needs a cell; a dotted cell is needed by '
      'none and not built. Dark links come from the layer before, light ones '
      'from the layer before that.'
    )
  elif isinstance(plan, msdnet_plan.Plan):
    caption += (
      'that is the block; an exit ends it. A square hands on all features of '
      'its scale, side by side with new ones; at a transition a 1×1 '
      'convolution halves them. Dotted squares are scales that have ended.'
    )
  else:
    caption += 'that is the first exit that needs a stack.'
  if cost is not None and {'params', 'macs'} <= set(cost):
    caption += (
      f' {cost["params"]:,} params, {cost["macs"] / 1e6:,.4g} · 10⁶ macs.'
    )
  spec = plan.spec
  page.figure(
    grid_picture.draw(plan),
    f'{stage}_grid',
    f'{spec.layers} layers and {spec.scales} scales with '
    f'{len(plan.exits)} exits.',
    caption,
  )


def _network(
  page: html_page.Page, results: inputs.Results, trained: Trained | None
) -> None:
  page.section('Network')
  if trained is None:
    page.missing('No network to train has been planned yet.')
    return
  _grid_figure(page, trained.plan, 'train', 'that is trained', trained.cost)
  if trained.cost is not None and results.anytime is None:
    _exit_table(page, trained.cost['exits'])


def _training(page: html_page.Page, results: inputs.Results) -> None:
  page.section('Training')
  figure = curves.draw_learning(
    results.train_records, 'holdout', 'held-out images'
  )
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
  page: html_page.Page,
  results: inputs.Results,
  plan: grid.Plan | None,
  primitives: Sequence[str],
  styles: Mapping[str, tuple[str, style.Dashes]],
) -> None:
  page.section('Search')
  records, found = results.search_records, results.genotype
  learning = curves.draw_learning(records, 'valid', 'validation half')
  if learning is None and results.alphas is None and plan is None:
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
  selection.add(
    page, records, results.candidates, results.seeds, results.config
  )
  if plan is not None:
    _grid_figure(page, plan, 'search', 'that is searched', results.search_cost)
  if results.alphas is None:
    page.missing('No alphas have been recorded in this work directory yet.')
    return
  weights = jax.device_get(edges_lib.softmax_weights(results.alphas))
  for kind in edges_lib.KINDS:
    page.figure(
      alphas.draw_history(weights[kind], primitives, styles),
      f'search_weights_{kind}',
      f'Weights of each operation per edge of the {kind} cell over epochs.',
      f'Weights (softmax of alphas) of the {kind} cell, one panel per edge, '
      'with the operation that is strongest at the end. The pale line is '
      'where all weigh the same.',
    )
  for kind in edges_lib.KINDS:
    kept = () if found is None else found.edges(kind == 'reduction')
    page.figure(
      alphas.draw_final(weights[kind][-1], primitives, kept),
      f'search_final_{kind}',
      f'Table of the final weights of the {kind} cell.',
      f'Final weights of the {kind} cell in %.'
      + (' Frames mark what the genotype keeps.' if kept else ''),
    )


def _config(page: html_page.Page, config: Any) -> None:
  page.section('Config')
  if not isinstance(config, dict):
    page.missing('There is no config in this work directory.')
    return
  page.folded_table(
    'All fields of the config that ran',
    {
      name: json.dumps(value, ensure_ascii=False)
      for name, value in fields.flatten(config).items()
    },
  )


def _lead(results: inputs.Results) -> list[str]:
  """Returns the sentences under the title."""
  anytime, config = results.anytime, results.config
  if anytime is None:
    dataset = config.get('dataset') if isinstance(config, dict) else None
    name = dataset.get('name') if isinstance(dataset, dict) else None
    return [f'Dataset: {name}.'] if name else []
  first, last = anytime['exits'][0], anytime['exits'][-1]
  other = ', other images than those of the training' * bool(
    anytime.get('other_images')
  )
  lead = (
    f'Dataset: {anytime.get("dataset", "unknown")}{other}, '
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
  trained: Trained | None,
  primitives: Sequence[str],
  progress: Sequence[str] = (),
  reload_seconds: int = 0,
) -> str:
  """Writes `figures/` and `report.html` from what a work directory holds.

  Args:
    workdir: the work directory; read where the stages write, see
      docs/work_directory.md.
    plan_search: the network of the search, or None to leave it out.
    trained: the network to train, or None to leave it out. What only
      networks of cells have is left out where it is of another family.
    primitives: the operations of the search, in the order of the alphas.
    progress: sentences about a run that is going on, under the title.
    reload_seconds: see `html_page.Page.markup`.

  Returns:
    The path of `report.html`.

  Raises:
    UsageError: the work directory is not there, or a file in it is broken;
      the message names the file.
  """
  if not files.is_directory(workdir):
    raise UsageError(
      f'the work directory {workdir} is not there; run a stage that makes it '
      'or correct the path.'
    )
  # Everything is read, and refused, before anything is written.
  results = inputs.read(workdir, primitives)
  cells_trained = None if trained is None else trained.genotype
  genotypes = [found for found in (results.genotype, cells_trained) if found]
  # One style per operation on the whole page, published ones included.
  operations = list(primitives)
  operations += sorted(
    {name for genotype in genotypes for name in genotype.operations()}
    - set(primitives)
  )
  styles = style.operation_styles(operations)

  page = html_page.Page(workdir)
  _evaluation(page, results)
  milliseconds.add(page, results)
  _classes(page, results)
  if results.summary is not None and results.examples is not None:
    images.add(page, results.summary, results.examples)
  _network(page, results, trained)
  of_cells = trained is None or isinstance(trained.plan, grid.Plan)
  if of_cells:
    _cells(page, results.genotype, cells_trained, styles)
  _training(page, results)
  if of_cells:
    _search(page, results, plan_search, primitives, styles)
  _config(page, results.config)
  whole = workdir if files.is_remote(workdir) else os.path.abspath(workdir)
  name = os.path.basename(whole.rstrip('/'))
  path = os.path.join(workdir, inputs.PAGE_NAME)
  title = f'An anytime network: {name}'
  lead = [*progress, *_lead(results)]
  files.write_text(path, page.markup(title, lead, reload_seconds))
  return path

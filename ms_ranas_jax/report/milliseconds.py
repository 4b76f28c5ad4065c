"""Milliseconds to every exit, and floats beside 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import types
from typing import Any

from matplotlib import ticker
from matplotlib import transforms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.export import latency as latency_lib
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import inputs
from ms_ranas_jax.report import style
from ms_ranas_jax.sections import ONNX
from ms_ranas_jax.sections import TFLITE

# Lines of one runtime have one colour; those of 8 bits are dashed.
_FLOATS = types.MappingProxyType(
  {
    latency_lib.XLA: ('XLA', style.INK),
    latency_lib.ONNX: ('ONNX Runtime', style.PALETTE[5]),
    latency_lib.LITERT: ('LiteRT', style.ACCENT),
  }
)
_INT8 = types.MappingProxyType(
  {
    latency_lib.ONNX_INT8: (latency_lib.ONNX, ONNX),
    latency_lib.LITERT_INT8: (latency_lib.LITERT, TFLITE),
  }
)
_RUNTIME_OF = types.MappingProxyType(
  {ONNX: 'ONNX Runtime', TFLITE: 'LiteRT'}  # format -> what runs it
)
_ORDER = ('low', 'median', 'high')
# A range of more than this needs a logarithmic axis.
_WIDEST_LINEAR = 4.0
# Decades on which marks at 1, 2 and 5 have room for their numbers.
_MOST_DECADES = 2.5
_LABEL = 1.35 * style.FONT_SIZE  # from one label to the next, in points


@dataclasses.dataclass(frozen=True)
class Line:
  """A runtime in the picture.

  Attributes:
    name: what to write at its end.
    color: of the line.
    dashed: whether it is of 8 bits.
    times: (3, exits) milliseconds: lower quartiles, medians, upper quartiles.
    accuracies: (exits,) in [0, 1].
  """

  name: str
  color: str
  dashed: bool
  times: np.ndarray
  accuracies: np.ndarray


def runtime_name(runtime: str) -> str:
  """Returns what people call a runtime of `evaluate/latency.json`."""
  if runtime in _INT8:
    return f'{_FLOATS[_INT8[runtime][0]][0]}, 8 bits'
  if runtime == latency_lib.ONNX_ANYTIME:
    return f'{_FLOATS[latency_lib.ONNX][0]}, the file that stops'
  return _FLOATS[runtime][0] if runtime in _FLOATS else runtime


def add(page: html_page.Page, results: inputs.Results) -> None:
  """Adds the section: a picture and tables, or why there are none.

  Args:
    page: the page.
    results: what the work directory holds.
  """
  page.section('Milliseconds and 8 bits')
  latency, quantized = results.latency, results.quantized
  others = results.of_another_model
  if latency is None and quantized is None and not others:
    page.missing(
      'Nothing has been exported and measured in this work directory; the '
      'stage "export" does that.'
    )
    return
  for name in others:
    page.missing(
      f'{name} is not of the model in this work directory and is left out; '
      'run the stages "evaluate" and "export" again.'
    )
  if latency is not None:
    _add_latency(page, latency, results.anytime, quantized)
  elif inputs.LATENCY not in others:
    page.missing(
      f'There are no milliseconds ({inputs.LATENCY}) in this work directory; '
      'the stage "export" measures them where export.latency is set.'
    )
  if quantized is not None:
    _add_quantized(page, quantized)
  elif inputs.QUANTIZED not in others:
    page.missing(
      f'Nothing was judged in 8 bits ({inputs.QUANTIZED}) in this work '
      'directory; the stage "export" does that where export.int8 is set.'
    )


def _add_latency(
  page: html_page.Page,
  latency: Mapping[str, Any],
  anytime: Mapping[str, Any] | None,
  quantized: Mapping[str, Any] | None,
) -> None:
  """Adds what was measured."""
  lines = []
  if anytime is not None:
    same_images = quantized is not None and (
      quantized.get('test_images') == anytime.get('test_images')
    )
    lines = lines_of(
      latency['entries'],
      [exit_['accuracy'] for exit_ in anytime['exits']],
      quantized['exits'] if quantized is not None and same_images else (),
    )
    if quantized is not None and not same_images:
      page.missing(
        f'{inputs.QUANTIZED} is of other test images than evaluate/anytime.json'
        ', so the picture has no lines of 8 bits; run the stage "export" again.'
      )
  if lines:
    page.figure(
      draw(lines),
      'milliseconds',
      'Test accuracy against milliseconds to each exit, a line per runtime.',
      'Anytime, by the clock: one image at a time, on one thread. Marks are '
      'the medians to the logits of each exit, from dark to light; thin bars '
      'are their quartiles.'
      + any(line.dashed for line in lines)
      * ' Dashed lines are of 8 bits, with the accuracy of 8 bits.',
    )
  page.text(f'Measured on {_machine(latency)}.')
  page.text(
    'Milliseconds are cumulative, and of all images at a time together: what '
    'it takes to come from them to their logits at this exit. Each is the '
    'median of the rounds, with the quartiles in brackets. XLA is the network '
    'in JAX, on the CPU.'
  )
  num_exits = len(latency['entries'][0]['exits'])
  page.table(
    (
      'runtime',
      'threads',
      'images at a time',
      'rounds',
      *(f'exit {k}, ms' for k in range(num_exits)),
    ),
    (
      (
        runtime_name(entry['runtime']),
        f'{entry["threads"]:,}',
        f'{entry["batch_size"]:,}',
        f'{entry["rounds"]:,}',
        *map(_spread, entry['exits']),
      )
      for entry in latency['entries']
    ),
  )


def _machine(latency: Mapping[str, Any]) -> str:
  """Returns the words for the machine and what ran on it."""
  machine, versions = latency['machine'], latency['versions']
  cores = machine.get('cores', 'unknown')
  parts = [
    str(machine.get('processor', 'an unknown processor')),
    f'{cores} core{"s" * (cores != 1)}',
    str(machine.get('system', 'an unknown system')),
  ]
  used = [f'{name} {version}' for name, version in versions.items()]
  return ', '.join(parts) + (f', with {", ".join(used)}' if used else '')


def _spread(times: Mapping[str, float]) -> str:
  """Returns the words for a median and its quartiles."""
  low, middle, high = (_milliseconds(times[k]) for k in _ORDER)
  return f'{middle} ({low}–{high})'


def _milliseconds(value: float) -> str:
  """Returns a number with three digits that count."""
  if value <= 0:
    return '0'
  decimals = 2 - int(np.floor(np.log10(value)))
  return f'{value:,.{min(max(decimals, 0), 5)}f}'


def lines_of(
  entries: Sequence[Mapping[str, Any]],
  accuracies: Sequence[float],
  quantized: Sequence[Mapping[str, Any]],
) -> list[Line]:
  """Returns the lines of the picture: of one image on one thread.

  Args:
    entries: of `evaluate/latency.json`.
    accuracies: of each exit, in floats.
    quantized: "exits" of `export/quantized.json`; empty leaves out the lines
      of 8 bits.
  """
  lines = []
  for entry in entries:
    if (entry['threads'], entry['batch_size']) != (1, 1):
      continue
    runtime = entry['runtime']
    if runtime in _FLOATS:
      reached, base = accuracies, runtime
    elif runtime in _INT8:
      base, name = _INT8[runtime]
      if not quantized or name not in quantized[0]:
        continue
      reached = [record[name]['int8']['accuracy'] for record in quantized]
    else:
      continue  # its accuracy is not known
    lines.append(
      Line(
        name=runtime_name(runtime),
        color=_FLOATS[base][1],
        dashed=runtime in _INT8,
        times=np.asarray(
          [[times[k] for times in entry['exits']] for k in _ORDER], np.float64
        ),
        accuracies=np.asarray(reached, np.float64),
      )
    )
  return lines


@style.styled()
def draw(lines: Sequence[Line]) -> Figure:
  """Draws accuracy against milliseconds.

  Args:
    lines: at least one; all have the same exits.

  Returns:
    The figure: a line per runtime with its name above its end.
  """
  # The slowest is named lowest: no name meets the rule of another one.
  lines = sorted(lines, key=lambda line: -line.times[1, -1])
  above = _LABEL * len(lines) + 8.0  # points that the names need
  bottom, top, left, right = 40.0, 6.0, 56.0, 8.0
  plotted = 225.0
  width = style.CHART_WIDTH * style.POINTS_PER_INCH
  height = bottom + plotted + above + top
  figure = Figure(figsize=(style.CHART_WIDTH, height / style.POINTS_PER_INCH))
  axes = figure.add_axes(
    (
      left / width,
      bottom / height,
      (width - left - right) / width,
      (plotted + above) / height,
    )
  )
  _set_accuracy_axis(axes, lines, plotted, above)
  _set_time_axis(axes, lines, width - left - right)
  for rank, line in enumerate(lines):
    values = 100 * line.accuracies
    axes.plot(
      line.times[1],
      values,
      color=line.color,
      linestyle=style.DASHES[1] if line.dashed else '-',
      zorder=3,
    )
    axes.hlines(
      values, line.times[0], line.times[2], color=line.color, linewidth=0.8
    )
    axes.scatter(
      line.times[1],
      values,
      c=style.exit_colors(len(values)),
      s=34,
      zorder=4,
      edgecolors=line.color,
      linewidths=1.0,
    )
    # In points from the upper left corner of the axes, downwards.
    place = plotted + above - _LABEL * (len(lines) - rank - 0.5)
    _name_end(axes, line, place / (plotted + above))
  axes.set_xlabel('milliseconds per image, one thread')
  axes.set_ylabel('test accuracy, %')
  return figure


def _set_accuracy_axis(
  axes: Axes, lines: Sequence[Line], plotted: float, above: float
) -> None:
  """Settles the range of accuracies, and leaves room for names above it."""
  everything = 100 * np.concatenate([line.accuracies for line in lines])
  low, high = everything.min(), everything.max()
  room = max(0.12 * (high - low), 0.5)
  low, high = low - room, high + room
  axes.set_ylim(low, high + (high - low) * above / plotted)
  ticks = np.asarray(ticker.MaxNLocator(6).tick_values(low, high))
  ticks = ticks[(low <= ticks) & (ticks <= min(high, 100 + 1e-9))]
  axes.set_yticks(ticks)
  axes.spines['left'].set_bounds(low, high)
  axes.yaxis.set_label_coords(
    -44 / (axes.get_position().width * style.CHART_WIDTH * 72),
    0.5 * plotted / (plotted + above),
  )


def _set_time_axis(axes: Axes, lines: Sequence[Line], width: float) -> None:
  """Settles the range of milliseconds, so that names end in the axes."""
  medians = np.concatenate([line.times[1] for line in lines])
  least = min(line.times[0].min() for line in lines)
  logarithmic = medians.max() > _WIDEST_LINEAR * medians.min()
  start = np.log10(least) if logarithmic else 0.0
  pad = 10.0 if logarithmic else 0.0
  scale = np.inf  # points for each unit of the axis
  for line in lines:
    for value, needed in (
      (line.times[1, -1], 6.0 + style.text_width(line.name)),
      (line.times[2].max(), 8.0),
    ):
      run = (np.log10(value) if logarithmic else value) - start
      if run > 0:
        scale = min(scale, (width - pad - needed) / run)
  ends = start - pad / scale, start + (width - pad) / scale
  if logarithmic:
    axes.set_xscale('log')
    axes.set_xlim(10 ** ends[0], 10 ** ends[1])
    few = ends[1] - ends[0] > _MOST_DECADES
    axes.xaxis.set_major_locator(
      ticker.LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(
      ticker.FuncFormatter(lambda value, _: f'{value:g}')
    )
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  else:
    axes.set_xlim(*ends)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6))


def _name_end(axes: Axes, line: Line, place: float) -> None:
  """Writes the name of a line above its end, with a rule between them."""
  mixed = transforms.blended_transform_factory(axes.transData, axes.transAxes)
  end, reached = line.times[1, -1], 100 * line.accuracies[-1]
  low, high = axes.get_ylim()
  axes.plot(
    [end, end],
    [(reached - low) / (high - low), place],
    transform=mixed,
    color=style.FAINT,
    linewidth=0.6,
    zorder=2,
    label='_rule',
  )
  axes.annotate(
    line.name,
    xy=(end, place),
    xycoords=mixed,
    xytext=(4, 0),
    textcoords='offset points',
    ha='left',
    va='center',
    color=line.color,
  )


def _add_quantized(page: html_page.Page, quantized: Mapping[str, Any]) -> None:
  """Adds floats beside 8 bits."""
  exits = quantized['exits']
  rows = list(_rows(exits))
  reaching = ', '.join(
    f'{count:,}' for count in quantized['calibration_images']
  )
  page.text(
    'The same network in floats and in 8 bits, on '
    f'{quantized["num_examples"]:,} test images of {quantized["dataset"]}. '
    'The ranges of 8 bits were found on held-out images, for each step on '
    'those that reach it with the thresholds of q = '
    f'{quantized["calibration_q"]:g}: {reaching} images.'
  )
  about = 'Bytes of ONNX are of all steps up to this exit.'
  if TFLITE in exits[0]:
    about += ' A file of LiteRT is one, with all exits.'
  if any('milliseconds' in row.floats for row in rows):
    about += ' Milliseconds are medians, one image at a time on one thread.'
  page.text(about)
  columns = {
    'runtime': [row.runtime for row in rows],
    'exit': [f'{row.exit}' for row in rows],
    'accuracy in floats, %': [_percent(row.floats) for row in rows],
    'accuracy in 8 bits, %': [_percent(row.int8) for row in rows],
    'points won or lost': [
      _points(row.int8['accuracy'] - row.floats['accuracy']) for row in rows
    ],
  }
  for field, head, in_words in (
    ('weight_bytes', 'weights in {}, bytes', '{:,.0f}'.format),
    ('file_bytes', 'file in {}, bytes', '{:,.0f}'.format),
    ('milliseconds', 'ms in {}', _milliseconds),
  ):
    for form, cells in (
      ('floats', [row.floats for row in rows]),
      ('8 bits', [row.int8 for row in rows]),
    ):
      if any(field in cell for cell in cells):
        columns[head.format(form)] = [
          in_words(cell[field]) if field in cell else '–' for cell in cells
        ]
  page.table(list(columns), zip(*columns.values(), strict=True))


@dataclasses.dataclass(frozen=True)
class _Row:
  """An exit of a runtime, in floats and in 8 bits."""

  runtime: str
  exit: int
  floats: Mapping[str, float]
  int8: Mapping[str, float]


def _rows(exits: Sequence[Mapping[str, Any]]) -> Iterator[_Row]:
  """Yields the rows of the table, all exits of one runtime first."""
  for name, runtime in _RUNTIME_OF.items():
    for record in exits:
      if name in record:
        forms = record[name]
        yield _Row(runtime, record['exit'], forms['float32'], forms['int8'])


def _percent(cell: Mapping[str, float]) -> str:
  return f'{100 * cell["accuracy"]:.2f}'


def _points(share: float) -> str:
  """Returns how many points of a hundred were won or lost."""
  points = round(100 * share, 2)
  return f'{points:+.2f}' if points else '0.00'

"""Tests of the picture of a cell."""

import numpy as np
import pytest

from ms_ranas_jax.baselines import cells as published_cells
from ms_ranas_jax.report import cells
from ms_ranas_jax.report import style

_TWO = (
  ('sep_conv_3x3', 0),
  ('sep_conv_5x5', 1),
  ('skip_connect', 2),
  ('dil_conv_3x3', 0),
)
_CHAIN = (
  *_TWO,
  ('sep_conv_3x3', 3),
  ('max_pool_3x3', 0),
  ('dil_conv_5x5', 4),
  ('avg_pool_3x3', 1),
  ('dil_conv_5x5', 5),
  ('avg_pool_3x3', 0),
)


def _random_cells():
  rng = np.random.default_rng(0)
  names = ('skip_connect', 'sep_conv_3x3', 'a_rather_long_operation_of_mine')
  for nodes in (1, 2, 3, 4, 5) * 3:
    edges = [
      (names[rng.integers(3)], int(rng.integers(2 + index // 2)))
      for index in range(2 * nodes)
    ]
    concat = np.flatnonzero(rng.uniform(size=nodes) < 0.7) + 2
    yield tuple(edges), tuple(concat.tolist() or [1 + nodes])


_CELLS = {
  'two': (_TWO, (2, 3)),
  'chain': (_CHAIN, (2, 3, 4, 5, 6)),
  **{
    f'{name}-{kind}': (
      found.edges(kind == 'reduction'),
      found.concat(kind == 'reduction'),
    )
    for name, found in published_cells.PUBLISHED.items()
    for kind in ('normal', 'reduction')
  },
  **{f'random-{i}': cell for i, cell in enumerate(_random_cells())},
}


def _boxes(place):
  """Returns (vertex, left, top, right, bottom) of what is drawn."""
  return [
    (
      v,
      place.x[v] - vertex.width / 2,
      place.y[v] - vertex.height / 2,
      place.x[v] + vertex.width / 2,
      place.y[v] + vertex.height / 2,
    )
    for v, vertex in enumerate(place.vertices)
    if vertex.width
  ]


def _sample(path):
  """Returns many points on a path of lines and cubic curves."""
  points = []
  for corners, code in path.iter_segments(simplify=False):
    corners = corners.reshape(-1, 2)
    if code == path.MOVETO:
      here = corners[0]
      continue
    t = np.linspace(0, 1, 60)[:, np.newaxis]
    if code == path.LINETO:
      points.append(here + t * (corners[0] - here))
    else:
      assert code == path.CURVE4
      a, b, c = corners
      points.append(
        (1 - t) ** 3 * here
        + 3 * (1 - t) ** 2 * t * a
        + 3 * (1 - t) * t**2 * b
        + t**3 * c
      )
    here = corners[-1]
  return np.concatenate(points)


@pytest.mark.parametrize('name', _CELLS)
def test_nothing_overlaps(name):
  place = cells.layout(*_CELLS[name])
  boxes = _boxes(place)
  for index, (_, left, top, right, bottom) in enumerate(boxes):
    assert left >= 0 and top >= 0
    for _, left2, top2, right2, bottom2 in boxes[:index]:
      assert (
        right + 5 < left2
        or right2 + 5 < left
        or bottom + 5 < top2
        or bottom2 + 5 < top
      )
  for ends, path in zip(place.links, cells.link_paths(place)):
    points = _sample(path)
    for v, left, top, right, bottom in boxes:
      if v in ends:
        continue
      inside = (
        (points[:, 0] > left - 1)
        & (points[:, 0] < right + 1)
        & (points[:, 1] > top - 1)
        & (points[:, 1] < bottom + 1)
      )
      assert not inside.any()


@pytest.mark.parametrize('name', _CELLS)
def test_links_say_what_the_genotype_says(name):
  edges, concat = _CELLS[name]
  place = cells.layout(edges, concat)
  texts = [vertex.text for vertex in place.vertices]
  states = ['$c_{k-2}$', '$c_{k-1}$', *map(str, range(len(edges) // 2))]
  before = {}
  for source, target in place.links:
    before.setdefault(target, []).append(source)

  def back(v):
    """Follows lanes, which have no text, back to where they start."""
    while not texts[v]:
      (v,) = before[v]
    return v

  got = []
  for node in range(len(edges) // 2):
    for label in before[texts.index(str(node))]:
      (source,) = before[label]
      got.append((texts[label], states.index(texts[back(source)])))
  assert got == list(edges)
  outputs = before[texts.index('$c_k$')]
  assert sorted(states.index(texts[back(v)]) for v in outputs) == sorted(concat)


def test_columns_run_to_the_right():
  place = cells.layout(*_CELLS['chain'])
  for source, target in place.links:
    assert place.x[source] < place.x[target]
    ranks = place.vertices[source].rank, place.vertices[target].rank
    assert ranks[1] - ranks[0] == 1


def test_few_lines_cross():
  assert cells.layout(*_CELLS['two']).crossings == 0
  assert cells.layout(*_CELLS['DARTS_V2-reduction']).crossings <= 1
  assert cells.layout(*_CELLS['NASNet-normal']).crossings <= 1


@pytest.mark.parametrize('name', ['two', 'chain', 'AmoebaNet-reduction'])
def test_picture(name, primitives, check_texts):
  edges, concat = _CELLS[name]
  figure = cells.draw(edges, concat, style.operation_styles(primitives))
  # Two inputs, the output, a label per edge and a number per node.
  check_texts(figure, least=3 + len(edges) + len(edges) // 2)
  (axes,) = figure.axes
  drawn = sorted(text.get_text() for text in axes.texts)
  for operation, _ in edges:
    drawn.remove(operation)
  nodes = [str(node) for node in range(len(edges) // 2)]
  assert drawn == sorted([*cells.INPUT_NAMES, cells.OUTPUT_NAME, *nodes])


def test_the_picture_does_not_change():
  first = cells.layout(*_CELLS['DARTS_V1-normal'])
  second = cells.layout(*_CELLS['DARTS_V1-normal'])
  np.testing.assert_array_equal(first.y, second.y)
  assert first.links == second.links

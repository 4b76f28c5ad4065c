"""A derived cell as a graph.

The two inputs stand on the left, the output on the right, and between them the
nodes, each as far right as its longest way from the inputs. The layout is
layered: an operation's label takes a place of its own in the column before its
node, and an edge that passes a column does so on a lane of its own. Lines bend
only in the gaps between columns, so no line runs through a label and no two
labels meet, whatever the genotype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses

from matplotlib import patches
from matplotlib import path as mpl_path
from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import style
from ms_ranas_jax.space import edges as edges_lib
from ms_ranas_jax.space.genotype import Edge

INPUT_NAMES = ('$c_{k-2}$', '$c_{k-1}$')
OUTPUT_NAME = '$c_k$'

# In points.
_NODE = 25.0
_BOX = 21.0
_LANE = 6.0
_PADDING = 8.0
_SEPARATION = 9.0
_GAP = 30.0
_MARGIN = 7.0

_INPUT, _LABEL, _NODE_KIND, _DUMMY, _OUTPUT = range(5)
_ARROWED = (_NODE_KIND, _OUTPUT)
_HEIGHTS = {
  _INPUT: _BOX,
  _LABEL: _BOX,
  _NODE_KIND: _NODE,
  _DUMMY: _LANE,
  _OUTPUT: _NODE,
}


@dataclasses.dataclass(frozen=True)
class _Vertex:
  """Something that takes a place: its column, what it is, and its text."""

  rank: int
  kind: int
  text: str = ''

  @property
  def height(self) -> float:
    return _HEIGHTS[self.kind]

  @property
  def width(self) -> float:
    if self.kind == _DUMMY:
      return 0.0
    if self.kind in (_NODE_KIND, _OUTPUT):
      return max(_NODE, style.text_width(self.text) + _PADDING)
    return style.text_width(self.text) + 2 * _PADDING


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where everything stands; indices run over the vertices.

  Attributes:
    vertices: what takes a place.
    links: (from, to) between vertices of neighbouring columns.
    first_concat: the index of the first link that leads to the output.
    x: (vertices,) centres, in points.
    y: (vertices,) centres, in points, downwards.
    column_x: (columns, 2) left and right ends of the columns.
    crossings: how many pairs of links cross.
  """

  vertices: tuple[_Vertex, ...]
  links: tuple[tuple[int, int], ...]
  first_concat: int
  x: np.ndarray
  y: np.ndarray
  column_x: np.ndarray
  crossings: int


def _graph(
  edges: Sequence[Edge], concat: Sequence[int]
) -> tuple[list[_Vertex], list[tuple[int, int]], int]:
  """Makes vertices and links; those from the returned index on concatenate."""
  vertices = [_Vertex(0, _INPUT, name) for name in INPUT_NAMES]
  links = []
  states = list(range(edges_lib.NUM_INPUTS))  # the vertex of each state

  def connect(source: int, target_rank: int) -> int:
    """Adds lanes up to the column before `target_rank`; returns the last."""
    for rank in range(vertices[source].rank + 1, target_rank):
      vertices.append(_Vertex(rank, _DUMMY))
      links.append((source, len(vertices) - 1))
      source = len(vertices) - 1
    return source

  for node in range(len(edges) // 2):
    incoming = edges[2 * node : 2 * node + 2]
    rank = 2 + max(vertices[states[state]].rank for _, state in incoming)
    vertices.append(_Vertex(rank, _NODE_KIND, str(node)))
    states.append(len(vertices) - 1)
    for operation, state in incoming:
      end = connect(states[state], rank - 1)
      vertices.append(_Vertex(rank - 1, _LABEL, operation))
      label = len(vertices) - 1
      links += [(end, label), (label, states[-1])]
  rank = 1 + max(vertex.rank for vertex in vertices)
  vertices.append(_Vertex(rank, _OUTPUT, OUTPUT_NAME))
  output = len(vertices) - 1
  first_concat = len(links)
  for state in concat:
    links.append((connect(states[state], rank), output))
  return vertices, links, first_concat


def _count_crossings(
  place: np.ndarray, links_by_rank: Sequence[np.ndarray]
) -> int:
  total = 0
  for links in links_by_rank:
    ends = place[links]
    delta = ends[:, np.newaxis, :] - ends[np.newaxis, :, :]
    total += int((delta[..., 0] * delta[..., 1] < 0).sum()) // 2
  return total


def _order(
  vertices: Sequence[_Vertex], links: Sequence[tuple[int, int]]
) -> tuple[list[list[int]], int]:
  """Orders each column so that few links cross.

  Sweeps by the mean place of the neighbours, then swaps neighbours as long as
  that helps, from several starts. Inputs keep their order.
  """
  ranks = [
    [v for v, vertex in enumerate(vertices) if vertex.rank == rank]
    for rank in range(1 + max(vertex.rank for vertex in vertices))
  ]
  link_array = np.array(links)
  link_ranks = np.array([vertices[source].rank for source, _ in links])
  links_by_rank = [link_array[link_ranks == r] for r in range(len(ranks) - 1)]
  neighbours: list[list[list[int]]] = [[[], []] for _ in vertices]
  for source, target in links:
    neighbours[target][0].append(source)
    neighbours[source][1].append(target)
  place = np.zeros(len(vertices))

  def settle(order: list[int]) -> None:
    place[order] = np.arange(len(order)) - (len(order) - 1) / 2

  best: tuple[tuple[int, float], list[list[int]]] | None = None
  rng = np.random.default_rng(0)  # fixed: the picture must not change
  for attempt in range(24):
    orders = [list(rank) for rank in ranks]
    if attempt:
      for order in orders[1:]:
        rng.shuffle(order)
    for order in orders:
      settle(order)
    for sweep in range(8):
      side = sweep % 2
      columns = range(1, len(orders))
      for r in columns if side == 0 else reversed(columns):
        orders[r].sort(
          key=lambda v: (
            np.mean(place[neighbours[v][side]])
            if neighbours[v][side]
            else place[v]
          )
        )
        settle(orders[r])
    crossings = _count_crossings(place, links_by_rank)
    improved = True
    while improved and crossings:
      improved = False
      for order in orders[1:]:
        for i in range(len(order) - 1):
          order[i], order[i + 1] = order[i + 1], order[i]
          settle(order)
          swapped = _count_crossings(place, links_by_rank)
          if swapped < crossings:
            crossings, improved = swapped, True
          else:
            order[i], order[i + 1] = order[i + 1], order[i]
            settle(order)
    climb = float(np.abs(np.diff(place[link_array], axis=1)).sum())
    if best is None or (crossings, climb) < best[0]:
      best = (crossings, climb), [list(order) for order in orders]
  assert best is not None
  return best[1], best[0][0]


def _straighten(
  vertices: Sequence[_Vertex],
  links: Sequence[tuple[int, int]],
  orders: Sequence[Sequence[int]],
  gaps: Sequence[np.ndarray],
  y: np.ndarray,
) -> None:
  """Puts each run of lanes on one height where the columns leave room."""
  precedes = {target: source for source, target in links}
  end_of = {source: target for source, target in links}
  runs = []
  for v, vertex in enumerate(vertices):
    if vertex.kind == _DUMMY and vertices[precedes[v]].kind != _DUMMY:
      run = [v]
      while vertices[end_of[run[-1]]].kind == _DUMMY:
        run.append(end_of[run[-1]])
      runs.append(run)
  for _ in range(6):
    for run in runs:
      low, high = -np.inf, np.inf
      for v in run:
        order = orders[vertices[v].rank]
        i = order.index(v)
        if i:
          low = max(low, y[order[i - 1]] + gaps[vertices[v].rank][i - 1])
        if i + 1 < len(order):
          high = min(high, y[order[i + 1]] - gaps[vertices[v].rank][i])
      if low <= high:
        y[run] = np.clip(y[end_of[run[-1]]], low, high)


def layout(edges: Sequence[Edge], concat: Sequence[int]) -> Layout:
  """Lays a cell out.

  Args:
    edges: two `(operation, state)` pairs per node, as in a genotype.
    concat: the states that make the output.

  Returns:
    The layout, the same for the same cell.
  """
  vertices, links, first_concat = _graph(edges, concat)
  orders, crossings = _order(vertices, links)
  y = np.zeros(len(vertices))
  gaps = []
  for order in orders:
    heights = np.array([vertices[v].height for v in order])
    gaps.append((heights[1:] + heights[:-1]) / 2 + _SEPARATION)
    y[order] = style.spread(np.zeros(len(order)), gaps[-1])
  pulls: list[list[tuple[int, float]]] = [[] for _ in vertices]
  for source, target in links:
    kinds = vertices[source].kind, vertices[target].kind
    # A straight lane matters more than a short way.
    weight = {0: 1.0, 1: 2.0, 2: 6.0}[kinds.count(_DUMMY)]
    if kinds == (_LABEL, _NODE_KIND):
      weight = 2.0
    pulls[source].append((target, weight))
    pulls[target].append((source, weight))
  for sweep in range(60):
    for r in range(len(orders)) if sweep % 2 else reversed(range(len(orders))):
      order = orders[r]
      wanted = [
        np.average(
          [y[u] for u, _ in pulls[v]], weights=[w for _, w in pulls[v]]
        )
        if pulls[v]
        else y[v]
        for v in order
      ]
      y[order] = style.spread(wanted, gaps[r])
  _straighten(vertices, links, orders, gaps, y)
  y += _MARGIN - min(y[v] - u.height / 2 for v, u in enumerate(vertices))

  column_x = np.zeros((len(orders), 2))
  x = np.zeros(len(vertices))
  left = _MARGIN
  for r, order in enumerate(orders):
    width = max(vertices[v].width for v in order)
    column_x[r] = left, left + width
    x[order] = left + width / 2
    left += width + _GAP
  return Layout(
    vertices=tuple(vertices),
    links=tuple(links),
    first_concat=first_concat,
    x=x,
    y=y,
    column_x=column_x,
    crossings=crossings,
  )


def _entry_offsets(place: Layout) -> dict[tuple[int, int], float]:
  """Spreads the arrowheads that meet at a node over its height."""
  offsets = {}
  for v, vertex in enumerate(place.vertices):
    sources = [
      (place.y[source], index)
      for index, (source, target) in enumerate(place.links)
      if target == v
    ]
    room = vertex.height - 9.0
    step = min(9.0, room / max(len(sources) - 1, 1))
    for position, (_, index) in enumerate(sorted(sources)):
      offsets[v, index] = step * (position - (len(sources) - 1) / 2)
  return offsets


def link_paths(place: Layout) -> list[mpl_path.Path]:
  """Returns the way of each link: level in the columns, bent between them."""
  entries = _entry_offsets(place)
  paths = []
  for index, (source, target) in enumerate(place.links):
    start, end = place.vertices[source], place.vertices[target]
    x0 = place.x[source] + start.width / 2
    y0 = place.y[source]
    x1 = place.x[target] - end.width / 2
    y1 = place.y[target]
    if end.kind in _ARROWED:
      entry = entries[target, index]
      y1 += entry
      if end.kind == _NODE_KIND:  # on the circle, not on its box
        x1 = place.x[target] - np.sqrt((_NODE / 2) ** 2 - entry**2)
    gap0 = place.column_x[start.rank, 1]
    gap1 = place.column_x[end.rank, 0]
    middle = (gap0 + gap1) / 2
    points = [(x0, y0), (gap0, y0), (middle, y0), (middle, y1), (gap1, y1)]
    codes = [mpl_path.Path.MOVETO, mpl_path.Path.LINETO]
    codes += [mpl_path.Path.CURVE4] * 3
    if x1 > gap1:
      points.append((x1, y1))
      codes.append(mpl_path.Path.LINETO)
    paths.append(mpl_path.Path(points, codes))
  return paths


@style.styled()
def draw(
  edges: Sequence[Edge],
  concat: Sequence[int],
  operation_styles: Mapping[str, tuple[str, style.Dashes]],
) -> Figure:
  """Draws a cell.

  Args:
    edges: two `(operation, state)` pairs per node, as in a genotype.
    concat: the states that make the output.
    operation_styles: from `style.operation_styles`; an operation that is
      not in it gets a neutral frame.

  Returns:
    The figure, as large as the cell needs.
  """
  place = layout(edges, concat)
  bottom = max(
    place.y[v] + vertex.height / 2 for v, vertex in enumerate(place.vertices)
  )
  figure, axes = style.canvas(place.column_x[-1, 1] + _MARGIN, bottom + _MARGIN)
  for index, path in enumerate(link_paths(place)):
    arrow = place.vertices[place.links[index][1]].kind in _ARROWED
    axes.add_artist(
      patches.FancyArrowPatch(
        path=path,
        arrowstyle='-|>,head_length=5,head_width=2.6' if arrow else '-',
        mutation_scale=1,
        shrinkA=0,
        shrinkB=0,
        color=style.FAINT,
        linestyle=(0, (3.5, 2)) if index >= place.first_concat else '-',
        linewidth=1.2,
        zorder=1,
      )
    )
  for v, vertex in enumerate(place.vertices):
    if vertex.kind == _DUMMY:
      continue
    center = (place.x[v], place.y[v])
    if vertex.kind == _NODE_KIND:
      axes.add_artist(
        patches.Circle(
          center,
          _NODE / 2,
          facecolor='#e8e8e8',
          edgecolor=style.INK,
          linewidth=1.0,
          zorder=2,
        )
      )
    else:
      frame, width = style.INK, 1.0
      if vertex.kind == _LABEL:
        frame = operation_styles.get(vertex.text, (style.FAINT,))[0]
        width = 2.0
      axes.add_artist(
        patches.FancyBboxPatch(
          (center[0] - vertex.width / 2, center[1] - vertex.height / 2),
          vertex.width,
          vertex.height,
          boxstyle=f'round,pad=0,rounding_size={4 if width == 2 else 0.1}',
          facecolor=style.PAPER if width == 2 else '#e8e8e8',
          edgecolor=frame,
          linewidth=width,
          zorder=2,
        )
      )
    axes.text(
      *center,
      vertex.text,
      ha='center',
      va='center_baseline',
      zorder=3,
      fontsize=style.FONT_SIZE,
    )
  return figure

"""What the network was trained on: images per class, and some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from ms_ranas_jax.report import classes
from ms_ranas_jax.report import html_page
from ms_ranas_jax.report import style

# In inches: an image, and the name of its class before it.
_CELL, _NAME = 0.5, 1.5
_GAP = 0.05  # of an image's height


def add(
  page: html_page.Page,
  summary: Mapping[str, Any],
  examples: Mapping[str, np.ndarray],
) -> None:
  """Adds the section about the images.

  Args:
    page: the page.
    summary: content of `images/summary.json`.
    examples: content of `images/examples.npz`.
  """
  page.section('Images')
  height, width, channels = summary['image_shape']
  of_classes = summary['classes']
  train, test = (
    [entry[part] for entry in of_classes] for part in ('train', 'test')
  )
  page.text(
    f'{summary["name"]}: {sum(train):,} training and {sum(test):,} test images '
    f'of {height}x{width} pixels (height x width) with {channels} '
    f'channel{"s" * (channels > 1)}, of {len(of_classes)} classes with '
    f'{min(train):,} to {max(train):,} training images each.'
  )
  for note in summary['notes']:
    page.text(f'{note[0].upper()}{note[1:]}.')
  names = classes.shown_names([entry['name'] for entry in of_classes])
  labels = examples['labels']
  listed = ', '.join(names[label] for label in np.unique(labels))
  page.figure(
    draw_examples(examples['images'], labels, names),
    'images',
    f'Training images of the classes {listed}.',
    'Training images as they are read, before anything random is done to them; '
    'a row is a class.',
  )
  page.table(
    ('class', 'training images', 'test images'),
    (
      (entry['name'], f'{entry["train"]:,}', f'{entry["test"]:,}')
      for entry in of_classes
    ),
    folded='Images of every class',
  )


@style.styled()
def draw_examples(
  images: np.ndarray, labels: np.ndarray, names: list[str]
) -> Figure:
  """Draws images, a row for each class.

  Args:
    images: uint8 (n, height, width, channels); of other than one or three
      channels the first is drawn.
    labels: (n,), in rising order.
    names: of the classes.
  """
  if images.shape[-1] != 3:
    images = np.repeat(images[..., :1], 3, axis=-1)
  shown, starts, counts = np.unique(
    labels, return_index=True, return_counts=True
  )
  height, width = images.shape[1:3]
  # One picture: a matplotlib axes for each image would take seconds.
  gap = max(round(_GAP * height), 1)
  across, down = width + gap, height + gap
  sheet = np.full((len(shown) * down, counts.max() * across, 3), 255, np.uint8)
  for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
    for column in range(count):
      top, left = row * down, column * across
      sheet[top : top + height, left : left + width] = images[start + column]
  tall = len(shown) * _CELL
  broad = _NAME + tall * sheet.shape[1] / sheet.shape[0]
  figure = Figure(figsize=(broad, tall))
  axes = figure.add_axes((_NAME / broad, 0, 1 - _NAME / broad, 1))
  axes.imshow(sheet, interpolation='nearest', aspect='auto')
  axes.set_axis_off()
  for row, label in enumerate(shown):
    figure.text(
      (_NAME - 0.1) / broad,
      1 - (row + 0.5) / len(shown),
      names[label],
      ha='right',
      va='center',
    )
  return figure

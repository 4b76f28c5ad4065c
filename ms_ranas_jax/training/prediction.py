"""Logits of a trained network for many images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools

import jax
import numpy as np

from ms_ranas_jax.training import augmentation

Variables = Mapping[str, Mapping]


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _logits(apply, variables, images, mean, std):
  return apply(variables, augmentation.normalize(images, mean, std))


def predict(
  apply: Callable[[Variables, jax.Array], jax.Array],
  variables: Variables,
  images: np.ndarray,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  batch_size: int = 250,
  rows: np.ndarray | None = None,
) -> np.ndarray:
  """Computes the logits of all exits, batch by batch, on one device.

  Args:
    apply: (variables, normalised images) -> logits (exits, batch, classes);
      pass the same object again to reuse its compilation.
    variables: params and batch_stats.
    images: (n, height, width, channels) uint8, n at least 1.
    mean: per channel, of images / 255.
    std: the same.
    batch_size: images per call; the last batch is filled up.
    rows: indices of those of the images that are meant; None is all.

  Returns:
    (exits, n, classes) float32, of as many images.
  """
  count = len(images) if rows is None else len(rows)
  batch_size = min(batch_size, count)
  parts = []
  for start in range(0, count, batch_size):
    part = slice(start, min(start + batch_size, count))
    batch = images[part] if rows is None else images[rows[part]]
    missing = batch_size - len(batch)
    if missing:
      batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
    parts.append(_logits(apply, variables, batch, mean, std))
  return np.concatenate([np.asarray(p) for p in parts], axis=1)[:, :count]

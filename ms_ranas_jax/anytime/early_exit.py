"""Running a trained network exit by exit, and no further than is asked.

The steps of a network (`space.protocol`) are compiled one by one. Evaluation
and prediction both run them from here, so that what was judged is what
answers. Where images leave, those that stay are gathered out of the batch and
go on from the features at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.space import protocol
from ms_ranas_jax.training import augmentation

Variables = Mapping[str, Mapping[str, Any]]

# A threshold that no confidence comes up to, and one that all do.
NOBODY, EVERYBODY = 2.0, 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledSteps:
  """The steps of a network on uint8 images, compiled when they are first run.

  Attributes:
    network: of any family, on one device.
    variables: its params and batch_stats.
    mean: per channel, of images / 255.
    std: the same.
  """

  network: protocol.AnytimeNetwork
  variables: Variables
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @functools.cached_property
  def _needed(self) -> dict[int, Variables]:
    """The variables of the steps that have run."""
    return {}

  def _advance(self, variables, carried, step):
    if not step:
      images = carried[protocol.IMAGES]
      carried = {
        protocol.IMAGES: augmentation.normalize(images, self.mean, self.std)
      }
    return self.network.apply(
      variables, carried, step=step, train=False, method='advance'
    )

  @functools.cached_property
  def _compiled(self):
    return jax.jit(self._advance, static_argnums=2)

  def take(
    self, carried: protocol.Carried, step: int
  ) -> tuple[protocol.Carried, jax.Array]:
    """Takes a step.

    Args:
      carried: what the step before returned, or `{IMAGES: uint8 images}`.
      step: index of the exit to come to.

    Returns:
      What the next step takes, and the logits (batch, classes), float32.
    """
    if step not in self._needed:
      # A call with all variables would look at each of them, every time.
      modules = self.network.modules_of_step(step)
      self._needed[step] = jax.device_put(
        {
          collection: {
            name: value for name, value in entries.items() if name in modules
          }
          for collection, entries in self.variables.items()
        }
      )
    return self._compiled(self._needed[step], carried, step)

  def gather(
    self, carried: protocol.Carried, rows: np.ndarray
  ) -> protocol.Carried:
    """Returns what is carried of some images.

    Args:
      carried: of a batch.
      rows: (images,) positions in it.
    """
    return _gather(dict(carried), rows, self.network.batch_axis)

  def logits(self, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Computes the logits of all exits.

    Args:
      images: (images, height, width, channels) uint8.
      batch_size: images at a time.

    Returns:
      (exits, images, classes) float32.
    """
    parts = []
    for start in range(0, len(images), batch_size):
      batch = images[start : start + batch_size]
      carried = filled(batch, batch_size)
      found = []
      for step in range(self.network.num_exits):
        carried, logits = self.take(carried, step)
        found.append(logits)
      parts.append(np.stack(jax.device_get(found))[:, : len(batch)])
    return np.concatenate(parts, axis=1)

  def early_exits(
    self,
    images: np.ndarray,
    thresholds: Sequence[float],
    temperatures: Sequence[float],
    batch_size: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Lets each image leave at the first exit that is sure enough.

    Args:
      images: (images, height, width, channels) uint8.
      thresholds: one per exit to be taken at most; an image leaves where its
        confidence is at least that, and at the last of them in any case.
      temperatures: of the same exits.
      batch_size: images at a time.

    Returns:
      The probabilities (images, classes), float64, and the exits (images,),
      int32, that images left at.
    """
    classes = self.network.plan.spec.num_classes
    found = np.zeros((len(images), classes))
    exits = np.zeros(len(images), np.int32)
    for start in range(0, len(images), batch_size):
      stop = min(start + batch_size, len(images))
      for rows, exit_, values in self._leave(
        images[start:stop], thresholds, temperatures, batch_size
      ):
        found[start + rows] = values
        exits[start + rows] = exit_
    return found, exits

  def _leave(
    self, images, thresholds, temperatures, batch_size
  ) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Yields the rows of the images that leave, the exit and probabilities."""
    carried = filled(images, batch_size)
    size = len(carried[protocol.IMAGES])
    left = places = np.arange(len(images))
    last = len(thresholds) - 1
    for step, threshold in enumerate(thresholds):
      carried, logits = self.take(carried, step)
      if step < last and threshold > 1:
        continue  # nobody leaves, so nobody has to wait for the logits
      found = calibration.probabilities(
        np.asarray(logits)[places], temperatures[step]
      )
      leave = found.max(axis=-1) >= threshold
      if step == last:
        leave[:] = True
      if leave.any():
        yield left[leave], step, found[leave]
      left, places = left[~leave], places[~leave]
      if not left.size:
        return
      fewer = bucket(left.size, batch_size)
      if fewer < size:
        rows = np.pad(places, (0, fewer - left.size), mode='edge')
        carried, size = self.gather(carried, rows), fewer
        places = np.arange(left.size)


@functools.partial(jax.jit, static_argnums=2)
def _gather(carried, rows, axis):
  return {
    name: jnp.take(value, rows, axis=axis, mode='clip')
    for name, value in carried.items()
  }


def bucket(count: int, most: int) -> int:
  """Returns how many images a step is compiled for that has to take so many.

  Powers of two and their one and a half times: at most a third of a batch is
  computed in vain, and there are few programs.

  >>> [bucket(count, 64) for count in (1, 5, 33, 49, 64)]
  [1, 6, 48, 64, 64]

  Args:
    count: images, at least 1.
    most: the largest batch.
  """
  power = 1 << (count - 1).bit_length()
  less = power * 3 // 4
  size = less if less >= count else power
  return min(size, most)


def filled(images: np.ndarray, batch_size: int) -> protocol.Carried:
  """Returns what the first step takes, filled up with the last image.

  Args:
    images: (images, height, width, channels) uint8, at least one.
    batch_size: the largest batch.
  """
  missing = bucket(len(images), batch_size) - len(images)
  if missing:
    images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
  return {protocol.IMAGES: images}

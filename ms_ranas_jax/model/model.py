"""A trained network at hand: load it, ask it, stop early, go on in Flax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ms_ranas_jax import families
from ms_ranas_jax import paths
from ms_ranas_jax.anytime import calibration
from ms_ranas_jax.anytime import early_exit
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.model.description import Description
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.genotype import Genotype

# Images that are computed at a time, unless the caller says otherwise; that of
# `evaluate.batch_size`, so that the programs are the same.
BATCH_SIZE = 250
# Trained networks that come with the package, a model folder each.
_PACKAGED = pathlib.Path(__file__).parent.parent / 'networks'


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """What a model says of images; arrays of NumPy, an entry per image.

  Attributes:
    labels: (images,) int32, class ids: places in `probabilities`.
    names: (images,) the names of these classes.
    probabilities: (images, classes) float64, calibrated where the model was
      evaluated; each row sums to 1.
    exits: (images,) int32, the exit that each image left at, from 0.
    macs: (images,) int64, multiply-adds that each image took.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import numpy as np
    >>> model = mr.load_model('cifar10_tiny')
    >>> answer = model.predict(np.zeros((2, 32, 32, 3), np.uint8), exit=0)
    >>> answer.exits.tolist(), answer.probabilities.shape
    ([0, 0], (2, 10))
  """

  labels: np.ndarray
  names: np.ndarray
  probabilities: np.ndarray
  exits: np.ndarray
  macs: np.ndarray

  @property
  def confidence(self) -> np.ndarray:
    """The probability of each image's label, (images,) float64."""
    return self.probabilities.max(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A trained network with all that it takes to use it.

  Attributes:
    network: the Flax module; takes normalised images.
    variables: {'params': ..., 'batch_stats': ...}.
    description: what `model.json` says.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import numpy as np
    >>> model = mr.load_model('cifar10_tiny')
    >>> images = np.zeros((1, 32, 32, 3), np.uint8)
    >>> answers = list(model.steps(images))
    >>> len(answers) == model.network.num_exits
    True
    >>> model.predict(images).names[0] == answers[-1].names[0]
    True
  """

  network: protocol.AnytimeNetwork
  variables: Mapping[str, Any]
  description: Description

  @property
  def genotype(self) -> Genotype | None:
    """The cells; None where the family has none."""
    return families.genotype_of(self.network)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the images."""
    return self.description.image_shape

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the classes, in the order of their ids."""
    return self.description.class_names

  @property
  def exits(self) -> tuple[cost.ExitCost, ...]:
    """What each exit costs."""
    return self.description.exits

  @property
  def temperatures(self) -> tuple[float, ...]:
    """One per exit; ones where the model was not evaluated."""
    evaluation = self.description.evaluation
    if evaluation is None:
      return (1.0,) * len(self.exits)
    return evaluation.temperatures

  @functools.cached_property
  def compiled_steps(self) -> early_exit.CompiledSteps:
    """The steps, compiled when they are first run."""
    return early_exit.CompiledSteps(
      self.network,
      self.variables,
      self.description.mean,
      self.description.std,
    )

  def predict(
    self,
    images: np.ndarray,
    *,
    exit: int | None = None,
    budget_macs: float | None = None,
    confidence: float | Sequence[float] | None = None,
    q: float | None = None,
    batch_size: int = BATCH_SIZE,
  ) -> Answer:
    """Classifies images; each stops where it is told to, or at the last exit.

    `exit` or `budget_macs` say where all stop at the latest, `confidence` or
    `q` who stops before. Images that stop are taken out of the batch, and the
    others go on from the features at hand.

    Args:
      images: (images, height, width, channels) uint8, 0 to 255.
      exit: index of the last exit to take.
      budget_macs: the last exit to take is the last that costs no more.
      confidence: an image stops where its largest probability is at least
        this, a number of 0 to 1; or one number per exit, where 2 lets nobody
        stop.
      q: the thresholds that were solved on held-out images for this q, one of
        `description.evaluation.thresholds`: small is fast, large is sure.
      batch_size: images that are computed at a time.

    Returns:
      The answers.

    Raises:
      UsageError: the images do not fit, or a choice is not to be had.
    """
    images = self._checked(images)
    last = self._last_exit(exit, budget_macs)
    thresholds = self._thresholds(confidence, q)[: last + 1]
    found, exits = self.compiled_steps.early_exits(
      images,
      thresholds,
      self.temperatures[: last + 1],
      _checked_batch_size(batch_size),
    )
    return self._answer(found, exits)

  def steps(
    self, images: np.ndarray, *, batch_size: int = BATCH_SIZE
  ) -> Iterator[Answer]:
    """Gives one answer after another, each from the next exit.

    Stop when it is good enough, or time is up: what is not asked for is not
    computed. What has been computed is gone on from.

    Args:
      images: (images, height, width, channels) uint8, 0 to 255.
      batch_size: images that are computed at a time. The features of all of
        them are kept until the next answer.

    Yields:
      An answer of every exit, for all images.

    Raises:
      UsageError: the images do not fit.
    """
    return self._steps(self._checked(images), _checked_batch_size(batch_size))

  def _steps(self, images: np.ndarray, batch_size: int) -> Iterator[Answer]:
    batches = [
      early_exit.filled(images[start : start + batch_size], batch_size)
      for start in range(0, len(images), batch_size)
    ]
    for step, temperature in enumerate(self.temperatures):
      logits = []
      for index, carried in enumerate(batches):
        batches[index], found = self.compiled_steps.take(carried, step)
        logits.append(found)
      # The last batch may be filled up.
      empty = np.zeros((0, len(self.class_names)), np.float32)
      found = np.concatenate([empty, *map(np.asarray, logits)])[: len(images)]
      yield self._answer(
        calibration.probabilities(found, temperature),
        np.full(len(images), step, np.int32),
      )

  def with_variables(self, variables: Mapping[str, Any]) -> Model:
    """Returns the model with other params, such as fine-tuned ones.

    What an evaluation found and settled was of the old ones, and is left out.

    Args:
      variables: {'params': ..., 'batch_stats': ...}.
    """
    description = dataclasses.replace(
      self.description, data={}, tensors=None, evaluation=None
    )
    return Model(self.network, variables, description)

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a model folder, which `load_model` reads.

    Args:
      path: the folder; made where it is missing.

    Raises:
      UsageError: another model is there, or params are not finite, or not
        those that the description is of.
    """
    folder = paths.expand(path)
    for taken in (folder, description_lib.folder_of(folder)):
      if description_lib.exists(taken):
        raise UsageError(
          f'{taken} holds a model already; name another folder, or remove it.'
        )
    known = self.description.tensors
    data, shapes = tensors.pack(self.variables)
    written = tensors.describe(data, shapes, self.description)
    if known is not None and written != known:
      raise UsageError(
        'the variables are not those that the description is of; make a model '
        'of other ones with Model.with_variables.'
      )
    tensors.write(folder, data)
    description_lib.write(
      folder, dataclasses.replace(self.description, tensors=written)
    )

  def _checked(self, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.shape[1:] != self.image_shape or images.dtype != np.uint8:
      mend = 'bring them to that size'
      if images.shape == self.image_shape:
        mend = 'one image is a batch of one: images[None]'
      elif images.shape[1:] == self.image_shape:
        mend = 'give the pixels as they are, 0 to 255; they are normalised here'
      elif images.ndim == 3 and self.image_shape[2] == 1:
        mend = 'give grey images an axis of channels: images[..., None]'
      raise UsageError(
        f'images are {images.dtype} {images.shape}, and the model takes uint8 '
        f'(images, {", ".join(map(str, self.image_shape))}); {mend}.'
      )
    return images

  def _last_exit(self, exit_: int | None, budget_macs: float | None) -> int:
    if exit_ is not None and budget_macs is not None:
      raise UsageError('exit and budget_macs say the same; give one of them.')
    if budget_macs is not None:
      within = [e.exit for e in self.exits if e.macs <= budget_macs]
      if not within:
        raise UsageError(
          f'budget_macs = {budget_macs:,}, but the first exit takes '
          f'{self.exits[0].macs:,}; give at least that.'
        )
      return within[-1]
    return protocol.last_exit_of(len(self.exits), exit_, 'exit')

  def _thresholds(
    self, confidence: float | Sequence[float] | None, q: float | None
  ) -> tuple[float, ...]:
    count = len(self.exits)
    if confidence is not None and q is not None:
      raise UsageError('confidence and q say the same; give one of them.')
    if q is not None:
      evaluation = self.description.evaluation
      known = {} if evaluation is None else evaluation.thresholds
      if q not in known:
        there = ', '.join(f'{value:g}' for value in known)
        raise UsageError(
          f'q = {q}: '
          + (
            f'thresholds were solved for {there}; give one of these.'
            if known
            else "no thresholds were solved; run the 'evaluate' stage, or give "
            'confidence.'
          )
        )
      return known[q]
    if confidence is None:
      return (early_exit.NOBODY,) * count
    given = np.asarray(confidence, np.float64)
    # Thresholds of single exits may say that nobody leaves there.
    most = 1 if given.ndim == 0 else early_exit.NOBODY
    if given.ndim == 0:
      given = np.full(count, given)
    if given.shape != (count,) or not ((given >= 0) & (given <= most)).all():
      raise UsageError(
        f'confidence = {confidence!r}: give a number of 0 to 1, or one for '
        f'each of the {count} exits, of 0 to 2, which nobody comes up to.'
      )
    return tuple(given.tolist())

  def _answer(self, found: np.ndarray, exits: np.ndarray) -> Answer:
    names, macs = self._tables
    labels = found.argmax(axis=-1).astype(np.int32)
    return Answer(labels, names[labels], found, exits, macs[exits])

  @functools.cached_property
  def _tables(self) -> tuple[np.ndarray, np.ndarray]:
    """The names of classes and the macs of exits, to be looked up in."""
    macs = np.array([exit_.macs for exit_ in self.exits], np.int64)
    return np.array(self.class_names), macs


def build_model(
  network: protocol.AnytimeNetwork,
  variables: Mapping[str, Any],
  mean: Sequence[float],
  std: Sequence[float],
  class_names: Sequence[str] = (),
  family: str | None = None,
) -> Model:
  """Makes a model of a network that was trained elsewhere.

  Args:
    network: on one device.
    variables: {'params': ..., 'batch_stats': ...}.
    mean: per channel, of images / 255, that images are normalised by.
    std: the same.
    class_names: one per class; () is their numbers.
    family: of the network, 'my_module:my_family' where it is one of your own;
      None is that of the package.

  Returns:
    The model; probabilities are not calibrated, and there is no `q`.

  Raises:
    UsageError: a model folder could not hold it, or the sizes do not fit.

  Example:
    >>> import ms_ranas_jax as mr
    >>> import jax
    >>> spec = mr.NetworkSpec(channels=4, layers=2, nodes=4)
    >>> network = mr.derived_network(spec, mr.DARTS_V2)
    >>> variables = mr.init_variables(network, jax.random.key(0))
    >>> model = mr.build_model(network, variables, (0.5,) * 3, (0.25,) * 3)
    >>> model.image_shape
    (32, 32, 3)
  """
  spec = network.plan.spec
  names = tuple(map(str, class_names or range(spec.num_classes)))
  if len(names) != spec.num_classes:
    raise UsageError(
      f'class_names has {len(names)} entries, but the network has '
      f'{spec.num_classes} classes; give one per class.'
    )
  fits = len(mean) == len(std) == spec.image_shape[2]
  if not (fits and np.isfinite([*mean, *std]).all() and min(std) > 0):
    raise UsageError(
      f'mean = {tuple(mean)} and std = {tuple(std)}: give a number for each of '
      f'{spec.image_shape[2]} channels, those of std positive.'
    )
  return Model(
    network,
    variables,
    Description(
      network=families.network_to_json(network, family),
      dtype=network.dtype,
      image_shape=tuple(spec.image_shape),
      mean=tuple(map(float, mean)),
      std=tuple(map(float, std)),
      class_names=names,
      exits=cost.network_cost(network).exits,
    ),
  )


def network_of(
  description: Description, folder: str, **fields: Any
) -> protocol.AnytimeNetwork:
  """Returns the network that a description is of.

  Args:
    description: of the model.
    folder: where it was read, for messages.
    **fields: attributes that all families have.

  Raises:
    UsageError: it makes no network.
  """
  path = os.path.join(folder, description_lib.FILE)
  try:
    return families.network_from_json(
      description.network,
      (description.image_shape, len(description.class_names)),
      dtype=description.dtype,
      **fields,
    )
  except UsageError as error:
    raise UsageError(
      f'{path}: {error} Bring the file back from a copy, or train again.'
    ) from error


def packaged_networks() -> tuple[str, ...]:
  """Returns the names of the trained networks that the package brings.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.packaged_networks()
    ('cifar10_tiny',)
  """
  return tuple(
    sorted(p.name for p in _PACKAGED.iterdir() if (p / 'README.md').is_file())
  )


def find_folder(path: str | os.PathLike[str]) -> str:
  """Returns the model folder that a path means.

  Args:
    path: a model folder, a work directory that holds one, or the name of one of
      `packaged_networks`, where nothing of that name is here.

  Raises:
    UsageError: none of them.
  """
  given = paths.expand(path)
  for folder in (given, description_lib.folder_of(given)):
    if description_lib.exists(folder):
      return folder
  if given in packaged_networks():
    return str(_PACKAGED / given)
  if files.is_archive(given):
    raise UsageError(
      f'{given} is an archive; unpack it, and give the folder that comes out.'
    )
  raise UsageError(
    f'{given} is neither a model folder nor a work directory with one: there '
    f"is no {description_lib.FILE}; run the 'train' stage there, correct the "
    f'path, or name one of the package: {", ".join(packaged_networks())}.'
  )


def load_model(path: str | os.PathLike[str]) -> Model:
  """Loads a trained network.

  Turns on JAX's persistent compilation cache, in ~/.cache/ms_ranas_jax, unless
  the caller has set one: a second program starts sooner.

  Args:
    path: a model folder, a work directory that holds one, or the name of one of
      `packaged_networks`, such as 'cifar10_tiny'.

  Returns:
    The model.

  Raises:
    UsageError: it is not there, its training has not come to its end, or a
      file is damaged; the message says which.

  Example:
    >>> import ms_ranas_jax as mr
    >>> model = mr.load_model('cifar10_tiny')
    >>> model.image_shape
    (32, 32, 3)
    >>> model.class_names[:3]
    ('airplane', 'automobile', 'bird')
  """
  folder = find_folder(path)
  description = description_lib.read(folder)
  variables = tensors.read(folder, description)
  _keep_compiled()
  network = network_of(description, folder, lowering=lowering.resolve())
  return Model(network, variables, description)


def _keep_compiled() -> None:
  """Turns on the persistent compilation cache, where it is not set."""
  # JAX gives its config such attributes when it is imported.
  # pyrefly: ignore[missing-attribute]
  # pylint: disable-next=no-member
  if jax.config.jax_compilation_cache_dir is not None:
    return
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  folder = os.path.join(base, 'ms_ranas_jax')
  try:
    files.make_directory(folder)
  except OSError:
    return  # nowhere to keep it: every program compiles
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _checked_batch_size(batch_size: int) -> int:
  if batch_size < 1:
    raise UsageError(f'batch_size = {batch_size}: give at least 1.')
  return batch_size

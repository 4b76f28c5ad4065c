"""Exported files as steps to be run, by the runtime that they are made for.

A runner takes one step after the other, as `early_exit.CompiledSteps` does for
JAX, so that all forms of a network are judged, calibrated and timed by the same
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
import onnxruntime

from ms_ranas_jax import plain_form
from ms_ranas_jax.model import model as model_lib

Carried = Mapping[str, Any]


class Runner(Protocol):
  """A network that is run step by step."""

  @property
  def num_exits(self) -> int:
    """The number of exits."""

  def take(self, carried: Carried, step: int) -> tuple[Carried, np.ndarray]:
    """Takes a step.

    Args:
      carried: what the step before returned, or `{'images': uint8 images}`.
      step: index of the exit to come to.

    Returns:
      What the next step takes, and the logits (batch, classes), float32.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxSteps:
  """The files of the steps in ONNX Runtime, see `Runner`.

  Attributes:
    sessions: one per step.
  """

  sessions: tuple[onnxruntime.InferenceSession, ...]

  @property
  def num_exits(self) -> int:
    """The number of exits."""
    return len(self.sessions)

  @functools.cached_property
  def _names(self) -> tuple[tuple[list[str], list[str], set[str]], ...]:
    """Per step what it reads and writes, and what later steps read."""
    found = []
    later: set[str] = set()
    for known in reversed(self.sessions):
      read = [entry.name for entry in known.get_inputs()]
      made = [entry.name for entry in known.get_outputs()]
      found.append((read, made, later))
      later = later | set(read)
    return tuple(reversed(found))

  def take(self, carried: Carried, step: int) -> tuple[Carried, np.ndarray]:
    """Takes a step, see `Runner`."""
    read, (_, *names), later = self._names[step]
    fed = {name: carried[name] for name in read}
    logits, *made = self.sessions[step].run(None, fed)
    found = {**carried, **dict(zip(names, made, strict=True))}
    # Memory of what nobody reads again is what the next step writes to.
    kept = {name: value for name, value in found.items() if name in later}
    return kept, np.asarray(logits)


@dataclasses.dataclass(frozen=True, eq=False)
class JaxSteps:
  """The network itself, in XLA, see `Runner`.

  Attributes:
    model: the network.
  """

  model: model_lib.Model

  @property
  def num_exits(self) -> int:
    """The number of exits."""
    return len(self.model.exits)

  def take(self, carried: Carried, step: int) -> tuple[Carried, np.ndarray]:
    """Takes a step, see `Runner`."""
    kept, logits = self.model.compiled_steps.take(carried, step)
    return kept, np.asarray(logits)


def load_onnx(models: Sequence[bytes | str], threads: int = 0) -> OnnxSteps:
  """Loads the files of the steps.

  Args:
    models: one per step: its path, or what stands in it.
    threads: that a step is computed by; 0 is all cores.
  """
  several = len(models) > 1
  return OnnxSteps(
    tuple(session(model, threads, several=several) for model in models)
  )


def session(
  model: bytes | str,
  threads: int = 0,
  profile: str = '',
  several: bool = False,
) -> onnxruntime.InferenceSession:
  """Returns an ONNX file ready to run on the CPU.

  Args:
    model: its path, or what stands in it.
    threads: that it is computed by; 0 is all cores.
    profile: how the file begins, that the times of its nodes are written to;
      '' is none.
    several: whether it is one of several that run one after the other.
  """
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  # Warnings and worse; information is for those who develop the runtime.
  options.log_severity_level = 2
  if several:
    # Threads do not wait for work while those of the next session have some.
    options.add_session_config_entry('session.force_spinning_stop', '1')
  if profile:
    options.enable_profiling = True
    options.profile_file_prefix = profile
  return onnxruntime.InferenceSession(
    model, options, providers=['CPUExecutionProvider']
  )


def logits(
  runner: Runner, images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
  """Computes the logits of all exits.

  Args:
    runner: of the network.
    images: (images, height, width, channels) uint8.
    batch_size: images at a time.

  Returns:
    (exits, images, classes) float32.
  """
  parts = []
  for start in range(0, len(images), batch_size):
    carried: Carried = {plain_form.IMAGES: images[start : start + batch_size]}
    found = []
    for step in range(runner.num_exits):
      carried, answer = runner.take(carried, step)
      found.append(np.asarray(answer))
    parts.append(np.stack(found))
  return np.concatenate(parts, axis=1)

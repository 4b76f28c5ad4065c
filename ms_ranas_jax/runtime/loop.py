"""Running the steps of a stage, in lines of metrics, from where it was left.

The search and the training differ in their step; how steps are cut into calls,
recorded, saved, stopped and taken up again is the same, and here. No bit of the
result depends on it: metrics are summed on the device, on through the calls of
a line and through an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import time
from typing import Any, Protocol

from absl import logging
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.runtime.metrics import BY_SEED
from ms_ranas_jax.runtime.metrics import MetricsWriter
from ms_ranas_jax.runtime.progress import Progress

PyTree = Any

# Calls are about this long: the cost of a call is far below 2 % of it, and a
# signal waits no longer.
_CALL_SECONDS = 3.0
_KEPT_CHECKPOINTS = 3


@dataclasses.dataclass(frozen=True)
class Work:
  """What there is to do.

  Attributes:
    label: 'search' or 'train', also the config section.
    epochs: how many.
    steps: of an epoch.
    line_steps: steps of a line of metrics, the most of a call.
    devices: how many, of all processes.
    new_state: makes the state before the first step; it has a `step`.
    step: see `parallel.compile_chunk`.
    metrics: name -> shape of what the step returns, of one seed.
    data: what the steps read, on the host.
    batches: epoch -> indices (steps, ..., batch).
    on_nonfinite: see `parallel.compile_chunk`.
    checkpoint_seconds: save when so much time has passed since the last save,
      besides after every epoch; 0 is after epochs only.
    seeds: see `parallel.compile_chunk`; with several, `new_state` and `batches`
      have their axis.
  """

  label: str
  epochs: int
  steps: int
  line_steps: int
  devices: int
  new_state: Callable[[], PyTree]
  step: parallel.Step
  metrics: Mapping[str, tuple[int, ...]]
  data: Mapping[str, np.ndarray]
  batches: Callable[[int], np.ndarray]
  on_nonfinite: str
  checkpoint_seconds: float
  seeds: parallel.Seeds | None = None


def never() -> bool:
  """Returns False."""
  return False


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What a stage adds. A state that it is given is valid until it returns.

  Attributes:
    begin: (state, whole epochs done) before the first step of this run.
    end_line: steps done -> more of the line's record.
    end_epoch: (state, epoch) -> more of the epoch's last record; what it
      writes is there before the checkpoint is.
    shown: record -> what of it the progress shows.
    finished: after the first hook or an epoch's: whether the rest is left out.
  """

  begin: Callable[[PyTree, int], None]
  end_line: Callable[[int], Mapping[str, Any]]
  end_epoch: Callable[[PyTree, int], Mapping[str, Any]]
  shown: Callable[[Mapping[str, Any]], Mapping[str, float]]
  finished: Callable[[], bool] = never


@flax.struct.dataclass
class Saved:
  """What a checkpoint holds.

  Attributes:
    state: of the stage.
    sums: of the metrics, since the last line.
    seconds: that these steps took, float32.
  """

  state: PyTree
  sums: Mapping[str, jax.Array]
  seconds: jax.Array


class Program(Protocol):
  """What the programs of the search and of the training have in common."""

  devices: int
  steps: int
  new_state: Callable[[], PyTree]
  step: parallel.Step
  metrics: Mapping[str, tuple[int, ...]]


def build_work(
  config: Any,
  label: str,
  dataset: Dataset,
  program: Program,
  batches: Callable[[int], np.ndarray],
  seeds: parallel.Seeds | None = None,
) -> Work:
  """Returns the work of a stage.

  Args:
    config: the whole config; its section `label` is read.
    label: 'search' or 'train'.
    dataset: whose training images and labels the steps read.
    program: of the stage.
    batches: epoch -> indices (steps, ..., batch).
    seeds: see `Work`.
  """
  section = config[label]
  return Work(
    label=label,
    epochs=section.epochs,
    steps=program.steps,
    line_steps=section.chunk_steps,
    devices=program.devices,
    new_state=program.new_state,
    step=program.step,
    metrics=program.metrics,
    data={'images': dataset.train_images, 'labels': dataset.train_labels},
    batches=batches,
    on_nonfinite=section.on_nonfinite,
    checkpoint_seconds=config.checkpoint_seconds,
    seeds=seeds,
  )


def checkpoints(workdir: str, label: str) -> str:
  """Returns the folder of a stage's checkpoints."""
  return os.path.join(workdir, label, 'checkpoints')


def template(
  new_state: Callable[[], PyTree],
  metrics: Mapping[str, tuple[int, ...]],
  on_nonfinite: str,
  seeds: parallel.Seeds | None = None,
) -> Saved:
  """Returns the shapes of what a checkpoint holds, see `Work`."""
  return Saved(
    jax.eval_shape(new_state),
    jax.eval_shape(lambda: parallel.zero_sums(metrics, on_nonfinite, seeds)),
    jax.ShapeDtypeStruct((), jnp.float32),
  )


def run(
  work: Work, hooks: Hooks, workdir: str, interruption: Interruption
) -> PyTree:
  """Does all steps, or those that an earlier call has left.

  Writes `LABEL/metrics.jsonl` and `LABEL/checkpoints`.

  Args:
    work: what to do.
    hooks: what the stage adds.
    workdir: the work directory.
    interruption: asked after every call.

  Returns:
    The state after the last step, one copy.

  Raises:
    Interrupted: after saving, where it was asked for.
    UsageError: a metric is not finite, or a checkpoint is of another run.
  """
  total = work.epochs * work.steps
  folder = checkpoints(workdir, work.label)
  with (
    # Entered once a step is done; ends when all is written.
    contextlib.ExitStack() as deferral,
    checkpoint.open_manager(folder, _KEPT_CHECKPOINTS) as manager,
  ):
    restored = checkpoint.restore_latest(
      manager,
      template(work.new_state, work.metrics, work.on_nonfinite, work.seeds),
    )
    if restored is None:
      zeros = parallel.zero_sums(work.metrics, work.on_nonfinite, work.seeds)
      saved = Saved(work.new_state(), zeros, np.float32(0))
    else:
      saved = restored[1]
    done = _steps_done(saved.state)
    processes.check_same_step(done)
    hooks.begin(saved.state, done // work.steps)
    if done >= total or processes.any_of(hooks.finished()):
      return saved.state
    logging.info('%s: %d steps, %d of them done', work.label, total, done)
    with contextlib.ExitStack() as stack:
      writer = progress = None
      if processes.is_first():
        directory = os.path.join(workdir, work.label)
        resumed = done if restored else -1
        writer = stack.enter_context(MetricsWriter(directory, resumed))
        progress = stack.enter_context(Progress(work.label, total, done))
      return _proceed(
        work,
        hooks,
        saved,
        manager,
        writer,
        progress,
        interruption,
        deferral,
      )


def _proceed(
  work: Work,
  hooks: Hooks,
  saved: Saved,
  manager: checkpoint.Manager,
  writer: MetricsWriter | None,
  progress: Progress | None,
  interruption: Interruption,
  deferral: contextlib.ExitStack,
) -> PyTree:
  """Does the steps after those of `saved`; see `run`."""
  zeros = parallel.zero_sums(work.metrics, work.on_nonfinite, work.seeds)
  chunk = parallel.compile_chunk(
    work.step, work.devices, work.line_steps, work.on_nonfinite, work.seeds
  )
  data = parallel.replicate(dict(work.data), work.devices)
  done = _steps_done(saved.state)
  state = parallel.replicate(saved.state, work.devices)
  sums = parallel.replicate(dict(saved.sums), work.devices)
  seconds = float(saved.seconds)

  def save() -> PyTree:
    """Returns one copy of the state, which the next call may donate."""
    host = parallel.unreplicate(state, work.devices)
    host_sums = zeros
    if sums is not zeros:
      host_sums = parallel.unreplicate(sums, work.devices)
    if writer is not None:
      writer.flush()  # no line may be missing before the checkpoint
    checkpoint.save(manager, done, Saved(host, host_sums, np.float32(seconds)))
    return host

  # Calls of one step until the time of one is known; the first one compiles.
  # What is asked for is agreed on by all processes, and done one call later.
  length = wanted = 1
  saved_at = time.monotonic()
  epoch, batches = -1, None
  deferring = False  # compiling, there is nothing to save
  while done < work.epochs * work.steps:
    if epoch != done // work.steps:
      epoch = done // work.steps
      batches = work.batches(epoch)
    within = done - epoch * work.steps
    line_start = within - within % work.line_steps
    line_end = min(line_start + work.line_steps, work.steps)
    count = min(length, line_end - within)
    began = time.monotonic()
    due = work.checkpoint_seconds and (
      began - saved_at > work.checkpoint_seconds
    )
    outcome = chunk(
      state,
      sums,
      data,
      batches[within : within + count],
      _wishes(interruption.requested, bool(due), wanted),
    )
    state, sums = outcome.state, outcome.sums
    took = time.monotonic() - began
    if not deferring:
      deferral.enter_context(interruption.deferred())
      deferring = True
    stops, saves, length = _agreed(outcome.wishes)
    if jax.process_count() == 1:
      stops = interruption.requested
    wanted = _call_length(took / count, work.line_steps)
    done += outcome.done
    seconds += took
    if not outcome.finite:
      _refuse_nonfinite(work, done, outcome, manager)
    record = None
    if within + count == line_end:
      record = _mean(
        parallel.unreplicate(sums, work.devices),
        line_end - line_start,
        work.seeds,
      )
      record |= {'seconds': round(seconds, 4), **hooks.end_line(done)}
      sums, seconds = zeros, 0.0
    at_end = within + count == work.steps
    if at_end:
      host = parallel.unreplicate(state, work.devices)
      record |= hooks.end_epoch(host, epoch)
    if writer is not None and record is not None:
      writer.write({'step': done, 'epoch': epoch, **record})
    if stops or saves or at_end:
      host = save()
      saved_at = time.monotonic()
    if progress is not None:
      progress.update(count, None if record is None else hooks.shown(record))
    if at_end and processes.any_of(hooks.finished()):
      break
    if stops:
      raise Interrupted
  return host


def _wishes(stop: bool, save: bool, length: int) -> np.ndarray:
  """What all processes have to do alike, as numbers of which the largest win.

  The shortest call is the largest number.
  """
  return np.array([stop, save, -length], np.int32)


def _agreed(wishes: np.ndarray) -> tuple[bool, bool, int]:
  return bool(wishes[0]), bool(wishes[1]), -int(wishes[2])


def _call_length(step_seconds: float, most: int) -> int:
  return min(max(int(_CALL_SECONDS / max(step_seconds, 1e-9)), 1), most)


def _steps_done(state: PyTree) -> int:
  """Returns the steps that a state has behind it, all seeds as many."""
  return int(np.ravel(state.step)[0])


def _mean(
  sums: Mapping[str, Any], count: int, seeds: parallel.Seeds | None = None
) -> dict[str, Any]:
  """Returns the record of a line: sums -> means over the steps not skipped.

  With several seeds the means over them, and as `NAME_by_seed` the value of
  each one, at the last exit where there is one per exit.
  """
  record = {k: np.asarray(v) for k, v in jax.device_get(dict(sums)).items()}
  skipped = record.pop('skipped_steps', np.float32(0))
  left = np.float32(count) - skipped
  if not np.all(left):
    raise UsageError(
      'the loss or gradient of no step of a line of metrics was finite: it '
      'has diverged for good; lower the learning rate or the clip in another '
      '--workdir.'
    )
  # The axis of seeds, where there is one, comes first.
  values = {name: (total.T / left).T for name, total in record.items()}
  means = values
  if seeds is not None:
    means = {name: value.mean(axis=0) for name, value in values.items()}
    means |= {
      f'{name}{BY_SEED}': value.reshape(seeds.count, -1)[:, -1]
      for name, value in values.items()
    }
  means = {name: value.tolist() for name, value in means.items()}
  if 'skipped_steps' in sums:
    means['skipped_steps'] = int(np.sum(skipped))
    if seeds is not None:
      means[f'skipped_steps{BY_SEED}'] = skipped.astype(int).tolist()
  return means


def _refuse_nonfinite(
  work: Work, done: int, outcome: parallel.Outcome, manager: checkpoint.Manager
) -> None:
  sums = jax.device_get(parallel.unreplicate(outcome.sums, work.devices))
  names = [k for k, v in sums.items() if not np.all(np.isfinite(v))]
  steps = checkpoint.steps(manager)
  last = f'step {steps[-1]}' if steps else 'the start'
  raise UsageError(
    f'{" and ".join(sorted(names))} is not finite at step {done} of '
    f'{work.label}; the same command goes on from {last}, to the same end. In '
    f'another --workdir, lower config.{work.label}.learning_rate or '
    f'config.{work.label}.clip, or leave such steps out with '
    f"config.{work.label}.on_nonfinite = '{parallel.SKIP}'."
  )

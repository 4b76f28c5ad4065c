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
from typing import Any, NamedTuple

from absl import logging
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import feeding
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


def unchanged(state: PyTree) -> PyTree:
  """Returns a state as it is."""
  return state


@dataclasses.dataclass(frozen=True)
class LoopSpec:
  """The steps of a stage, and how they are run.

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
    resident_bytes: of `data` that may lie on a device, see
      `feeding.open_feed`.
    on_nonfinite: see `parallel.compile_chunk`.
    clip: largest gradient norm, 0 is off; for advice.
    checkpoint_seconds: save when so much time has passed since the last save,
      besides after every epoch; 0 is after epochs only.
    seeds: see `parallel.compile_chunk`; with several, `new_state` and `batches`
      have their axis.
    begin_from: state of `new_state` -> where the first step begins, of the same
      shapes; not asked where there is a checkpoint.
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
  resident_bytes: int
  on_nonfinite: str
  clip: float
  checkpoint_seconds: float
  seeds: parallel.Seeds | None = None
  begin_from: Callable[[PyTree], PyTree] = unchanged


def never() -> bool:
  """Returns False."""
  return False


@dataclasses.dataclass(frozen=True)
class LoopHooks:
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
class Checkpoint:
  """What a checkpoint holds, or the shapes of it.

  Attributes:
    state: of the stage.
    sums: of the metrics, since the last line.
    seconds: that these steps took, float32.
  """

  state: PyTree
  sums: PyTree
  seconds: PyTree


def checkpoints(workdir: str, label: str) -> str:
  """Returns the folder of a stage's checkpoints."""
  return os.path.join(workdir, label, 'checkpoints')


def template(
  new_state: Callable[[], PyTree],
  metrics: Mapping[str, tuple[int, ...]],
  on_nonfinite: str,
  seeds: parallel.Seeds | None = None,
) -> Checkpoint:
  """Returns the shapes of what a checkpoint holds, see `LoopSpec`."""
  return Checkpoint(
    jax.eval_shape(new_state),
    jax.eval_shape(lambda: parallel.zero_sums(metrics, on_nonfinite, seeds)),
    jax.ShapeDtypeStruct((), jnp.float32),
  )


class Call(NamedTuple):
  """Steps that are done in one call, all of one line of metrics.

  Attributes:
    epoch: that they are of.
    start: number of the first one in the epoch.
    stop: one more than that of the last one.
    line_steps: steps of the whole line.
    ends_line: whether they are the last of the line.
    ends_epoch: whether they are the last of the epoch.
  """

  epoch: int
  start: int
  stop: int
  line_steps: int
  ends_line: bool
  ends_epoch: bool


class Flags(NamedTuple):
  """What all processes have to do alike.

  Attributes:
    stop: save and end.
    save: save and go on.
    length: most steps of the next call; the shortest of all processes.
  """

  stop: bool
  save: bool
  length: int

  def to_array(self) -> np.ndarray:
    """Returns numbers of which the largest of all processes win, int32."""
    return np.array([self.stop, self.save, -self.length], np.int32)

  @classmethod
  def from_array(cls, array: np.ndarray) -> Flags:
    """Returns the flags of `to_array`."""
    return cls(bool(array[0]), bool(array[1]), -int(array[2]))


def run(
  spec: LoopSpec, hooks: LoopHooks, workdir: str, interruption: Interruption
) -> PyTree:
  """Does all steps, or those that an earlier call has left.

  Writes `LABEL/metrics.jsonl` and `LABEL/checkpoints`.

  Args:
    spec: what to do.
    hooks: what the stage adds.
    workdir: the work directory.
    interruption: asked after every call.

  Returns:
    The state after the last step, one copy.

  Raises:
    Interrupted: after saving, where it was asked for.
    UsageError: a metric is not finite, or a checkpoint is of another run.
  """
  total = spec.epochs * spec.steps
  with contextlib.ExitStack() as stack:
    loop = Loop(spec, hooks, workdir, interruption, stack)
    hooks.begin(loop.state, loop.done // spec.steps)
    if loop.done >= total or processes.any_of(hooks.finished()):
      return loop.state
    loop.start()
    while loop.done < total:
      call = loop.next_call()
      flags = loop.run_call(call)
      record = loop.end_line(call) if call.ends_line else {}
      record |= loop.end_epoch(call) if call.ends_epoch else {}
      loop.report(call, record)
      if call.ends_epoch or flags.save or flags.stop:
        loop.save()
      if call.ends_epoch and processes.any_of(hooks.finished()):
        break
      if flags.stop:
        raise Interrupted
    return loop.one_copy()


class Loop:
  """The steps of a stage on the devices, and the files that they leave.

  Attributes:
    state: of the stage; from `start` on it lies on all devices.
    sums: of the metrics since the last line, as the state.
    seconds: that the steps in `sums` took.
    done: steps that the state has behind it.
  """

  def __init__(
    self,
    spec: LoopSpec,
    hooks: LoopHooks,
    workdir: str,
    interruption: Interruption,
    stack: contextlib.ExitStack,
  ) -> None:
    """Restores the newest checkpoint, or makes the state before the first step.

    Args:
      spec: see `run`.
      hooks: see `run`.
      workdir: see `run`.
      interruption: see `run`.
      stack: closes what is opened here.
    """
    self._spec = spec
    self._hooks = hooks
    self._folder = os.path.join(workdir, spec.label)
    self._interruption = interruption
    self._stack = stack
    self._writer: MetricsWriter | None = None
    # Calls of one step until the time of one is known; the first one compiles.
    # What is asked for is agreed on by all processes, and done one call later.
    self._length = self._wanted = 1
    # Entered once a step is done; ends when all is written.
    self._deferral = stack.enter_context(contextlib.ExitStack())
    self._deferring = False
    self._manager = stack.enter_context(
      checkpoint.open_manager(
        checkpoints(workdir, spec.label), _KEPT_CHECKPOINTS
      )
    )
    self._zeros = parallel.zero_sums(
      spec.metrics, spec.on_nonfinite, spec.seeds
    )
    restored = checkpoint.restore_latest(
      self._manager,
      template(spec.new_state, spec.metrics, spec.on_nonfinite, spec.seeds),
    )
    self._resumed = restored is not None
    if restored is None:
      state = spec.begin_from(spec.new_state())
      saved = Checkpoint(state, self._zeros, np.float32(0))
    else:
      saved = restored[1]
    self.state, self.sums = saved.state, saved.sums
    self.seconds = float(saved.seconds)
    # All seeds have done as many.
    self.done = int(np.ravel(saved.state.step)[0])
    processes.check_same_step(self.done)

  def start(self) -> None:
    """Brings state and data to the devices, and opens what is written to."""
    spec = self._spec
    total = spec.epochs * spec.steps
    logging.info('%s: %d steps, %d of them done', spec.label, total, self.done)
    if processes.is_first():
      self._writer = self._stack.enter_context(
        MetricsWriter(self._folder, self.done if self._resumed else -1)
      )
    self._progress = self._stack.enter_context(
      Progress(spec.label, total, self.done, disable=not processes.is_first())
    )
    self._chunk = parallel.compile_chunk(
      spec.step, spec.devices, spec.line_steps, spec.on_nonfinite, spec.seeds
    )
    self._feed = feeding.open_feed(
      spec.data,
      feeding.Plan(spec.epochs, spec.steps, spec.batches, spec.line_steps),
      spec.devices,
      spec.resident_bytes,
      self._stack,
    )
    self.state = parallel.replicate(self.state, spec.devices)
    self.sums = parallel.replicate(dict(self.sums), spec.devices)
    self._saved_at = time.monotonic()

  def next_call(self) -> Call:
    """Returns the steps to do next; they end with their line at the latest."""
    spec = self._spec
    epoch, start = divmod(self.done, spec.steps)
    line_start = start - start % spec.line_steps
    line_end = min(line_start + spec.line_steps, spec.steps)
    window = self._feed.window
    window_end = start - start % window + window
    end = min(start + self._length, line_end, window_end)
    return Call(
      epoch,
      start,
      end,
      line_end - line_start,
      ends_line=end == line_end,
      ends_epoch=end == spec.steps,
    )

  def run_call(self, call: Call) -> Flags:
    """Does steps, and returns what all processes have to do after them."""
    spec = self._spec
    count = call.stop - call.start
    began = time.monotonic()
    fed = self._feed(call.epoch, call.start, call.stop)
    is_due = 0 < spec.checkpoint_seconds < began - self._saved_at
    asked = Flags(self._interruption.requested, is_due, self._wanted)
    outcome = self._chunk(
      self.state, self.sums, fed.data, fed.indices, asked.to_array()
    )
    took = time.monotonic() - began
    if not self._deferring:  # while it compiles there is nothing to save
      self._deferral.enter_context(self._interruption.deferred())
      self._deferring = True
    flags = Flags.from_array(outcome.flags)
    if jax.process_count() == 1:
      flags = flags._replace(stop=self._interruption.requested)
    self._length = flags.length
    self._wanted = _call_length(took / count, spec.line_steps)
    self.state, self.sums = outcome.state, outcome.sums
    self.done += outcome.done
    self.seconds += took
    if not outcome.finite:
      self._refuse_nonfinite()
    return flags

  def end_line(self, call: Call) -> dict[str, Any]:
    """Returns the record of a line, and begins the next one."""
    sums = parallel.unreplicate(self.sums, self._spec.devices)
    record = _mean(sums, call.line_steps, self._spec.seeds)
    record['seconds'] = round(self.seconds, 4)
    self.sums, self.seconds = self._zeros, 0.0
    return {**record, **self._hooks.end_line(self.done)}

  def end_epoch(self, call: Call) -> Mapping[str, Any]:
    """Returns what the stage adds to the last record of an epoch."""
    return self._hooks.end_epoch(self.one_copy(), call.epoch)

  def report(self, call: Call, record: Mapping[str, Any]) -> None:
    """Writes the record of a line, if one has ended, and shows the progress."""
    if self._writer is not None and record:
      self._writer.write({'step': self.done, 'epoch': call.epoch, **record})
    shown = self._hooks.shown(record) if record else None
    self._progress.update(call.stop - call.start, shown)

  def save(self) -> None:
    """Saves a checkpoint; what it is of may be donated afterwards."""
    sums = self.sums
    if sums is not self._zeros:
      sums = parallel.unreplicate(sums, self._spec.devices)
    if self._writer is not None:
      self._writer.flush()  # no line may be missing before the checkpoint
    checkpoint.save(
      self._manager,
      self.done,
      Checkpoint(self.one_copy(), sums, np.float32(self.seconds)),
    )
    self._saved_at = time.monotonic()

  def one_copy(self) -> PyTree:
    """Returns the state of one device, valid until the next call."""
    return parallel.unreplicate(self.state, self._spec.devices)

  def _refuse_nonfinite(self) -> None:
    label = self._spec.label
    sums = jax.device_get(parallel.unreplicate(self.sums, self._spec.devices))
    names = [k for k, v in sums.items() if not np.all(np.isfinite(v))]
    steps = checkpoint.steps(self._manager)
    last = f'step {steps[-1]}' if steps else 'the start'
    clip = self._spec.clip
    bound = f'lower config.{label}.clip = {clip:g}'
    if not clip:
      bound = f'bound the gradient with config.{label}.clip, such as 5'
    # Fields are bound only once something is kept.
    where = '' if not steps else ' With --redo, or in another --workdir:'
    raise UsageError(
      f'{" and ".join(sorted(names))} is not finite at step {self.done} of '
      f'{label}; the same command goes on from {last}, to the same end.{where} '
      f'Lower config.{label}.learning_rate, {bound}, or leave such steps out '
      f"with config.{label}.on_nonfinite = '{parallel.SKIP}'."
    )


def _call_length(step_seconds: float, most: int) -> int:
  return min(max(int(_CALL_SECONDS / max(step_seconds, 1e-9)), 1), most)


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
      'has diverged for good; lower the learning rate, or bound the gradient '
      'with a lower clip (0 is no bound), with --redo or in another --workdir.'
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

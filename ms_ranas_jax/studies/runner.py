"""Runs a study: one job after the other, in one process or several.

Started again, it goes on. Started several times at once in the same work
directory, on one machine or on several that share a disk, every process takes
the next job that is neither done nor held by another; the lock of a job is
given back by the system when its process dies. Whoever finds all jobs done
writes the results, which are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import os
import time

import jax
from ml_collections import ConfigDict
import tqdm

from ms_ranas_jax import paths
from ms_ranas_jax import same_run
from ms_ranas_jax import settings
from ms_ranas_jax import stages
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.search import selection
from ms_ranas_jax.studies import entries
from ms_ranas_jax.studies import plan as plan_lib
from ms_ranas_jax.studies import results

Say = Callable[[str], None]
# `stages.run_stages`, or what stands in for it.
RunStages = Callable[[ConfigDict, str, Say, Interruption], None]
# Not the lock of the work directory, which a run of the program takes itself.
_CLAIM = '.claim'
_POLL_SECONDS = 2.0


def run_study(
  config: ConfigDict,
  workdir: str,
  say: Say,
  interruption: Interruption | None = None,
  *,
  figure: entries.Figure | None = None,
  run_stages: RunStages = stages.run_stages,
  poll_seconds: float = _POLL_SECONDS,
) -> None:
  """Runs what is left of a study, and writes `study/` of its work directory.

  Args:
    config: the whole config, with a section `study`.
    workdir: the work directory.
    say: told how far the study is, and what came out.
    interruption: may ask to stop.
    figure: what it is for; by default that of `config.study.figure`.
    run_stages: runs a job.
    poll_seconds: how often to look for work while other processes have it all.

  Raises:
    UsageError: bad input.
    Interrupted: it was asked for; the same call goes on.
  """
  interruption = interruption or Interruption()
  values = settings.complete(config)
  settings.check_config(values)
  workdir = paths.expand(workdir)
  if files.is_file(workdir):
    raise UsageError(f'--workdir={workdir} is a file; name a directory.')
  if jax.process_count() > 1:
    raise UsageError(
      'a study is not one run of several processes; start the same command '
      'several times instead, without --coordinator.'
    )
  same_run.check_whole(values, workdir)
  plan = plan_lib.build_plan(
    config, figure or entries.of(config.study.figure, config.study.size)
  )
  # The first job of a kind stands for all: they have one set of images.
  for job in {job.kind: job for job in reversed(plan.jobs)}.values():
    stages.check_images(stages.project(job.config, workdir, say, interruption))
  files.write_json(os.path.join(workdir, same_run.CONFIG_FILE), values)
  _Worker(plan, workdir, say, interruption, run_stages).work(poll_seconds)
  say(f'report: {results.write_results(plan, workdir)}')


class _Worker:
  """One process at work on a study."""

  def __init__(
    self,
    plan: plan_lib.Plan,
    workdir: str,
    say: Say,
    interruption: Interruption,
    run_stages: RunStages,
  ) -> None:
    self._plan = plan
    self._workdir = workdir
    self._say = say
    self._interruption = interruption
    self._run_stages = run_stages
    self._began = time.monotonic()
    self._done_at_start = len(plan.jobs) - len(self._left())

  def work(self, poll_seconds: float) -> None:
    """Takes jobs until all are done, here or in other processes."""
    waits = False
    while left := self._left():
      if self._interruption.requested:
        raise Interrupted
      ready = [
        job
        for job in left
        if job.search is None or job.search.is_done(self._workdir)
      ]
      if any(self._take(job, len(left)) for job in ready):
        waits = False
        continue
      if not waits:
        self._say(f'study: other processes have the {len(left)} runs left')
      waits = True
      time.sleep(poll_seconds)

  def _left(self) -> list[plan_lib.Job]:
    return [job for job in self._plan.jobs if not job.is_done(self._workdir)]

  def _take(self, job: plan_lib.Job, left: int) -> bool:
    """Runs a job to its end, unless another process holds it."""
    folder = job.workdir(self._workdir)
    try:
      with lock.hold(folder, _CLAIM):
        # Once more: who held it may have ended it.
        if not job.is_done(self._workdir):
          self._say(self._progress(job, left))
          self._run(job, folder)
    except lock.Held:
      return False
    return True

  def _run(self, job: plan_lib.Job, folder: str) -> None:
    if job.search is not None:
      source, target = (
        os.path.join(place, selection.GENOTYPE_FILE)
        for place in (job.search.workdir(self._workdir), folder)
      )
      files.write_bytes(target, files.read_bytes(source))
      plan_lib.check_params(job, folder)
    try:
      self._run_stages(job.config, folder, lambda _: None, self._interruption)
    except UsageError as error:
      if isinstance(error, lock.Held):
        raise
      raise UsageError(f'{job.label}: {error}') from error
    # Every job compiles programs of its own.
    jax.clear_caches()
    with contextlib.suppress(lock.Held):
      results.write_table(self._plan, self._workdir)

  def _progress(self, job: plan_lib.Job, left: int) -> str:
    """Returns the line that is said before a job."""
    total = len(self._plan.jobs)
    done = total - left
    verb = 'search' if job.kind == plan_lib.SEARCH else 'train'
    parts = [
      f'study: {done} of {total} runs done',
      f'now {verb}: {job.label}',
    ]
    # Those that other processes ended count too: it is their rate as well.
    counted = done - self._done_at_start
    if counted > 0:
      seconds = (time.monotonic() - self._began) / counted * left
      parts.append(f'left {tqdm.tqdm.format_interval(seconds)}')
    return '  '.join(parts)

"""A study as a list of jobs: searches, each once, and trainings.

A job is an ordinary run of the program in a work directory of its own, with a
config derived from the study's. Two entries that search with the same config
share the search.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os

from ml_collections import ConfigDict

from ms_ranas_jax import default_config
from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax import stages
from ms_ranas_jax.costs import cost
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import inputs
from ms_ranas_jax.runtime import files
from ms_ranas_jax.search import selection
from ms_ranas_jax.space import grid
from ms_ranas_jax.studies import entries

FOLDER = 'study'
SEARCH, TRAIN = 'searches', 'trainings'
# What a stage writes last; a training is always followed by its evaluation.
_RESULTS = {
  'search': selection.GENOTYPE_FILE,
  'evaluate': 'evaluate/budgeted.json',
  'report': inputs.PAGE_NAME,
}
_STAGES = {SEARCH: ('search', 'report'), TRAIN: ('train', 'evaluate', 'report')}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A search or a training.

  Attributes:
    kind: `SEARCH` or `TRAIN`.
    name: of its work directory in the folder of its kind.
    label: what a reader calls it.
    config: the whole config of its work directory.
    search: the search that a training takes its cells from, if any.
    params: the least and the most params that the trained network may have.
  """

  kind: str
  name: str
  label: str
  config: ConfigDict
  search: Job | None = None
  params: tuple[float, float] | None = None

  def workdir(self, workdir: str) -> str:
    """Returns its work directory.

    Args:
      workdir: of the study.
    """
    return os.path.join(workdir, FOLDER, self.kind, self.name)

  def is_done(self, workdir: str) -> bool:
    """Returns whether all of its stages have written what they should.

    Args:
      workdir: of the study.
    """
    folder = self.workdir(workdir)
    return all(
      files.is_file(os.path.join(folder, _RESULTS[stage]))
      for stage in self.config.stages
      if stage in _RESULTS
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """All that a study runs.

  Attributes:
    figure: what it is for.
    config: the study's.
    jobs: in the order in which they are taken up; a search stands before the
      trainings that need it.
    trainings: (entry's name, seed) -> training.
  """

  figure: entries.Figure
  config: ConfigDict
  jobs: tuple[Job, ...]
  trainings: dict[tuple[str, int], Job]


def identity(config: ConfigDict) -> str:
  """Returns a hash of all fields that decide what comes out of a run.

  Args:
    config: the whole config.
  """
  values = config.to_dict()
  known = settings.fields_of(values)
  decisive = {
    name: value
    for name, value in fields.flatten(values).items()
    if not known[name].field.free
  }
  text = json.dumps(decisive, sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()


def search_config(config: ConfigDict) -> ConfigDict:
  """Returns the config of the search alone.

  What a search does not depend on is set to its default, so that searches of
  the same identity are the same whatever is trained afterwards, by
  construction.

  Args:
    config: the whole config of a search and a training.
  """
  config = copy.deepcopy(config)
  derived, family = config.train.network, config.train.network.family
  if not (config.search.cost.target or config.search.cost.weight):
    # It is asked for its cost in the metrics, and for nothing else.
    derived, family = config.search.network, families.GRID
  defaults = default_config.get_config(family)
  defaults.train.network.update(derived.to_dict())
  config.train = defaults.train
  config.evaluate = defaults.evaluate
  config.dataset.holdout = defaults.dataset.holdout
  return config


def build_plan(config: ConfigDict, figure: entries.Figure) -> Plan:
  """Returns all that a study runs.

  Args:
    config: the study's whole config.
    figure: what it is for.

  Raises:
    UsageError: a network is impossible, or networks that must have the same
      number of params have not.
  """
  _check_stages(config)
  params = None
  if figure.params_of:
    params = _params_of(config, figure, figure.params_of)
  searches: dict[str, Job] = {}
  trainings: dict[tuple[str, int], Job] = {}
  jobs: list[Job] = []
  for seed in config.study.seeds:
    for entry in figure.entries:
      whole = entry_config(config, figure, entry, seed)
      _check_networks(whole, entry)
      name, label = f'{entry.name}-seed{seed}', f'{entry.label}, seed {seed}'
      search = None
      if needs_search(whole):
        alone = search_config(whole)
        key = identity(alone)
        if key not in searches:
          searches[key] = Job(
            SEARCH, name, label, _with_stages(alone, config, SEARCH)
          )
          jobs.append(searches[key])
        search = searches[key]
      limits = None
      if params is not None:
        slack = entries.PARAMS_TOLERANCE * params
        limits = params - slack, params + slack
      job = Job(
        TRAIN, name, label, _with_stages(whole, config, TRAIN), search, limits
      )
      if search is None:
        check_params(job, '')
      jobs.append(job)
      trainings[entry.name, seed] = job
  return Plan(figure, config, tuple(jobs), trainings)


def entry_config(
  config: ConfigDict, figure: entries.Figure, entry: entries.Entry, seed: int
) -> ConfigDict:
  """Returns the config of an entry's search and training with a seed.

  Args:
    config: the study's.
    figure: with the entry that it aims at.
    entry: what is run.
    seed: of the run.
  """
  run = copy.deepcopy(config)
  run.study = copy.deepcopy(default_config.get_config().study)
  run.seed = seed
  for section in ('search', 'train'):
    setting = getattr(entry, section)
    if setting is not None:
      run.update_from_flattened_dict(
        setting.changes(section, config.study.cutout)
      )
  run.update_from_flattened_dict(dict(entry.changes))
  if entry.aims_at:
    run.search.cost.update(
      metric='params',
      exit=-1,
      target=float(_params_of(config, figure, entry.aims_at)),
      tolerance=entries.PARAMS_TOLERANCE,
    )
  return run


def needs_search(config: ConfigDict) -> bool:
  """Returns whether a run's cells are still to be found.

  Args:
    config: of the run.
  """
  family = families.named(config.train.network.family)
  return family.takes_genotype and not config.train.genotype


def check_params(job: Job, workdir: str) -> None:
  """Refuses a network with too few or too many params.

  Args:
    job: a training.
    workdir: its work directory, with the genotype where one was searched.

  Raises:
    UsageError: the network is not as large as those it is compared with.
  """
  if job.params is None:
    return
  found = _network_params(job.config, workdir)
  low, high = job.params
  if not low <= found <= high:
    raise UsageError(
      f'{job.label}: the network has {found:,} params, and {low:,.0f} to '
      f'{high:,.0f} would be as many as those that it is compared with; change '
      'its sizes in the config of the study.'
    )


def _network_params(config: ConfigDict, workdir: str = '') -> int:
  return cost.network_cost(
    stages.project(config, workdir).train_network()
  ).params


def _params_of(config: ConfigDict, figure: entries.Figure, name: str) -> int:
  """Returns the params of an entry whose network is known."""
  (entry,) = (entry for entry in figure.entries if entry.name == name)
  return _network_params(entry_config(config, figure, entry, 0))


def _with_stages(run: ConfigDict, study: ConfigDict, kind: str) -> ConfigDict:
  run.stages = tuple(s for s in _STAGES[kind] if s in study.stages)
  return run


def _check_stages(config: ConfigDict) -> None:
  missing = {'search', 'train', 'evaluate'} - set(config.stages)
  if missing:
    raise UsageError(
      f'config.stages = {tuple(config.stages)}: a study searches, trains and '
      f'evaluates; add {", ".join(sorted(missing))}.'
    )


def _check_networks(config: ConfigDict, entry: entries.Entry) -> None:
  try:
    run = stages.project(config)
    if needs_search(config):
      derived = grid.derived_config(run.config.train.network)
      grid.build_plan(
        grid.network_spec(derived, *run.image_format), field='train.network'
      )
      _ = run.problem  # refused where it is impossible
    else:
      run.train_network()
  except UsageError as error:
    raise UsageError(f'{entry.label}: {error}') from error

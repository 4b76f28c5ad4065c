"""The stages of the program; each reads and writes the work directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import os
from typing import Any

from ms_ranas_jax import settings
from ms_ranas_jax import tables
from ms_ranas_jax.anytime import evaluation
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.report import page
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime.data import Dataset
from ms_ranas_jax.runtime.data import load_dataset
from ms_ranas_jax.search import loop as search_loop
from ms_ranas_jax.space import cost
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.genotype import load_genotype
from ms_ranas_jax.training import loop as train_loop

Config = Any
_CONFIG_FILE = 'config.json'
# Fields that may change from one call to the next in a work directory.
_FREE_FIELDS = ('stages', 'dataset.dir', 'num_devices', 'lowering')


def run_stages(
  config: Config, workdir: str, say: Callable[[str], None]
) -> None:
  """Runs the stages that the config names, in the program's order.

  Args:
    config: the whole config, a `ConfigDict`.
    workdir: the work directory; made where it is not there.
    say: told in a few lines what came out.

  Raises:
    UsageError: bad input; nothing was started or lost.
  """
  values = config.to_dict()
  settings.check_config(values)
  _check_same_run(values, workdir)
  dataset = load_dataset(config.dataset.name, config.dataset.dir)
  _check_networks(config, dataset, workdir)
  files.write_json(os.path.join(workdir, _CONFIG_FILE), values)
  say(
    f'{dataset.name}: {len(dataset.train_images)} training and '
    f'{len(dataset.test_images)} test images; work directory {workdir}'
  )
  for stage in settings.STAGES:
    if stage in config.stages:
      _STAGES[stage](config, dataset, workdir, say)


def _check_same_run(values: Mapping[str, Any], workdir: str) -> None:
  """Refuses a work directory that another config made."""
  path = os.path.join(workdir, _CONFIG_FILE)
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise UsageError(f'--workdir={workdir} is a file; name a directory.')
  if not os.path.exists(path):
    return
  old = files.read_json(path)
  if not isinstance(old, dict):
    raise UsageError(f'{path} holds no config; name another --workdir.')
  old = settings.flatten(old)
  # Through JSON and back, where tuples become lists.
  new = settings.flatten(json.loads(json.dumps(values)))
  differing = sorted(
    name
    for name in old.keys() | new.keys()
    if name not in _FREE_FIELDS and old.get(name) != new.get(name)
  )
  if differing:
    raise UsageError(
      f'{path} is of another config: '
      + ', '.join(
        f'{name} was {old.get(name)!r}, now {new.get(name)!r}'
        for name in differing
      )
      + '; name another --workdir, or set these fields back.'
    )


def _check_networks(config: Config, dataset: Dataset, workdir: str) -> None:
  """Refuses impossible networks before anything long is started."""
  if 'search' in config.stages or 'describe' in config.stages:
    _search_network(config, dataset)
  wanted = {'train', 'evaluate'} & set(config.stages)
  if not wanted:
    return
  genotype = _find_genotype(config, workdir)
  if genotype is not None:
    _train_network(config, dataset, genotype)
    return
  if 'search' not in config.stages:
    raise UsageError(
      f"there is no {search_loop.GENOTYPE_FILE} in {workdir}; run the 'search' "
      'stage first, or set config.train.genotype.'
    )
  searched, trained = config.search.network, config.train.network
  if searched.nodes != trained.nodes:
    raise UsageError(
      f'config.train.network.nodes = {trained.nodes}, but the search finds '
      f'cells of config.search.network.nodes = {searched.nodes} nodes; make '
      'them equal, or set config.train.genotype.'
    )
  # Any cell of that size will do to see whether the grid can be built.
  edges = tuple(
    ('skip_connect', s) for _ in range(trained.nodes) for s in (0, 1)
  )
  concat = tuple(range(2, 2 + trained.nodes))
  _train_network(config, dataset, Genotype(edges, concat, edges, concat))


def _find_genotype(config: Config, workdir: str) -> Genotype | None:
  """Returns the genotype to train, None where it is still to be found."""
  if config.train.genotype:
    return load_genotype(config.train.genotype)
  path = os.path.join(workdir, search_loop.GENOTYPE_FILE)
  return load_genotype(path) if os.path.exists(path) else None


def _search_network(config: Config, dataset: Dataset) -> network_lib.Network:
  return network_lib.search_network(
    settings.network_spec(config.search.network, dataset),
    ops.PRIMITIVES,
    dtype=config.dtype,
    lowering=config.lowering,
  )


def _train_network(
  config: Config, dataset: Dataset, genotype: Genotype | None
) -> network_lib.Network:
  if genotype is None:
    raise UsageError(
      "there is no genotype yet; run the 'search' stage first, or set "
      'config.train.genotype.'
    )
  return network_lib.derived_network(
    settings.network_spec(config.train.network, dataset),
    genotype,
    ops.OPERATIONS,
    dtype=config.dtype,
    lowering=config.lowering,
  )


def _describe(config, dataset, workdir, say) -> None:
  networks = {'search': _search_network(config, dataset)}
  genotype = _find_genotype(config, workdir)
  if genotype is not None:
    networks['train'] = _train_network(config, dataset, genotype)
  for name, network in networks.items():
    result = cost.network_cost(network).to_dict()
    path = os.path.join(workdir, 'describe', f'{name}_network.json')
    files.write_json(path, result)
    say(
      f'{name} network: {result["params"]:,} params, {result["macs"]:,} macs'
      f'\n{tables.exit_table(result["exits"])}'
    )


def _search(config, dataset, workdir, say) -> None:
  genotype = search_loop.run_search(config, dataset, workdir)
  say(f'search found\n{genotype.to_json().rstrip()}')


def _train(config, dataset, workdir, say) -> None:
  genotype = _find_genotype(config, workdir)
  network = _train_network(config, dataset, genotype)
  files.write_text(
    os.path.join(workdir, 'train', 'genotype.json'), genotype.to_json()
  )
  train_loop.run_training(config, dataset, network, workdir)
  say(f'train: finished {config.train.epochs} epochs')


def _evaluate(config, dataset, workdir, say) -> None:
  network = _train_network(config, dataset, _find_genotype(config, workdir))
  anytime = evaluation.run_evaluation(config, dataset, network, workdir)
  say(
    f'{anytime["num_examples"]} test images of {anytime["dataset"]}; expected '
    f'accuracy {anytime["expected_accuracy"]:.2%}\n'
    f'{tables.exit_table(anytime["exits"])}'
  )


def _report(config, dataset, workdir, say) -> None:
  genotype = _find_genotype(config, workdir)
  path = page.write_report(
    workdir,
    _search_network(config, dataset).plan,
    None
    if genotype is None
    else _train_network(config, dataset, genotype).plan,
    tuple(ops.PRIMITIVES),
  )
  say(f'report: {path}')


_STAGES: Mapping[str, Callable[..., None]] = {
  'describe': _describe,
  'search': _search,
  'train': _train,
  'evaluate': _evaluate,
  'report': _report,
}

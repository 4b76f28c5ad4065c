"""The stages of the program; each reads and writes the work directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from ms_ranas_jax import families
from ms_ranas_jax import fields
from ms_ranas_jax import paths
from ms_ranas_jax import settings
from ms_ranas_jax import text_tables
from ms_ranas_jax.anytime import evaluation
from ms_ranas_jax.anytime.early_exit import CompiledSteps
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import image_format
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import fingerprint
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.report import page
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import lock
from ms_ranas_jax.runtime import loop as loop_lib
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.runtime import processes
from ms_ranas_jax.runtime.interruption import Interrupted
from ms_ranas_jax.runtime.interruption import Interruption
from ms_ranas_jax.search import candidates
from ms_ranas_jax.search import methods
from ms_ranas_jax.search import seeds
from ms_ranas_jax.search import selection
from ms_ranas_jax.search import stage as search_stage
from ms_ranas_jax.sections import STAGES
from ms_ranas_jax.sections import Config
from ms_ranas_jax.space import cost
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import stage as train_stage

CONFIG_FILE = 'config.json'
_IMAGE_STAGES = frozenset({'search', 'train', 'evaluate'})
# Fields that had another name -> what they are called now. Work directories of
# before hold the old names.
RENAMED_FIELDS: Mapping[str, str] = {}
# Stages that all processes run; the first one runs the others alone.
_STAGES_OF_ALL = frozenset({'search', 'train', 'evaluate'})
# How many differing fields an error lists.
_LISTED = 6


def run_stages(
  config: ConfigDict,
  workdir: str,
  say: Callable[[str], None],
  interruption: Interruption | None = None,
) -> None:
  """Runs the stages that the config names, in the program's order.

  Args:
    config: the whole config.
    workdir: the work directory; made where it is not there.
    say: told in a few lines what came out.
    interruption: may ask to stop.

  Raises:
    UsageError: bad input; nothing was started or lost.
    Interrupted: it was asked for; the same call goes on.
  """
  values = settings.complete(config)
  typed = settings.parse(values)
  workdir = paths.expand(workdir)
  if files.is_file(workdir):
    raise UsageError(f'--workdir={workdir} is a file; name a directory.')
  check_same_run(values, workdir)
  run = Run(typed, workdir, say, interruption or Interruption())
  _check_networks(run)
  if _IMAGE_STAGES & set(typed.stages):
    check_images(run)
    run.tell(
      f'{run.dataset.name}: {len(run.dataset.train_images)} training and '
      f'{len(run.dataset.test_images)} test images'
    )
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      stack.enter_context(lock.hold(workdir))
      # Once more: who held the lock may have been of another config.
      check_same_run(values, workdir)
      files.write_json(os.path.join(workdir, CONFIG_FILE), values)
    _check_shared(workdir)
    run.tell(f'work directory: {workdir}')
    chosen = [stage for stage in STAGES if stage in typed.stages]
    for stage in chosen:
      # A signal in the last step of a stage stops the ones that follow.
      if processes.any_of(run.interruption.requested):
        raise Interrupted
      if stage in _STAGES_OF_ALL or processes.is_first():
        _STAGES[stage](run)
      # The others read what the first process has written.
      processes.wait_for_all(stage)


def _check_shared(workdir: str) -> None:
  """Refuses a work directory that not all processes see."""
  processes.wait_for_all('config')
  if not files.is_file(os.path.join(workdir, CONFIG_FILE)):
    raise UsageError(
      f'process {jax.process_index()} does not see what the first one wrote '
      f'to {workdir}; name a --workdir that all machines share.'
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """What a stage works with.

  Attributes:
    config: the whole config.
    workdir: the work directory.
    say: told in a few lines what came out.
    interruption: may ask to stop.
  """

  config: Config
  workdir: str
  say: Callable[[str], None]
  interruption: Interruption

  def tell(self, text: str) -> None:
    """Says what came out, once for all processes."""
    if processes.is_first():
      self.say(text)

  @functools.cached_property
  def dataset(self) -> Dataset:
    """The images, loaded when they are first asked for."""
    dataset = self.config.dataset
    return load_dataset(dataset.name, dataset.dir, dataset.train_images)

  @functools.cached_property
  def image_format(self) -> tuple[tuple[int, int, int], int]:
    """What a network has to know of the images; CIFAR is not read for it."""
    return image_format(self.config.dataset.name, self.config.dataset.dir)

  @property
  def family(self) -> families.Family:
    """The family of the network to train."""
    return families.named(self.config.train.network.family)

  @property
  def model_folder(self) -> str:
    """Where what is trained is described, and its params in the end."""
    return description_lib.folder_of(self.workdir)

  def description(self) -> description_lib.Description | None:
    """Returns what the model folder says, None before a training has begun.

    Once it is there, what was trained is known from it and nothing else.
    """
    # A study asks for networks before there is any work directory.
    if not self.workdir or not description_lib.exists(self.model_folder):
      return None
    return description_lib.read(self.model_folder)

  def genotype(self) -> Genotype | None:
    """Returns the genotype to train, None if there is none, or none yet.

    Before a training has begun; then the model folder has it.
    """
    if not self.family.takes_genotype:
      return None
    path = self.config.train.genotype
    begun = os.path.join(self.workdir, 'train', 'genotype.json')
    if files.is_directory(loop_lib.checkpoints(self.workdir, 'train')) and (
      files.is_file(begun)
    ):
      # Of a release that wrote no model folder: what it began to train.
      path = begun
    if not path:
      path = os.path.join(self.workdir, selection.GENOTYPE_FILE)
      if not files.is_file(path):
        return None
    return load_genotype(path, ops.REAL)

  @functools.cached_property
  def search_network(self) -> network_lib.Network:
    """The network of the search, whether or not the rest fits one."""
    return search_stage.build_network(self.config, *self.image_format)

  @functools.cached_property
  def problem(self) -> methods.Problem:
    """What is searched in; it is refused where it is impossible."""
    return search_stage.build_problem(self.config, self.search_network)

  def train_network(self) -> AnytimeNetwork:
    """Returns the network to train.

    Raises:
      UsageError: its genotype is still to be found, or it is impossible.
    """
    network = self.known_network()
    if network is None:
      raise UsageError(
        f'there is no {selection.GENOTYPE_FILE} in {self.workdir}; run the '
        "'search' stage first, or set config.train.genotype."
      )
    return network

  def known_network(self) -> AnytimeNetwork | None:
    """Returns the network to train, None where its genotype is not found."""
    description = self.description()
    if description is not None:
      return model_lib.network_of(
        description,
        self.model_folder,
        lowering=lowering.resolve(self.config.lowering),
        **families.options(self.config.train),
      )
    genotype = self.genotype()
    if genotype is None and self.family.takes_genotype:
      return None
    return families.train_network(
      self.config.train,
      self.image_format,
      genotype,
      dtype=self.config.dtype,
      lowering=lowering.resolve(self.config.lowering),
    )


def project(
  config: ConfigDict,
  workdir: str = '',
  say: Callable[[str], None] = lambda _: None,
  interruption: Interruption | None = None,
) -> Run:
  """Returns what a config asks for, to look at its networks and images.

  Args:
    config: the whole config.
    workdir: the work directory; '' where there is none.
    say: told in a few lines what came out.
    interruption: may ask to stop.

  Raises:
    UsageError: the config is impossible.
  """
  return Run(
    settings.parse(config), workdir, say, interruption or Interruption()
  )


def check_same_run(values: Mapping[str, Any], workdir: str) -> None:
  """Refuses a work directory that another config made.

  Args:
    values: the whole config, nested mappings.
    workdir: the work directory; nothing has to be there.

  Raises:
    UsageError: it holds another config; the message names what differs.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  if not files.is_file(path):
    return
  old = files.read_json(path)
  if not isinstance(old, dict):
    raise UsageError(f'{path} holds no config; name another --workdir.')
  new = fields.flatten(json.loads(json.dumps(values)))
  old = _translated(fields.flatten(old))
  known = settings.fields_of(values)
  for name, entry in known.items():
    # Fields that are newer than the work directory had their defaults.
    old.setdefault(name, json.loads(json.dumps(entry.default)))
  differing = sorted(
    name
    for name in old.keys() | new.keys()
    if not (name in known and known[name].field.free)
    and old.get(name) != new.get(name)
  )
  if differing:
    listed = ', '.join(
      f'{name} was {old.get(name)!r}, now {new.get(name)!r}'
      for name in differing[:_LISTED]
    )
    more = len(differing) - _LISTED
    listed += f' and {more} more' if more > 0 else ''
    raise UsageError(
      f'{path} is of another config: {listed}; name another --workdir, or set '
      'these fields back.'
    )


def _translated(old: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a work directory of before, as they are now."""
  found = {RENAMED_FIELDS.get(name, name): old[name] for name in old}
  if found.get('search.order') == 0:  # was random search
    found |= {'search.order': 1, 'search.method': 'random'}
  return found


def _trained(run: Run) -> description_lib.Description:
  """Returns what the model folder says; refuses one without a model."""
  description = run.description()
  if description is None or description.tensors is None:
    raise UsageError(
      f'there is no finished training in {run.model_folder} to evaluate; run '
      "the 'train' stage to its end first."
    )
  return description


def _check_networks(run: Run) -> None:
  """Refuses impossible networks before anything long is started."""
  config = run.config
  chosen = set(config.stages)
  if 'search' in chosen and not run.family.takes_genotype:
    raise UsageError(
      "config.stages has 'search', but config.train.network.family = "
      f'{config.train.network.family!r} takes no genotype; remove the stage.'
    )
  if 'search' in chosen:
    _ = run.problem  # made here, and used by the search
  elif 'describe' in chosen and run.family.takes_genotype:
    _ = run.search_network
  if 'evaluate' in chosen and 'train' not in chosen:
    _trained(run)
  needed = {'train', 'evaluate'} & chosen
  if run.known_network() is not None or not needed:
    return
  if 'search' not in chosen:
    run.train_network()  # tells what is missing
  searched = config.search.network
  derived = grid.derived_config(config.train.network)
  if searched.nodes != derived.nodes:
    raise UsageError(
      f'config.train.network.nodes = {derived.nodes}, but the search finds '
      f'cells of config.search.network.nodes = {searched.nodes} nodes; make '
      'them equal, or set config.train.genotype.'
    )
  families.train_plan(config.train, run.image_format)
  budget = dataclasses.asdict(config.train.budget)
  if any(budget.values()) or derived.channels == protocol.AUTO:
    families.check_budget(config.train, run.image_format, derived.nodes)


def check_images(run: Run) -> None:
  """Refuses what fits neither the images nor the machine, before any stage.

  Args:
    run: its images are read.

  Raises:
    UsageError: they are not there, or a field does not fit them or the devices.
  """
  config = run.config
  _, held_out = train_stage.split_training_images(config, run.dataset)
  if {'train', 'evaluate'} & set(config.stages):
    _check_same_images(run, held_out)
  if 'evaluate' in config.stages:
    _judged_images(run)
  plans: dict[str, protocol.Plan] = {}
  if 'search' in config.stages:
    candidates.check_selection(config.search, len(run.dataset.train_images))
    search_stage.plan_epochs(
      config.search, len(run.dataset.train_images), config.seed
    )
    plans['search'] = run.search_network.plan
  if 'train' in config.stages:
    train_stage.plan_epochs(config, run.dataset)
    plans['train'] = families.train_plan(config.train, run.image_format)
  for stage, plan in plans.items():
    section = getattr(config, stage)
    parallel.choose_devices(
      config.num_devices, section.batch_size, f'{stage}.batch_size'
    )
    losses.exit_weights(
      section.exit_weights, len(plan.exits), f'{stage}.exit_weights'
    )


def _check_same_images(run: Run, held_out: np.ndarray) -> None:
  """Refuses other images than those that a training has begun with."""
  description = run.description()
  if description is None:
    return
  if not set(description.data) >= {*fingerprint.TRAINING, *fingerprint.TEST}:
    raise UsageError(
      f'{run.model_folder} was not trained in this work directory: it does not '
      'say on which images; name another --workdir, or move that folder away.'
    )
  found = fingerprint.of_dataset(run.dataset, held_out)
  recorded = {name: description.data[name] for name in found}
  differing = fingerprint.differences(recorded, found)
  if differing:
    listed = '; '.join(differing)
    raise UsageError(
      f'these are not the images and labels of {run.model_folder}: {listed}. '
      'Bring those back (dataset.dir may be another folder), name another '
      '--workdir, or judge other test images by their name: '
      'evaluate.dataset.name and evaluate.dataset.dir.'
    )


def _judged_images(run: Run) -> Dataset:
  """Returns the dataset with the test images that are to be judged."""
  other, dataset = run.config.evaluate.dataset, run.dataset
  if not other.name:
    if other.dir:
      raise UsageError(
        f'evaluate.dataset.dir = {other.dir!r} has no evaluate.dataset.name; '
        'set it too.'
      )
    return dataset
  try:
    found = load_dataset(other.name, other.dir)
  except UsageError as error:
    raise UsageError(f'evaluate.dataset: {error}') from error
  if (
    _has_names(found)
    and _has_names(dataset)
    and found.class_names != dataset.class_names
  ):
    raise UsageError(
      f'evaluate.dataset.name = {other.name!r} has other classes than '
      f'{dataset.name}; name test images of the classes that were trained.'
    )
  if (
    found.image_shape != dataset.image_shape
    or found.test_labels.max() >= dataset.num_classes
  ):
    raise UsageError(
      f'evaluate.dataset: test images {found.image_shape} of classes up to '
      f'{found.test_labels.max()} do not fit a network of images '
      f'{dataset.image_shape} and {dataset.num_classes} classes; name others.'
    )
  return dataclasses.replace(
    dataset,
    name=found.name,
    test_images=found.test_images,
    test_labels=found.test_labels,
  )


def _has_names(dataset: Dataset) -> bool:
  """Returns whether classes have names and not only numbers."""
  return dataset.class_names != tuple(map(str, range(dataset.num_classes)))


def _describe(run: Run) -> None:
  if run.family.takes_genotype:
    _describe_network(run, 'search', run.search_network)
  network = run.known_network()
  if network is not None:
    _tell_width(run, network)
    _describe_network(run, 'train', network)


def _tell_width(run: Run, network: AnytimeNetwork) -> None:
  """Says which width was chosen, where it was."""
  if run.config.train.network.channels == protocol.AUTO:
    channels = dataclasses.asdict(network.plan.spec)['channels']
    run.tell(f'train.network.channels: {channels}, the widest in train.budget')


def _describe_network(run: Run, name: str, network: AnytimeNetwork) -> None:
  result = cost.network_cost(network).to_dict()
  path = os.path.join(run.workdir, 'describe', f'{name}_network.json')
  files.write_json(path, result)
  run.tell(
    f'{name} network: {result["params"]:,} params, {result["macs"]:,} macs'
    f'\n{text_tables.exit_table(result["exits"])}'
  )


def _search(run: Run) -> None:
  genotype = search_stage.run_search(
    run.config,
    run.dataset,
    run.workdir,
    run.interruption,
    run.problem,
  )
  if processes.is_first():  # which has written what is read here
    for name, table in (
      (seeds.SEEDS_FILE, text_tables.seed_table),
      (candidates.CANDIDATES_FILE, text_tables.candidate_table),
    ):
      path = os.path.join(run.workdir, name)
      if files.is_file(path):
        run.tell(table(files.read_json(path)))
  run.tell(f'search found\n{genotype.to_json().rstrip()}')


def _train(run: Run) -> None:
  description = run.description()
  network = run.train_network()
  _tell_width(run, network)
  if 'search' in run.config.stages and 'describe' in run.config.stages:
    # That stage came before the search, and did not know this network yet.
    _describe_network(run, 'train', network)
  _tell_other_genotype(run, description)
  # All have read the description, or seen that there is none.
  processes.wait_for_all('description')
  if description is None:
    description = _begin_model(run, network)
  # Every process reads its own images, and another command may have begun this
  # training since they were looked at.
  processes.wait_for_all('begun')
  _, held_out = train_stage.split_training_images(run.config, run.dataset)
  _check_same_images(run, held_out)
  if description.tensors is not None:
    run.tell(f'train: {run.model_folder} holds the finished training')
    return
  state = train_stage.run_training(
    run.config, run.dataset, network, run.workdir, run.interruption
  )
  if processes.is_first():
    data, shapes = tensors.pack(state.variables)
    tensors.write(run.model_folder, data)
    written = tensors.describe(data, shapes, description)
    description_lib.write(
      run.model_folder, dataclasses.replace(description, tensors=written)
    )
  run.tell(f'train: finished {run.config.train.epochs} epochs')


def _begin_model(
  run: Run, network: AnytimeNetwork
) -> description_lib.Description:
  """Writes down what is going to be trained, and on what."""
  dataset = run.dataset
  _, held_out = train_stage.split_training_images(run.config, dataset)
  description = dataclasses.replace(
    model_lib.build_model(
      network,
      {},
      dataset.mean,
      dataset.std,
      dataset.class_names,
      family=run.config.train.network.family,
    ).description,
    data={'name': dataset.name, **fingerprint.of_dataset(dataset, held_out)},
  )
  if processes.is_first():
    description_lib.write(run.model_folder, description)
    genotype = families.genotype_of(network)
    if genotype is not None:
      # For train.genotype of other runs; the program does not read it again.
      files.write_text(
        os.path.join(run.workdir, 'train', 'genotype.json'), genotype.to_json()
      )
  return description


def _tell_other_genotype(
  run: Run, description: description_lib.Description | None
) -> None:
  """Says so where the search has found other cells since a training began."""
  path = os.path.join(run.workdir, selection.GENOTYPE_FILE)
  if description is None or run.config.train.genotype:
    return
  try:
    known = files.is_file(path) and files.read_json(path)
  except UsageError:
    known = None  # it is another one in any case, and not needed
  if known not in (False, description.network.get('genotype')):
    run.tell(
      f'train: {path} is not the genotype that {run.model_folder} was begun '
      'with; that one is trained. Name another --workdir to train the new one.'
    )


def _evaluate(run: Run) -> None:
  description = _trained(run)
  dataset = _judged_images(run)
  _, held_out = train_stage.split_training_images(run.config, dataset)
  anytime, budgeted = evaluation.evaluate_exits(
    run.config.evaluate,
    dataset,
    CompiledSteps(
      run.train_network(),
      tensors.read(run.model_folder, description),
      description.mean,
      description.std,
    ),
    held_out,
  )
  found = {
    name: fingerprint.of_array(getattr(dataset, name))
    for name in fingerprint.TEST
  }
  recorded = {name: description.data[name] for name in fingerprint.TEST}
  other = bool(fingerprint.differences(recorded, found))
  anytime |= {'other_images': other, 'test_images': found}
  evaluation.write_evaluation(anytime, budgeted, run.workdir)
  if processes.is_first():
    settled = description_lib.Evaluation(
      dataset=dataset.name,
      test_images=found,
      other_images=other,
      accuracies=tuple(e['accuracy'] for e in anytime['exits']),
      num_holdout=budgeted['num_holdout'],
      temperatures=tuple(e['temperature'] for e in anytime['exits']),
      thresholds={
        point['q']: tuple(point['thresholds']) for point in budgeted['points']
      },
    )
    description_lib.write(
      run.model_folder, dataclasses.replace(description, evaluation=settled)
    )
  others = ', not those of the training' * other
  run.tell(
    f'{anytime["num_examples"]} test images of {anytime["dataset"]}{others}; '
    f'expected accuracy {anytime["expected_accuracy"]:.2%}\n'
    f'{text_tables.exit_table(anytime["exits"])}'
  )


def _report(run: Run) -> None:
  network = run.known_network()
  trained = None
  if network is not None:
    trained = page.Trained(
      network.plan,
      families.genotype_of(network),
      cost.network_cost(network).to_dict(),
    )
  path = page.write_report(
    run.workdir,
    run.search_network.plan if run.family.takes_genotype else None,
    trained,
    run.config.search.primitives,
  )
  run.tell(f'report: {path}')


_STAGES: Mapping[str, Callable[[Run], None]] = {
  'describe': _describe,
  'search': _search,
  'train': _train,
  'evaluate': _evaluate,
  'report': _report,
}

"""The stages of the program; each reads and writes the work directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from ms_ranas_jax import errors
from ms_ranas_jax import families
from ms_ranas_jax import importing
from ms_ranas_jax import paths
from ms_ranas_jax import same_run
from ms_ranas_jax import settings
from ms_ranas_jax import text_tables
from ms_ranas_jax.anytime import evaluation
from ms_ranas_jax.anytime.early_exit import CompiledSteps
from ms_ranas_jax.baselines.cells import load_genotype
from ms_ranas_jax.costs import cost
from ms_ranas_jax.costs import width
from ms_ranas_jax.data import summary
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import TestImages
from ms_ranas_jax.data.datasets import image_format
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.data.datasets import load_test_images
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.model import description as description_lib
from ms_ranas_jax.model import fingerprint
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.model import start as start_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.report import inputs
from ms_ranas_jax.runtime import environment
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
from ms_ranas_jax.sections import TFLITE
from ms_ranas_jax.sections import Config
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.protocol import AnytimeNetwork
from ms_ranas_jax.training import augmentation
from ms_ranas_jax.training import losses
from ms_ranas_jax.training import stage as train_stage

_IMAGE_STAGES = frozenset({'search', 'train', 'evaluate', 'export'})
# Stages that all processes run; the first one runs the others alone.
_STAGES_OF_ALL = frozenset({'search', 'train', 'evaluate'})


def run_stages(
  config: ConfigDict,
  workdir: str,
  say: Callable[[str], None],
  interruption: Interruption | None = None,
  redo: bool = False,
) -> None:
  """Runs the stages that the config names, in the program's order.

  Args:
    config: the whole config.
    workdir: the work directory; made where it is not there.
    say: told in a few lines what came out.
    interruption: may ask to stop.
    redo: whether stages that have kept something of another config are done
      again; what they left is kept aside.

  Raises:
    UsageError: bad input; nothing was started or lost.
    Interrupted: it was asked for; the same call goes on.
  """
  values = settings.complete(config)
  typed = settings.parse(values)
  if 'report' in typed.stages:
    environment.load(environment.MATPLOTLIB)
  workdir = paths.expand(workdir)
  if files.is_file(workdir):
    raise UsageError(f'--workdir={workdir} is a file; name a directory.')
  changes = same_run.compare(values, workdir, redo)
  run = Run(typed, workdir, say, interruption or Interruption(), changes.again)
  _check_networks(run)
  if _IMAGE_STAGES & set(typed.stages):
    check_images(run)
    run.tell(_summary(run.dataset))
  if redo:
    # None may look at what was there once the first has set it aside.
    processes.wait_for_all('redo')
  with contextlib.ExitStack() as stack:
    if processes.is_first():
      stack.enter_context(lock.hold(workdir))
      # Once more: who held the lock may have been of another config.
      changes = same_run.compare(values, workdir, redo)
      aside = same_run.set_aside(workdir, changes)
      if aside is not None:
        run.tell(f'kept aside, since it is of another config: {aside}')
      same_run.write_config(values, workdir)
      if _IMAGE_STAGES & set(typed.stages):
        summary.write(run.dataset, workdir)
    _check_shared(workdir)
    run = run.as_it_is_now()
    run.tell(f'work directory: {workdir}')
    chosen = [stage for stage in STAGES if stage in typed.stages]
    for stage in chosen:
      # A signal in the last step of a stage stops the ones that follow.
      if processes.any_of(run.interruption.requested):
        raise Interrupted
      if stage in _STAGES_OF_ALL or processes.is_first():
        _run_stage(stage, run)
      # The others read what the first process has written.
      processes.wait_for_all(stage)


def _summary(dataset: Dataset) -> str:
  """Returns how many images and classes there are, in a line or more."""
  counts = summary.counts(dataset.train_labels, dataset.num_classes)
  counted = (
    f'{dataset.name}: {len(dataset.train_images)} training and '
    f'{len(dataset.test_images)} test images of {dataset.num_classes} classes, '
    f'{counts.min()} to {counts.max()} training images each'
  )
  return '\n'.join([counted, *dataset.notes])


def _run_stage(stage: str, run: Run) -> None:
  if processes.is_first():
    same_run.begin(run.workdir, stage)
  _STAGES[stage](run)
  if processes.is_first():
    same_run.finish(run.workdir, stage)


def _check_shared(workdir: str) -> None:
  """Refuses a work directory that not all processes see."""
  processes.wait_for_all('config')
  if not files.is_file(os.path.join(workdir, same_run.CONFIG_FILE)):
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
    again: stages of which nothing that is there counts, since they will be
      done again.
  """

  config: Config
  workdir: str
  say: Callable[[str], None]
  interruption: Interruption
  again: tuple[str, ...] = ()

  def as_it_is_now(self) -> Run:
    """Returns the same once what does not count was set aside."""
    return dataclasses.replace(self, again=()) if self.again else self

  def tell(self, text: str) -> None:
    """Says what came out, once for all processes."""
    if processes.is_first():
      self.say(text)

  @functools.cached_property
  def dataset(self) -> Dataset:
    """The images, loaded when they are first asked for."""
    dataset = self.config.dataset
    return load_dataset(
      dataset.name,
      dataset.dir,
      dataset.train_images,
      dataset.picture_options,
      dataset.storage,
    )

  @functools.cached_property
  def image_format(self) -> tuple[tuple[int, int, int], int]:
    """What a network has to know of the images; CIFAR is not read for it."""
    dataset = self.config.dataset
    return image_format(
      dataset.name, dataset.dir, dataset.picture_options, dataset.storage
    )

  @property
  def family(self) -> families.Family:
    """The family of the network to train."""
    return families.named(self.config.train.network.family)

  @functools.cached_property
  def model_folder(self) -> str:
    """Where what is trained is described, and its params in the end."""
    if self.config.evaluate.model:
      return model_lib.find_folder(self.config.evaluate.model)
    return description_lib.folder_of(self.workdir)

  @property
  def search_is_over(self) -> bool:
    """Whether nothing of the search is left to do."""
    return same_run.is_finished(self.workdir, 'search') and files.is_file(
      os.path.join(self.workdir, selection.GENOTYPE_FILE)
    )

  def description(self) -> description_lib.Description | None:
    """Returns what the model folder says, None before a training has begun.

    Once it is there, what was trained is known from it and nothing else.
    """
    # A study asks for networks before there is any work directory.
    if (
      not self.workdir
      or 'train' in self.again
      or not description_lib.exists(self.model_folder)
    ):
      return None
    found = description_lib.read(self.model_folder)
    if found.tensors is None and not same_run.has_kept(self.workdir, 'train'):
      return None  # it may begin anew, of another config
    return found

  def genotype(self) -> Genotype | None:
    """Returns the genotype to train, None if there is none, or none yet.

    Before a training has begun; then the model folder has it.
    """
    if not self.family.takes_genotype:
      return None
    path = self.config.train.genotype
    begun = os.path.join(self.workdir, 'train', 'genotype.json')
    if (
      'train' not in self.again
      and files.is_directory(loop_lib.checkpoints(self.workdir, 'train'))
      and files.is_file(begun)
    ):
      # Of a release that wrote no model folder: what it began to train.
      path = begun
    if not path and self.config.train.start_from:
      return start_lib.genotype_of(self.config.train.start_from)
    if not path:
      path = os.path.join(self.workdir, selection.GENOTYPE_FILE)
      if 'search' in self.again or not files.is_file(path):
        return None
    return load_genotype(path, ops.REAL)

  @functools.cached_property
  def start(self) -> start_lib.Start | None:
    """What the training starts from, None where that is random params."""
    train = self.config.train
    if not train.start_from:
      return None
    return start_lib.read(
      train.start_from,
      self.train_network(),
      train.network.family,
      self.dataset.class_names,
    )

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
  if config.evaluate.model:
    _check_other_model(run)
  if 'search' in chosen and not run.family.takes_genotype:
    raise UsageError(
      "config.stages has 'search', but config.train.network.family = "
      f'{config.train.network.family!r} takes no genotype; remove the stage.'
    )
  if (
    'train' in chosen
    and run.again == ()
    and not same_run.is_of_here(run.workdir, 'train')
  ):
    raise UsageError(
      f'{run.model_folder} was not trained in this work directory; name '
      'another --workdir, or move that folder away.'
    )
  if 'train' in chosen and config.train.start_from:
    _check_start(run)
  if 'search' in chosen:
    _ = run.problem  # made here, and used by the search
  elif 'describe' in chosen and run.family.takes_genotype:
    _ = run.search_network
  if {'evaluate', 'export'} & chosen and 'train' not in chosen:
    _trained(run)
  if 'export' in chosen:
    _check_export(run)
  if 'report' in chosen and not {'train', 'evaluate'} & chosen:
    _check_evaluation(run)
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
  if config.train.budget.limits or derived.channels == protocol.AUTO:
    families.check_budget(config.train, run.image_format, derived.nodes)


def _check_start(run: Run) -> None:
  """Refuses what a training cannot start from."""
  train = run.config.train
  if 'search' in run.config.stages:
    raise UsageError(
      f"config.stages has 'search', but config.train.start_from = "
      f'{train.start_from!r} has its cells already; remove the stage.'
    )
  if run.description() is not None:
    return  # it has begun
  start = run.start
  assert start is not None
  modules = {name.split('/')[1] for name in (*start.arrays, *start.drawn)}
  for name in train.freeze:
    if not any(module.startswith(name) for module in modules):
      raise UsageError(
        f'config.train.freeze: no module begins with {name!r}; there are '
        f'{", ".join(sorted(modules))}.'
      )
  if all(module.startswith(tuple(train.freeze)) for module in modules):
    raise UsageError(
      'config.train.freeze leaves nothing to train; name fewer modules.'
    )


def _check_export(run: Run) -> None:
  """Refuses an export that cannot come to its end."""
  importing.check_extra(
    'onnx', ('onnx', 'onnxruntime'), "config.stages has 'export', which"
  )
  if TFLITE in run.config.export.formats:
    importing.check_extra(
      'tflite',
      ('litert_converter', 'ai_edge_litert', 'ai_edge_quantizer'),
      "config.export.formats has 'tflite', which",
    )
  from ms_ranas_jax.export import stage as export_stage  # it imports these

  # What will be trained has no evaluation before its own.
  known = None if 'train' in run.config.stages else run.description()
  export_stage.check(
    run.config.export,
    run.config.dataset.holdout,
    'evaluate' in run.config.stages
    or (known is not None and known.evaluation is not None),
  )


def _check_other_model(run: Run) -> None:
  """Refuses a model of elsewhere where there is one, or will be one, here."""
  path = run.config.evaluate.model
  here = description_lib.folder_of(run.workdir)
  making = {'search', 'train'} & set(run.config.stages)
  if making:
    raise UsageError(
      f'config.evaluate.model = {path!r}, but config.stages has '
      f'{" and ".join(map(repr, sorted(making)))}; remove them, or judge what '
      'is trained here.'
    )
  if not description_lib.exists(here):
    return
  tensors_here = description_lib.read(here).tensors
  if tensors_here != _trained(run).tensors:
    raise UsageError(
      f'config.evaluate.model = {path!r}, but {here} is another model; name '
      'another --workdir for what is found.'
    )


def _check_evaluation(run: Run) -> None:
  """Refuses to report an evaluation of another config as if it were this."""
  found = None if run.again else inputs.read_anytime(run.workdir)
  if found is None:
    return
  whole = [0, found['exits'][-1]['macs']]
  asked = list(run.config.evaluate.budget_range) or whole
  judged = found.get('budget_range', whole)
  if judged != asked:
    raise UsageError(
      f'what was evaluated in {run.workdir} is of evaluate.budget_range = '
      f"{judged}, not {asked}; add 'evaluate' to config.stages, so that it is "
      'done again.'
    )


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
    train_stage.choose_devices(config)
    train_stage.class_weights(config, run.dataset)
    plans['train'] = families.train_plan(config.train, run.image_format)
    _check_holdout(len(held_out), len(plans['train'].exits))
  for stage, plan in plans.items():
    section = getattr(config, stage)
    augmentation.check(
      run.dataset.image_shape[:2], config.dataset, section.cutout, stage
    )
    parallel.choose_devices(
      config.num_devices, section.batch_size, f'{stage}.batch_size'
    )
    losses.exit_weights(
      section.exit_weights, len(plan.exits), f'{stage}.exit_weights'
    )


def _check_holdout(held_out: int, num_exits: int) -> None:
  """Refuses so few held-out images that some exit could answer none."""
  if 0 < held_out < num_exits:
    raise UsageError(
      f'config.dataset.holdout = {held_out}, but the network has {num_exits} '
      'exits: every image would go to the last one; hold out many more, or '
      'give 0 for no thresholds.'
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
    found = load_test_images(
      other.name,
      other.dir,
      dataset.image_shape,
      run.config.dataset.storage,
    )
  except UsageError as error:
    raise UsageError(f'evaluate.dataset: {error}') from error
  labels = _labels_as_trained(found, dataset)
  if found.images.shape[1:] != dataset.image_shape:
    raise UsageError(
      f'evaluate.dataset: test images {found.images.shape[1:]} do not fit a '
      f'network of images {dataset.image_shape}; name others.'
    )
  return dataclasses.replace(
    dataset,
    name=found.name,
    test_images=found.images,
    test_labels=labels,
  )


def _labels_as_trained(found: TestImages, trained: Dataset) -> np.ndarray:
  """Returns test labels as the numbers that a network knows the classes by.

  Classes are the same if they have the same name. Where one of the datasets has
  names and the other only numbers from 0 on, the numbers count.
  """
  known = {name: index for index, name in enumerate(trained.class_names)}
  names = found.class_names
  if _are_names(trained.class_names) != _are_names(names):
    unnamed = names if _are_names(trained.class_names) else trained.class_names
    if unnamed == tuple(map(str, range(len(unnamed)))):
      names = trained.class_names
  there = np.unique(found.labels).tolist()
  unknown = [n for n in there if n >= len(names) or names[n] not in known]
  if unknown:
    listed = errors.listed([found.class_names[n] for n in unknown])
    raise UsageError(
      f'evaluate.dataset.name = {found.name!r} has other classes than '
      f'{trained.name} ({listed}); name test images of the classes that '
      'were trained.'
    )
  places = np.zeros(len(found.class_names), np.int32)
  places[there] = [known[names[n]] for n in there]
  return places[found.labels]


def _are_names(class_names: Sequence[str]) -> bool:
  """Returns whether classes have names and not only numbers."""
  return not all(name.isdigit() for name in class_names)


def _describe(run: Run) -> None:
  if run.family.takes_genotype:
    method = methods.named(run.config.search.method)
    summary = method.summary(run.config.search, run.search_network)
    if summary is None:
      _describe_network(run, 'search', run.search_network)
    else:
      run.tell(f'search: {summary}')
  network = run.known_network()
  if network is not None:
    _tell_width(run, network)
    _tell_budget(run, network)
    _describe_network(run, 'train', network)


def _tell_width(run: Run, network: AnytimeNetwork) -> None:
  """Says which width was chosen, where it was."""
  if run.config.train.network.channels == protocol.AUTO:
    channels = dataclasses.asdict(network.plan.spec)['channels']
    run.tell(f'train.network.channels: {channels}, the widest in train.budget')


def _tell_budget(run: Run, network: AnytimeNetwork) -> None:
  """Says what of the budget the network takes, where there is one."""
  budget = run.config.train.budget
  if budget.limits:
    costs = width.measured(network, budget.dtype)
    taken = ', '.join(
      f'{costs[name]:,} of {limit:,.0f} {width.unit(name, budget.dtype)}'
      for name, limit in budget.limits.items()
    )
    run.tell(f'train.budget: {taken}')


def _describe_network(run: Run, name: str, network: AnytimeNetwork) -> None:
  result = cost.network_cost(network).to_dict()
  path = os.path.join(run.workdir, 'describe', f'{name}_network.json')
  files.write_json(path, result)
  run.tell(
    f'{name} network: {result["params"]:,} params, {result["macs"]:,} macs'
    f'\n{text_tables.exit_table(result["exits"])}'
  )


def _search(run: Run) -> None:
  path = os.path.join(run.workdir, selection.GENOTYPE_FILE)
  if run.search_is_over:
    run.tell(f'search: {path} was found before')
    return
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
  _tell_budget(run, network)
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

  def start() -> Mapping[str, np.ndarray]:
    return {} if run.start is None else run.start.arrays

  state = train_stage.run_training(
    run.config, run.dataset, network, run.workdir, run.interruption, start
  )
  if processes.is_first():
    variables = train_stage.shipped_variables(run.config, run.workdir, state)
    data, shapes = tensors.pack(variables)
    tensors.write(run.model_folder, data)
    written = tensors.describe(data, shapes, description)
    description_lib.write(
      run.model_folder, dataclasses.replace(description, tensors=written)
    )
  run.tell(f'train: {train_stage.summary(run.config, run.workdir)}')


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
    data={
      'name': dataset.name,
      'images_per_class': summary.counts(
        dataset.train_labels, dataset.num_classes
      ).tolist(),
      **fingerprint.of_dataset(dataset, held_out),
    },
    start=run.start.to_json() if run.start is not None else {},
  )
  if run.start is not None:
    drawn = ', with new classifiers' * bool(run.start.drawn)
    run.tell(f'train: starts from {run.start.folder}{drawn}')
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
  if not files.is_file(path):
    return
  try:
    found = json.loads(load_genotype(path).to_json())
  except UsageError:
    found = None  # it is another one in any case, and not needed
  if found != description.network.get('genotype'):
    run.tell(
      f'train: {path} is not the genotype that {run.model_folder} was begun '
      'with; that one is trained. Name another --workdir to train the new one.'
    )


def _evaluate(run: Run) -> None:
  description = _trained(run)
  dataset = _judged_images(run)
  _, held_out = train_stage.split_training_images(run.config, dataset)
  judged = evaluation.evaluate_exits(
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
  anytime, budgeted = judged.anytime, judged.budgeted
  anytime |= {'other_images': other, 'test_images': found}
  evaluation.write_evaluation(judged, run.workdir)
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
    here = description_lib.folder_of(run.workdir)
    if run.config.evaluate.model:
      path = os.path.join(run.model_folder, tensors.FILE)
      tensors.write(here, files.read_bytes(path))
    description_lib.write(
      here, dataclasses.replace(description, evaluation=settled)
    )
  others = ', not those of the training' * other
  if not budgeted['num_holdout']:
    run.tell(
      'no images are held out (dataset.holdout = 0): there are no thresholds, '
      'and confidences are not calibrated'
    )
  run.tell(
    f'{anytime["num_examples"]} test images of {anytime["dataset"]}{others}; '
    f'expected accuracy {anytime["expected_accuracy"]:.2%}\n'
    f'{text_tables.exit_table(anytime["exits"])}'
  )


def _export(run: Run) -> None:
  from ms_ranas_jax.export import stage as export_stage  # see `_check_export`

  _trained(run)
  dataset = _judged_images(run)
  _, held_out = train_stage.split_training_images(run.config, dataset)
  # An evaluation of a model of elsewhere is kept with its copy.
  here = description_lib.folder_of(run.workdir)
  export_stage.run_export(
    run.config.export,
    here if description_lib.exists(here) else run.model_folder,
    run.workdir,
    dataset.train_images[held_out],
    dataset,
    run.tell,
  )


def write_page(
  run: Run,
  network: AnytimeNetwork | None,
  searched: grid.Plan | None,
  **more: Any,
) -> str:
  """Writes the report of a work directory.

  Args:
    run: of the work directory.
    network: to train, or that was trained; None where it is not known yet.
    searched: the network of the search; None to leave it out.
    **more: see `page.write_report`.

  Returns:
    The path of the page.
  """
  # Here, as nothing else waits for the import of matplotlib.
  from ms_ranas_jax.report import page

  trained = None
  if network is not None:
    trained = page.Trained(
      network.plan,
      families.genotype_of(network),
      cost.network_cost(network).to_dict(),
    )
  return page.write_report(
    run.workdir, searched, trained, run.config.search.primitives, **more
  )


def _report(run: Run) -> None:
  searched = run.search_network.plan if run.family.takes_genotype else None
  run.tell(f'report: {write_page(run, run.known_network(), searched)}')


_STAGES: Mapping[str, Callable[[Run], None]] = {
  'describe': _describe,
  'search': _search,
  'train': _train,
  'evaluate': _evaluate,
  'export': _export,
  'report': _report,
}

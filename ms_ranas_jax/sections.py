"""The sections of a config: every field once, with all that is known of it.

What one family of networks or one search method has for itself stands with it:
`grid.GridConfig`, `msdnet_plan.MSDNetConfig`, `resnet8.ResNet8Config`,
`methods`.
"""

from __future__ import annotations

import dataclasses

from ms_ranas_jax.costs import linear_cost
from ms_ranas_jax.costs import width
from ms_ranas_jax.data import image_store
from ms_ranas_jax.data import picture_options
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.fields import FLAG
from ms_ranas_jax.fields import NUMBERS
from ms_ranas_jax.fields import TEXT
from ms_ranas_jax.fields import Rule
from ms_ranas_jax.fields import field
from ms_ranas_jax.fields import is_number
from ms_ranas_jax.fields import is_sequence_of
from ms_ranas_jax.fields import named
from ms_ranas_jax.fields import number
from ms_ranas_jax.fields import one_of
from ms_ranas_jax.fields import section
from ms_ranas_jax.fields import whole
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.runtime import parallel
from ms_ranas_jax.space import operations as ops
from ms_ranas_jax.space import protocol
from ms_ranas_jax.space.grid import GridConfig

STAGES = ('describe', 'search', 'train', 'evaluate', 'export', 'report')
# Those that need nothing but what is installed in any case.
DEFAULT_STAGES = ('describe', 'search', 'train', 'evaluate', 'report')
FORMATS = ONNX, TFLITE = 'onnx', 'tflite'
DTYPES = ('float32', 'bfloat16')
SELECTIONS = LAST, AREA = 'last', 'area'
DECAYS = LINEAR, COSINE = 'linear', 'cosine'
SCHEDULES = COSINE_SCHEDULE, STEP, ONE_CYCLE = 'cosine', 'step', 'one_cycle'
OPTIMIZERS = SGD, ADAMW = 'sgd', 'adamw'
CLASS_WEIGHTS = EQUAL, BALANCED = '', 'balanced'
FIGURES = ('figure4', 'figure5', 'figure6', 'figure9', 'figure10')
SIZES = PAPER, CPU = 'paper', 'cpu'

_IMAGES = ('search', 'train', 'evaluate')
_SEED = whole(0, 2**31 - 1)


def _is_size(value: object) -> bool:
  try:
    if isinstance(value, str):
      picture_options.parse_size(value)
      return True
  except UsageError:
    pass
  return False


_IMAGE_SIZE = Rule(
  _is_size,
  "'', or pixels such as '96' or '96x128' (height x width), at most "
  f'{picture_options.LARGEST_SIDE}',
)
_OF_PICTURES = Rule(
  picture_options.reads_pictures,
  f"'{picture_options.FOLDER}' or '{picture_options.TFDS}NAME'",
)
_SHARE = Rule(
  lambda v: is_number(v) and 0 <= v < 1, 'a number of at least 0 and below 1'
)
_BUDGET_RANGE = Rule(
  lambda v: NUMBERS.holds(v) and (len(v) == 0 or (len(v) == 2 and v[0] < v[1])),
  'empty, or two numbers of macs, the smaller first',
)


def _names_operation(name: object) -> bool:
  return isinstance(name, str) and (name in ops.OPERATIONS or ':' in name)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """Which images there are, and how they are augmented."""

  name: str = field(
    'digits',
    TEXT,
    'digits, cifar10, cifar100, npz, folder, tfds:NAME, or my_module:my_images',
  )
  dir: str = field(
    '', TEXT, "a local folder (npz: the file); '' is the default", free=True
  )
  train_images: int = field(
    0, whole(0), 'so many of them, always the same; 0 is all'
  )
  image_size: str = field(
    '',
    _IMAGE_SIZE,
    "what pictures are brought to, '96' or '96x128' (height x width); '' is "
    'the size that all of them have',
    unit='pixels',
    needs=('name', _OF_PICTURES),
  )
  test_fraction: float = field(
    picture_options.TEST_FRACTION,
    Rule(lambda v: _SHARE.holds(v) and v > 0, 'a number above 0 and below 1'),
    'of the pictures of every class, where there are no parts train and test',
    needs=('name', _OF_PICTURES),
  )
  unreadable: str = field(
    picture_options.REFUSE,
    one_of(*picture_options.UNREADABLE),
    'what happens to files that are no pictures',
    needs=('name', _OF_PICTURES),
  )
  resident_bytes: int = field(
    image_store.RESIDENT_BYTES,
    whole(0),
    'the most that training images may take in memory and on a device; more '
    'are decoded to a file and brought batch by batch',
    unit='bytes',
    free=True,
  )
  cache_dir: str = field(
    '',
    TEXT,
    "a local folder for such files; '' is ~/.cache/ms_ranas_jax",
    free=True,
  )
  holdout: int = field(
    200,
    whole(0),
    'training images kept for thresholds; 0 is none, and there are no '
    'thresholds',
    unit='images',
    stages=('train', 'evaluate'),
  )
  crop_padding: int = field(
    1,
    whole(0),
    'around an image before a crop',
    unit='pixels',
    stages=('search', 'train'),
  )
  flip: bool = field(
    False,
    FLAG,
    'mirror half of the training images',
    stages=('search', 'train'),
  )
  crop_scale: float = field(
    1.0,
    Rule(lambda v: is_number(v) and 0 < v <= 1, 'a number above 0, at most 1'),
    'smallest share of an image that a random resized crop keeps; 1 is off',
    stages=('search', 'train'),
  )
  colour_jitter: float = field(
    0.0,
    number(0, 1),
    'strength of random changes of brightness, contrast and saturation, and '
    'half of it of the hue; 0 is off',
    stages=('search', 'train'),
  )
  random_operations: int = field(
    0,
    whole(0),
    'number of RandAugment operations on an image; 0 is off',
    stages=('search', 'train'),
  )
  random_magnitude: float = field(
    9.0,
    number(0, 30),
    'magnitude of these operations, 0 to 30',
    stages=('search', 'train'),
    needs=('random_operations', None),
  )

  @property
  def picture_options(self) -> picture_options.Options:
    """How pictures are read."""
    return picture_options.Options(
      picture_options.parse_size(self.image_size),
      self.test_fraction,
      self.unreadable,
    )

  @property
  def storage(self) -> image_store.Storage:
    """Where images lie."""
    return image_store.Storage(self.resident_bytes, self.cache_dir)


@dataclasses.dataclass(frozen=True)
class OptimisationConfig:
  """What the search and the training have in common."""

  epochs: int = field(5, whole(1), 'passes over the images')
  batch_size: int = field(
    64, whole(1), 'of all devices together', unit='images'
  )
  cutout: int = field(
    0, whole(0), 'side of the masked square; 0 is off', unit='pixels'
  )
  learning_rate: float = field(
    0.025, number(0, above=True), 'of params, SGD, where it starts'
  )
  final_learning_rate: float = field(0.0, number(0), 'where the cosine ends')
  momentum: float = field(0.9, number(0, 1), 'of SGD')
  weight_decay: float = field(3e-4, number(0), 'L2 of params')
  clip: float = field(
    5.0, number(0), 'largest gradient norm of params; 0 is off'
  )
  exit_weights: tuple[float, ...] = field(
    (), NUMBERS, 'w_k of the loss; () is ones'
  )
  chunk_steps: int = field(20, whole(1), 'of a line of metrics', unit='steps')
  remat: bool = field(
    False, FLAG, 'take less memory and more time for a step', free=True
  )
  on_nonfinite: str = field(
    'stop',
    one_of(*parallel.NONFINITE_CHOICES),
    "a loss or gradient; or 'skip' the step",
  )


@dataclasses.dataclass(frozen=True)
class CostConfig:
  """The cost of the network that will be derived."""

  metric: str = field(
    'macs', one_of(*linear_cost.METRICS), 'what counts as cost'
  )
  exit: int = field(
    -1, whole(-(2**31)), 'up to this exit of config.train.network'
  )
  weight: float = field(
    0.0, number(0), 'in the loss, of cost / cost at uniform alphas'
  )
  target: float = field(
    0.0, number(0), 'cost to search for, instead; 0 is none'
  )
  tolerance: float = field(
    0.05,
    number(0, 1, above=True),
    'share that the result may be off by',
    needs=('target', None),
  )
  temperature: float = field(
    0.2, number(0, above=True), 'of the expected cost; towards 0 exact'
  )


@dataclasses.dataclass(frozen=True)
class GuardsConfig:
  """Against cells of skip connections."""

  max_skips: int = field(-1, whole(-1), 'the most in a derived cell; -1 is off')
  auxiliary_skip: float = field(0.0, number(0), 'its factor at first; 0 is off')
  auxiliary_decay: str = field(
    'linear',
    one_of(*DECAYS),
    'how it goes to 0',
    needs=('auxiliary_skip', None),
  )
  partial_channels: int = field(
    1, whole(1), '1 / so many channels are mixed; 1 is off'
  )
  early_stop: bool = field(False, FLAG, 'when the loss gets sharp in alphas')
  early_stop_batches: int = field(
    1, whole(1), 'that the sharpness is of', needs=('early_stop', None)
  )
  early_stop_window: int = field(
    5, whole(1), 'of an average', unit='epochs', needs=('early_stop', None)
  )
  early_stop_factor: float = field(
    1.3, number(1), 'growth of the average', needs=('early_stop', None)
  )


@dataclasses.dataclass(frozen=True)
class CandidatesConfig:
  """The genotypes that a choice by area chooses among."""

  last_epochs: int = field(
    3, whole(0), 'genotypes of so many, every seed', unit='epochs'
  )
  random: int = field(8, whole(0), 'drawn from the whole space')
  images: int = field(
    0, whole(0), 'of the validation half that judge; 0 is all', unit='images'
  )
  budget_range: tuple[float, ...] = field(
    (),
    _BUDGET_RANGE,
    "() is from nothing to the last exit's cost of the dearest genotype",
    unit='macs',
  )


@dataclasses.dataclass(frozen=True)
class SearchConfig(OptimisationConfig):
  """The search for cells; a method has a subclass with its own fields."""

  method: str = field(
    'bilevel',
    named('bilevel', 'random', 'ghn'),
    'differentiable (DARTS), random with shared params, with a graph '
    'hypernetwork, or my_module:MyMethod',
  )
  primitives: tuple[str, ...] = field(
    tuple(ops.PRIMITIVES),
    Rule(
      lambda v: (
        is_sequence_of(_names_operation)(v)
        and len(v) > 0
        and len(set(v)) == len(v)
      ),
      'a tuple of names of operations, each of the package or '
      'my_module:my_operation, none of them twice',
    ),
    'the choices on every edge; my_module:my_operation is one of your own',
  )
  num_seeds: int = field(
    1, whole(1), 'searches in one run, of seed, seed + 1, ...'
  )
  seeds_at_once: int = field(
    1, whole(1), 'so many of them vectorised', free=True
  )
  train_fraction: float = field(
    0.5,
    Rule(lambda v: is_number(v) and 0 < v < 1, 'a number between 0 and 1'),
    'of the images, that train params; the rest trains alphas',
  )
  final_learning_rate: float = field(0.001, number(0), 'where the cosine ends')
  cost: CostConfig = section(
    CostConfig, 'the cost of the network that will be derived'
  )
  guards: GuardsConfig = section(GuardsConfig, 'against cells of skips')
  select: str = field(
    'last',
    one_of(*SELECTIONS),
    "the genotype of the last alphas; 'area' is the best candidate by the area "
    'under its accuracy-cost curve, as methods without alphas always take it',
  )
  candidates: CandidatesConfig = section(
    CandidatesConfig, 'what a choice by area chooses among'
  )
  network: GridConfig = section(GridConfig, 'the network of the search')


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
  """What the last exit may cost; 0 is no limit."""

  macs: float = field(0.0, number(0), 'multiply-adds', unit='macs')
  params: float = field(0.0, number(0), 'all that have to be stored')
  params_deployed: float = field(
    0.0, number(0), 'the same with batch normalisation folded'
  )
  bytes: float = field(
    0.0, number(0), 'params and the peak of activations', unit='bytes'
  )
  dtype: str = field(
    width.FLOAT32,
    one_of(*width.BYTES_OF),
    'of the params and activations that bytes counts',
    needs=('bytes', None),
  )

  @property
  def limits(self) -> dict[str, float]:
    """Limit of `width.LIMITS` -> the most there may be, where it is set."""
    values = {name: getattr(self, name) for name in width.LIMITS}
    return {name: value for name, value in values.items() if value}


@dataclasses.dataclass(frozen=True)
class TrainConfig(OptimisationConfig):
  """The training of a network of the cells, or of another family."""

  genotype: str = field(
    '',
    TEXT,
    "'' is the one found in this work directory; or NASNet, AmoebaNet, "
    'DARTS_V1, DARTS_V2; or the path of a genotype file, also of a text that '
    'DARTS prints',
  )
  start_from: str = field(
    '',
    TEXT,
    'a model folder, the work directory of one, or a network of the package, '
    'with whose params the training starts; classifiers of other classes are '
    "drawn; '' is random params",
  )
  freeze: tuple[str, ...] = field(
    (),
    Rule(
      is_sequence_of(lambda name: isinstance(name, str) and bool(name)),
      "a tuple of texts, such as ('stem',)",
    ),
    'what the names of modules begin with whose params stay as they are',
    needs=('start_from', None),
  )
  epochs: int = field(10, whole(1), 'passes over the training images')
  patience: int = field(
    0,
    whole(0),
    'without a better held-out accuracy, the mean of all exits, after which '
    'the training ends; the best epoch is then what is shipped; 0 is off',
    unit='epochs',
  )
  drop_path: float = field(
    0.0,
    _SHARE,
    'probability to drop an operation, reached at the last epoch',
  )
  final_learning_rate: float = field(
    0.0, number(0), 'where the cosine ends', needs=('schedule', 'cosine')
  )
  schedule: str = field(
    'cosine',
    one_of(*SCHEDULES),
    "by epoch; or 'step': times 0.1 at a half and three quarters; or "
    "'one_cycle': up to learning_rate and down again, by step",
  )
  warmup_epochs: float = field(
    0.0,
    number(0),
    "in which the rate rises; of 'one_cycle' 0 is 30 % of all",
    unit='epochs',
  )
  optimizer: str = field('sgd', one_of(*OPTIMIZERS), 'of params')
  momentum: float = field(0.9, number(0, 1), 'of SGD', needs=('optimizer', SGD))
  nesterov: bool = field(
    False, FLAG, "whether momentum is Nesterov's", needs=('optimizer', SGD)
  )
  label_smoothing: float = field(
    0.0, _SHARE, 'share of a label that all classes have together'
  )
  mixup: float = field(
    0.0,
    number(0),
    'a of the Beta(a, a) that shares of two mixed images are drawn from; 0 is '
    'off',
  )
  distillation: float = field(
    0.0,
    number(0, 1),
    "share of an exit's loss that compares it with the last exit's answer",
  )
  distillation_temperature: float = field(
    1.0,
    number(0, above=True),
    'that both answers are divided by',
    needs=('distillation', None),
  )
  gradient_equilibrium: bool = field(
    False, FLAG, 'all exits count the same for what is below them'
  )
  trunk_epochs: float = field(
    0.0, number(0), 'in which the last exit alone is trained', unit='epochs'
  )
  ema_decay: float = field(
    0.0,
    _SHARE,
    'of an average of all variables, which is what is judged and shipped; 0 is '
    'off',
  )
  class_weights: str = field(
    '',
    one_of(*CLASS_WEIGHTS),
    "of images in the loss; '' is equal, 'balanced' is images / (classes * "
    'images of the class), of the images trained on',
  )
  sampling: str = field(
    '',
    one_of(*CLASS_WEIGHTS),
    "'' goes over every image once an epoch; 'balanced' draws images of all "
    'classes equally often',
  )
  accumulate: int = field(
    1,
    whole(1),
    'parts of a batch of a device that are computed one after another, which '
    'takes less memory; batch normalisation sees one part',
  )
  network: protocol.NetworkConfig = section(
    protocol.NetworkConfig, 'the network to train'
  )
  budget: BudgetConfig = section(BudgetConfig, 'what the last exit may cost')


@dataclasses.dataclass(frozen=True)
class TestImagesConfig:
  """Other test images to judge, as in `dataset`; '' are those of `dataset`."""

  name: str = field('', TEXT, 'as dataset.name', free=True)
  dir: str = field('', TEXT, 'as dataset.dir', free=True)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """How what was trained is judged."""

  batch_size: int = field(250, whole(1), 'per call', unit='images', free=True)
  budget_range: tuple[float, ...] = field(
    (),
    _BUDGET_RANGE,
    "of the expected accuracy; () is from nothing to the last exit's cost. A "
    'budget below the first exit earns chance',
    unit='macs',
  )
  model: str = field(
    '',
    TEXT,
    'a model folder, or the work directory of one, that is judged in place of '
    'what was trained in this one; it is only read',
    free=True,
  )
  dataset: TestImagesConfig = section(
    TestImagesConfig, 'other test images to judge'
  )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """The files for other runtimes."""

  formats: tuple[str, ...] = field(
    ('onnx',),
    Rule(
      lambda v: (
        is_sequence_of(lambda name: name in FORMATS)(v)
        and ONNX in v
        and len(set(v)) == len(v)
      ),
      "('onnx',) or ('onnx', 'tflite')",
    ),
    'of ONNX Runtime, and of LiteRT',
    free=True,
  )
  int8: bool = field(True, FLAG, 'also in 8 bits', free=True)
  calibration_images: int = field(
    2000,
    whole(1),
    'held-out images that ranges of 8 bits are taken from, at most',
    unit='images',
    free=True,
    needs=('int8', True),
  )
  calibration_q: float = field(
    1.0,
    number(0, above=True),
    'thresholds of the evaluation that say which of them reach a step',
    free=True,
    needs=('int8', True),
  )
  test_vectors: int = field(
    16,
    whole(1),
    'held-out images in the folder, with their logits',
    unit='images',
    free=True,
  )
  latency: bool = field(
    True, FLAG, 'measure milliseconds on this machine', free=True
  )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """A figure of the paper, of many runs; see configs/study.py."""

  figure: str = field(
    '', one_of('', *FIGURES), "of the paper; '' is one run, no study"
  )
  size: str = field(
    'paper', one_of(*SIZES), 'of its networks', needs=('figure', None)
  )
  seeds: tuple[int, ...] = field(
    (0,),
    Rule(
      lambda v: (
        is_sequence_of(_SEED.holds)(v) and len(v) > 0 and len(set(v)) == len(v)
      ),
      f'a tuple of different seeds, each {_SEED.expected}',
    ),
    'of the runs, in place of `seed`; may grow later',
    free=True,
  )
  cutout: int = field(
    16,
    whole(1),
    'side of the square in runs with cutout',
    unit='pixels',
    needs=('figure', None),
  )
  published: bool = field(
    False,
    FLAG,
    'show published numbers beside the measured',
    free=True,
    needs=('figure', None),
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """All that a run of the program is asked for."""

  stages: tuple[str, ...] = field(
    DEFAULT_STAGES,
    Rule(
      lambda v: (
        isinstance(v, tuple | list) and all(stage in STAGES for stage in v)
      ),
      f'a tuple of any of {", ".join(STAGES)}',
    ),
    'what to do, in this order',
    free=True,
  )
  seed: int = field(0, _SEED, 'of everything random', stages=_IMAGES)
  num_devices: int = field(
    0, whole(0), 'devices of all processes; 0 is all', free=True
  )
  dtype: str = field(
    'float32', one_of(*DTYPES), 'of the computation', stages=_IMAGES
  )
  lowering: str = field(
    'auto', one_of(*lowering.CHOICES), 'of convolutions and pools', free=True
  )
  checkpoint_seconds: float = field(
    300.0,
    number(0),
    'between checkpoints, besides after every epoch; 0 is never',
    unit='s',
    free=True,
  )
  dataset: DatasetConfig = section(DatasetConfig, 'the images', _IMAGES)
  search: SearchConfig = section(
    SearchConfig, 'the search for cells', ('search',)
  )
  train: TrainConfig = section(TrainConfig, 'the training', ('train',))
  evaluate: EvaluateConfig = section(
    EvaluateConfig, 'how it is judged', ('evaluate',)
  )
  export: ExportConfig = section(
    ExportConfig, 'the files for other runtimes', ('export',)
  )
  study: StudyConfig = section(
    StudyConfig, 'a figure of the paper, of many runs', ()
  )

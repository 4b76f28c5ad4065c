"""Every field of a config, with its default: a small run on digits.

The other configs start from this one. A field can be set on the command line:
--config.search.epochs=10.
"""

from ml_collections import ConfigDict
from ml_collections import FieldReference


def _network() -> ConfigDict:
  return ConfigDict(
    {
      'channels': 16,  # initial channels of the finest scale
      'layers': 5,  # cells in a row; reductions at a third and two thirds
      'nodes': 2,  # nodes per cell
      'scales': 2,  # 1 is the DARTS network, the paper has up to 3
      'scale_growth': 2,  # channels of a scale over those of the finer one
      # 'all_but_first', 'last', or a tuple of layers: of no one type.
      'exits': FieldReference('all_but_first', field_type=object),
    }
  )


def _train_network() -> ConfigDict:
  network = _network()
  # Or 'auto': the widest in `train.budget`; so of no one type.
  network.channels = FieldReference(16, field_type=object)
  network.update(
    {
      # 'grid': cells of a genotype, by the fields above; or 'msdnet', by
      # `channels`, `scales` and the fields below.
      'family': 'grid',
      'blocks': 3,  # of layers; an exit stands after each
      'base': 2,  # layers of the first block
      'step': 1,  # layers of each other block, or what they grow by
      'step_mode': 'even',  # 'lin_grow': block i has step * i + 1 layers
      'growth': 6,  # new channels of a layer at the finest scale
      'growth_factors': (),  # of channels, one per scale; () is 1, 2, 4, ...
      # 1x1 over 3x3 convolution, one per scale; 0 is no 1x1 convolution, () is
      # the growth factors.
      'bottleneck_factors': (),
      'prune': 'max',  # how the finest scales end; or 'min'
      'stem': 'cifar',  # 3x3; 'imagenet': 7x7 of stride 2, max pool, wide heads
    }
  )
  return network


def get_config() -> ConfigDict:
  """Returns the default config, locked."""
  config = ConfigDict()
  # What to do, in this order: describe, search, train, evaluate, report.
  config.stages = ('describe', 'search', 'train', 'evaluate', 'report')
  config.seed = 0  # of everything random
  config.num_devices = 0  # devices of all processes; 0 is all
  config.dtype = 'float32'  # of the computation; or 'bfloat16'
  config.lowering = 'auto'  # of convolutions, pools: 'taps', 'fused', 'conv'
  config.checkpoint_seconds = 300.0  # besides after every epoch; 0 is never

  config.dataset = ConfigDict()
  config.dataset.name = 'digits'  # digits, cifar10, cifar100, npz
  config.dataset.dir = ''  # a local folder (npz: the file); '' is the default
  config.dataset.train_images = 0  # so many of them, always the same; 0 is all
  config.dataset.holdout = 200  # training images kept for thresholds
  config.dataset.crop_padding = 1  # pixels around an image before a crop
  config.dataset.flip = False  # mirror half of the training images

  config.search = ConfigDict()
  # 1, or 2: through a lookahead of the params; 0 is random search.
  config.search.order = 1
  config.search.mixed_derivative = (
    'exact'  # of order 2; 'difference' is DARTS's
  )
  config.search.num_seeds = 1  # searches in one run, of seed, seed + 1, ...
  config.search.seeds_at_once = 1  # so many of them vectorised
  config.search.epochs = 5  # passes over the half that trains params
  config.search.batch_size = 64  # of all devices together, for each half
  config.search.train_fraction = 0.5  # of the images; the rest trains alphas
  config.search.cutout = 0  # side of the masked square, pixels; 0 is off
  config.search.learning_rate = 0.025  # of params, SGD, cosine by epoch
  config.search.final_learning_rate = 0.001  # where that cosine ends
  config.search.momentum = 0.9  # of params
  config.search.weight_decay = 3e-4  # L2 of params
  config.search.clip = 5.0  # largest gradient norm of params; 0 is off
  config.search.alphas_learning_rate = 3e-4  # Adam, constant
  config.search.alphas_weight_decay = 1e-3  # L2 added to the gradient
  config.search.cost = ConfigDict()  # of the network that will be derived
  # macs, flops_msdnet, params, weight_bytes, peak_activation_bytes
  config.search.cost.metric = 'macs'
  config.search.cost.exit = -1  # up to this exit of config.train.network
  config.search.cost.weight = (
    0.0  # in the loss, of cost / cost at uniform alphas
  )
  config.search.cost.target = 0.0  # cost to search for, instead; 0 is none
  config.search.cost.tolerance = 0.05  # share that the result may be off by
  config.search.cost.temperature = 0.2  # of the expected cost; towards 0 exact
  config.search.guards = ConfigDict()  # against cells of skip connections
  config.search.guards.max_skips = -1  # the most in a derived cell; -1 is off
  config.search.guards.auxiliary_skip = 0.0  # its factor at first; 0 is off
  config.search.guards.auxiliary_decay = 'linear'  # to 0; or 'cosine'
  config.search.guards.partial_channels = 1  # 1 / so many are mixed; 1 is off
  config.search.guards.early_stop = False  # when the loss gets sharp in alphas
  config.search.guards.early_stop_batches = 1  # that the sharpness is of
  config.search.guards.early_stop_window = 5  # epochs of an average
  config.search.guards.early_stop_factor = 1.3  # growth of the average
  # The genotype: 'last', of the last alphas; or 'area', the best candidate by
  # the area under its accuracy-cost curve. Random search takes 'area' always.
  config.search.select = 'last'
  config.search.candidates = ConfigDict()
  config.search.candidates.last_epochs = 3  # genotypes of so many, every seed
  config.search.candidates.random = 8  # drawn from the whole space
  config.search.candidates.images = 0  # of the validation half; 0 is all
  # macs; () is from nothing to the last exit's cost of the dearest genotype
  config.search.candidates.budget_range = ()
  config.search.exit_weights = ()  # w_k of the loss; () is ones
  config.search.chunk_steps = 20  # steps of a line of metrics
  config.search.on_nonfinite = 'stop'  # a loss or gradient; or 'skip' the step
  config.search.remat = False  # take less memory and more time for a step
  config.search.network = _network()

  config.train = ConfigDict()
  # '' is the genotype found in this work directory; or NASNet, AmoebaNet,
  # DARTS_V1, DARTS_V2; or the path of a genotype file.
  config.train.genotype = ''
  config.train.epochs = 10  # passes over the training images
  config.train.batch_size = 64  # of all devices together
  config.train.cutout = 0  # side of the masked square, pixels; 0 is off
  config.train.drop_path = 0.0  # probability, reached at the last epoch
  config.train.learning_rate = 0.025  # SGD, where it starts
  # 'cosine' by epoch, or 'step': times 0.1 at a half and three quarters.
  config.train.schedule = 'cosine'
  config.train.final_learning_rate = 0.0  # where the cosine ends
  config.train.momentum = 0.9  # of SGD
  config.train.weight_decay = 3e-4  # L2
  config.train.clip = 5.0  # largest gradient norm; 0 is off
  config.train.exit_weights = ()  # w_k of the loss; () is ones
  config.train.chunk_steps = 20  # steps of a line of metrics
  config.train.on_nonfinite = 'stop'  # a loss or gradient; or 'skip' the step
  config.train.remat = False  # take less memory and more time for a step
  config.train.network = _train_network()
  config.train.budget = ConfigDict()  # of the last exit; 0 is no limit
  config.train.budget.macs = 0.0  # multiply-adds
  config.train.budget.params = 0.0  # all that have to be stored
  config.train.budget.bytes = 0.0  # float32 params and the peak of activations

  config.evaluate = ConfigDict()
  config.evaluate.batch_size = 250  # images per call
  # Budget range of the expected accuracy, macs; () is from nothing to the last
  # exit's cost. A budget below the first exit earns chance.
  config.evaluate.budget_range = ()
  # Other test images to judge, as in `dataset`; '' are those of `dataset`.
  config.evaluate.dataset = ConfigDict()
  config.evaluate.dataset.name = ''  # digits, cifar10, cifar100, npz
  config.evaluate.dataset.dir = ''  # a local folder (npz: the file)

  # A figure of the paper, of many runs; see configs/study.py.
  config.study = ConfigDict()
  config.study.figure = ''  # figure4, 5, 6, 9, 10; '' is one run, no study
  config.study.size = 'paper'  # of its networks; or 'cpu'
  config.study.seeds = (0,)  # of the runs, in place of `seed`; may grow later
  config.study.cutout = 16  # side of the square in runs with cutout, pixels
  config.study.published = False  # show published numbers beside the measured
  return config.lock()


def get_msdnet_config(dataset: str) -> ConfigDict:
  """Returns MSDNet with its own recipe on CIFAR-10 or CIFAR-100, locked.

  Eleven blocks and sixteen channels, the size that the paper compares with.

  Args:
    dataset: 'cifar10' or 'cifar100'.
  """
  config = get_config()
  config.stages = ('describe', 'train', 'evaluate', 'report')
  config.dataset.name = dataset
  config.dataset.holdout = 5000
  config.dataset.crop_padding = 4
  config.dataset.flip = True

  config.train.network.update(
    family='msdnet',
    channels=16,
    scales=3,
    blocks=11,
    base=4,
    step=2,
    step_mode='even',
    growth=6,
    growth_factors=(1, 2, 4),
    bottleneck_factors=(1, 2, 4),
    prune='max',
  )
  config.train.epochs = 300
  config.train.batch_size = 64
  config.train.learning_rate = 0.1
  config.train.schedule = 'step'
  config.train.weight_decay = 1e-4
  config.train.clip = 0.0
  return config


def get_paper_config(dataset: str) -> ConfigDict:
  """Returns the paper's settings for CIFAR-10 or CIFAR-100, locked.

  Search with exits on every layer but the first and with cutout (sections 4.1
  and 4.4), then train what it found, two nodes, three scales, seven layers,
  with exits and cutout (section 4.2); both by the recipe of DARTS.

  Args:
    dataset: 'cifar10' or 'cifar100'.
  """
  config = get_config()
  config.dataset.name = dataset
  config.dataset.holdout = 5000
  config.dataset.crop_padding = 4
  config.dataset.flip = True

  # Five layers and sixteen channels are the paper's size of searches.
  config.search.network.update(channels=16, layers=5, nodes=2, scales=3)
  config.search.order = 2
  config.search.epochs = 50
  config.search.batch_size = 64
  config.search.cutout = 16

  config.train.network.update(channels=16, layers=7, nodes=2, scales=3)
  config.train.epochs = 600
  config.train.batch_size = 96
  config.train.cutout = 16
  config.train.drop_path = 0.2
  return config

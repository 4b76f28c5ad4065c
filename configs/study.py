"""A figure of the paper: all of its runs, one table, one picture.

  ./launch/local.sh --config=configs/study.py:figure4.cpu \
    --config.dataset.dir=DIR

The argument is figure4, figure5, figure6, figure9 (CIFAR-10) or figure10
(CIFAR-100), in the paper's size, or with `.cpu` in one that two CPU cores end
within 90 minutes. Fields reach every run, `--config.train.epochs=1`, apart from
those that the figure is about. Started several times at once in one work
directory, by default runs/study/ARGUMENT, the processes share the runs. Started
again with more `--config.study.seeds`, it adds theirs.

Measured on a JPEG copy of CIFAR-10, seeds 0 and 1, on cores of an AMD EPYC:
figure4.cpu, two processes, 63 minutes, and figure9.cpu, of which the time as a
whole is not measured; docs/paper_figures.md has their tables. The others are
not yet measured.
"""

from ml_collections import ConfigDict

from ms_ranas_jax import default_config


def get_config(argument: str = 'FIGURE') -> ConfigDict:
  """Returns the config of a study, locked.

  Args:
    argument: FIGURE or FIGURE.SIZE; what is not known is refused later, as any
      value of a field is.
  """
  figure, _, size = argument.partition('.')
  dataset = 'cifar100' if figure == 'figure10' else 'cifar10'
  config = default_config.get_paper_config(dataset)
  config.stages = ('search', 'train', 'evaluate')
  config.study.figure = figure
  config.study.size = size or 'paper'
  config.study.seeds = (0, 1, 2)
  config.study.published = config.study.size == 'paper'
  if figure in ('figure9', 'figure10'):
    # Where the params of the MSDNet compared with are about those expected.
    config.train.network.channels = 20
    config.train.drop_path = 0.0  # MSDNet has none
  else:
    # Section 4.1: five layers, 16 channels; section 3.3: four nodes.
    for section in (config.search, config.train):
      section.network.update(channels=16, layers=5, nodes=4)
  if config.study.size == 'cpu':
    _shrink(config)
  return config


def _shrink(config: ConfigDict) -> None:
  """Makes runs of minutes on two CPU cores."""
  config.study.seeds = (0, 1)
  config.dataset.train_images = 6000
  config.dataset.holdout = 600
  config.search.order = 1
  config.search.epochs = 3
  # The paper's 3e-4 is for fifty epochs; a few need larger steps.
  config.search.alphas_learning_rate = 3e-3
  config.search.network.update(channels=4, nodes=2)
  config.train.epochs = 6
  config.train.batch_size = 64
  config.train.cutout = 0
  config.train.learning_rate = 0.05
  config.train.drop_path = 0.0
  config.train.network.update(channels=8, nodes=2)
  if config.study.figure in ('figure9', 'figure10'):
    config.train.epochs = 8
    config.train.network.channels = 7  # as 20 above

"""The command that takes weights of others, beside their own code's answers.

Tensors and images are drawn by name (`benchmarks/drawn.py`), and the logits are
those of the public code with them, as

  python benchmarks/converted.py --only tiny --darts DIR --msdnet DIR \
    --reference-python PYTHON --json FILE

wrote them. A name that is not theirs, or a tensor in another place, gives other
ones: half of any tensor more changes them by 6e-5 of the largest at least.
"""

import re

import numpy as np
from PIL import Image
import pytest
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax import convert
from ms_ranas_jax import predict
from ms_ranas_jax.baselines import darts_text
from ms_ranas_jax.baselines import darts_weights
from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.baselines import msdnet_weights
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib

# All that DARTS computes, with two edges of one kind in places.
_GENOTYPE = """Genotype(
  normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1),
          ('sep_conv_5x5', 0), ('sep_conv_3x3', 0),
          ('skip_connect', 1), ('avg_pool_3x3', 3)], normal_concat=[2, 4],
  reduce=[('skip_connect', 0), ('skip_connect', 0),
          ('conv_7x1_1x7', 1), ('max_pool_3x3', 0),
          ('sep_conv_7x7', 1), ('dil_conv_3x3', 2)], reduce_concat=[3, 4])
"""
# Two images, ten classes.
_DARTS = [
  [
    0.604081,
    -1.478015,
    -0.629647,
    -3.413625,
    -1.690670,
    1.670028,
    0.029562,
    -0.731316,
    0.004963,
    1.674899,
  ],
  [
    0.071734,
    -2.154027,
    -0.025020,
    -4.874892,
    -0.581046,
    0.968090,
    0.327802,
    -1.961478,
    -1.863068,
    1.283210,
  ],
]
# Three exits of the first of two images.
_MSDNET = [
  [
    0.985692,
    0.555160,
    -0.393277,
    0.010938,
    -0.399068,
    2.749155,
    -1.501018,
    0.871118,
    -1.333266,
    1.274396,
  ],
  [
    -0.870011,
    -1.094082,
    -0.710109,
    -0.168768,
    0.374915,
    1.741045,
    0.638371,
    0.879158,
    -0.491784,
    0.480925,
  ],
  [
    -0.204433,
    0.335784,
    -0.517704,
    0.914101,
    0.013914,
    2.694089,
    -1.628190,
    2.283236,
    -0.340421,
    -4.180718,
  ],
]
_MSDNET_SIZES = {
  'channels': 4,
  'blocks': 3,
  'base': 1,
  'step': 1,
  'step_mode': 'lin_grow',
  'growth': 2,
  'scales': 2,
}
_CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
_UNUSED = ('auxiliary_head.features.2.weight', 'stem.1.num_batches_tracked')


@pytest.fixture(scope='module')
def darts_state(draw_state):
  """The tensors that the network has."""
  network = network_lib.derived_network(
    grid.NetworkSpec(2, 3, 3, exits=grid.LAST, image_shape=(8, 8, 3)),
    darts_text.parse(_GENOTYPE),
  )
  return draw_state(network, darts_weights.places(network))


@pytest.fixture(scope='module')
def msdnet_state(draw_state):
  """The tensors that the network has."""
  network = msdnet.build_msdnet(
    msdnet_plan.MSDNetSpec(**_MSDNET_SIZES, image_shape=(16, 16, 3))
  )
  return draw_state(network, msdnet_weights.places(network.plan))


@pytest.fixture(scope='module')
def place(tmp_path_factory, darts_state):
  """A folder with DARTS' weights, and the flags that are right for them."""
  folder = tmp_path_factory.mktemp('place')
  (folder / 'genotype.txt').write_text(_GENOTYPE)
  beside = {name: np.zeros((1,), np.int64) for name in _UNUSED}
  safetensors_numpy.save_file(darts_state | beside, folder / 'w.safetensors')
  more = {'stem.2.weight': np.zeros(6, np.float32)}
  np.savez(folder / 'more.npz', **darts_state, **more)
  return folder


def _darts(folder, **flags):
  """Returns the arguments; None leaves one out."""
  given = {
    'source': 'darts',
    'weights': folder / 'w.safetensors',
    'output': folder / 'model',
    'genotype': folder / 'genotype.txt',
    'layers': 3,
    'channels': 2,
    'image_size': 8,
  }
  return _arguments(given | flags)


def _arguments(flags):
  return [f'--{n}={value}' for n, value in flags.items() if value is not None]


@pytest.fixture(scope='module')
def converted(place):
  """Where the model folder is."""
  assert convert.main(_darts(place, output=place / 'converted')) == 0
  return place / 'converted'


def _is_close(found, expected):
  error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
  assert error < 1e-5


def test_darts_answers_as_its_own_code(converted, drawn):
  model = model_lib.load_model(converted)
  _is_close(model.compiled_steps.logits(drawn.images(2, 8), 2), [_DARTS])
  assert model.class_names == tuple(_CIFAR10)
  assert model.genotype == darts_text.parse(_GENOTYPE)
  assert model.description.mean == (0.49139968, 0.48215827, 0.44653124)
  assert model.description.std == (0.24703233, 0.24348505, 0.26158768)


def test_msdnet_answers_as_its_own_code(tmp_path, capsys, drawn, msdnet_state):
  # As DataParallel names them.
  np.savez(
    tmp_path / 'w.npz',
    **{f'module.{name}': array for name, array in msdnet_state.items()},
  )
  flags = _MSDNET_SIZES | {'image_size': 16, 'output': tmp_path / 'model'}
  flags |= {'source': 'msdnet', 'weights': tmp_path / 'w.npz'}
  assert convert.main(_arguments(flags)) == 0
  assert capsys.readouterr().out == (
    f'{tmp_path}/model: {len(msdnet_state)} tensors of {tmp_path}/w.npz, '
    '510,218 params, 3 exits\n'
  )
  model = model_lib.load_model(tmp_path / 'model')
  found = model.compiled_steps.logits(drawn.images(2, 16), 2)
  _is_close(found[:, 0], _MSDNET)
  assert model.description.mean == (0.4914, 0.4824, 0.4467)


def test_the_folder_classifies_pictures(converted, tmp_path, capsys, drawn):
  Image.fromarray(drawn.images(2, 8)[0]).save(tmp_path / 'a.png')
  status = predict.main([f'--model={converted}', str(tmp_path / 'a.png')])
  assert status == 0
  assert _CIFAR10[np.argmax(_DARTS[0])] in capsys.readouterr().out


def test_what_is_not_used_is_listed(place, tmp_path, capsys, darts_state):
  flags = {'output': tmp_path / 'model', 'mean': '0.1,0.2,0.3'}
  flags |= {'std': '1,2,3', 'classes': 'a,b,c,d,e,f,g,h,i,a cat'}
  assert convert.main(_darts(place, **flags)) == 0
  *unused, last = capsys.readouterr().out.splitlines()
  assert unused == [f'not used: {name}' for name in _UNUSED]
  assert last == (
    f'{tmp_path}/model: {len(darts_state)} tensors of {place}/w.safetensors, '
    '3,786 params, 1 exit'
  )
  model = model_lib.load_model(tmp_path / 'model')
  assert model.class_names == (*'abcdefghi', 'a cat')
  assert model.description.mean == (0.1, 0.2, 0.3)
  assert model.description.std == (1, 2, 3)


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({'weights': 'none.npz'}, 'none.npz is no file; correct the path'),
    ({'weights': 'weights.pt'}, 'weights.pt is a pickle of PyTorch'),
    ({'layers': 4}, 'w.safetensors: there is no cells.3.preprocess0'),
    ({'layers': 2}, ', but cells.0._ops.0.op.1.weight and '),
    (
      {'weights': '{place}/more.npz'},
      'more.npz: there is stem.2.weight, which a network of these sizes has '
      'not; give the --genotype',
    ),
    (
      {'channels': 4},
      'w.safetensors: stem.0.weight is (6, 3, 3, 3), and (12, 3, 3, 3) in a '
      'network of these sizes; give the --genotype, --layers, --channels that '
      'it was trained with.',
    ),
    ({'classes': 7}, 'classifier.weight is (10, 16), and (7, 16)'),
    ({'classes': 0}, '--classes = 0: give a whole number of at least 1'),
    ({'channels': 0}, '--channels = 0: give a whole number of at least 1'),
    ({'genotype': 'DARTS_V3'}, 'genotype "DARTS_V3" is neither a published'),
    ({'genotype': 'AmoebaNet'}, 'w.safetensors: there is no cells.0._ops.'),
    ({'genotype': '{place}/bad.txt'}, 'uses the operation "none", which'),
    ({'blocks': 7}, '--blocks is no size of --source=darts; leave it out'),
    ({'std': '1,2'}, 'std = (1.0, 2.0): give a number for each of 3 channels'),
    ({'output': '{place}/converted'}, 'holds a model already; name another'),
    (
      {'source': 'msdnet', 'genotype': None, 'layers': None},
      '--source=msdnet needs --blocks, --base, --step; give what',
    ),
    (
      _MSDNET_SIZES
      | {'source': 'msdnet', 'genotype': None, 'layers': None, 'scales': 9},
      '--scales = 9: scale 4 of a 8x8 image would fall below 1x1',
    ),
  ],
)
def test_what_does_not_fit_is_refused(flags, said, place, converted, capsys):
  assert converted.is_dir()
  text = _GENOTYPE.replace('avg_pool_3x3', 'none')
  (place / 'bad.txt').write_text(text)
  flags = {
    name: value.format(place=place) if isinstance(value, str) else value
    for name, value in flags.items()
  }
  assert convert.main(_darts(place, **flags)) == 2
  out, err = capsys.readouterr()
  assert out == '' and said in err and err.startswith('ms_ranas_jax: ')
  assert err.count('\n') == 1
  assert not (place / 'model').exists()


def test_help_says_what_there_is(capsys):
  with pytest.raises(SystemExit) as end:
    convert.main(['--help'])
  assert end.value.code == 0
  out = capsys.readouterr().out
  for source in convert.SOURCES.values():
    assert all(f'--{name} ' in out for name in source.sizes)


@pytest.mark.parametrize('flag', ['--mean=a,b,c', '--source=other'])
def test_flags_that_are_none_are_refused(place, flag, capsys):
  with pytest.raises(SystemExit) as end:
    convert.main([*_darts(place), flag])
  assert end.value.code == 2
  err = capsys.readouterr().err
  assert re.search('give numbers with commas|invalid choice', err)

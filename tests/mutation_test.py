"""Mutated input: every file and config is read rightly or refused in words.

Whatever bytes there are, the only exception is `UsageError`, nothing in them is
executed, and nothing on the disk is lost. The cases are drawn anew from the
same seed every time.
"""

import hashlib
import json
import pathlib
import pickle
import shutil

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import fields
from ms_ranas_jax import settings
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.baselines import darts_text
from ms_ranas_jax.data import cifar_files
from ms_ranas_jax.data import npz_file
from ms_ranas_jax.data import plain_pickle
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.model import description
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.model import tensors
from ms_ranas_jax.runtime import checkpoint
from ms_ranas_jax.runtime import files
from ms_ranas_jax.runtime import metrics
from ms_ranas_jax.space import genotype
from ms_ranas_jax.space import grid
from ms_ranas_jax.space import network as network_lib
from ms_ranas_jax.training import initialization


def _cases(count):
  return hypothesis.settings(
    max_examples=count,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


# How a file is changed: where (a share of its length), what with, or cut off.
_CHANGES = st.lists(
  st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.binary(min_size=1, max_size=8), st.none()),
  ),
  min_size=1,
  max_size=3,
)


def _changed(data, changes):
  for place, new in changes:
    at = int(place * len(data))
    data = data[:at] if new is None else data[:at] + new + data[at + len(new) :]
  return data


def _in_words(error):
  text = str(error)
  assert text and 'Traceback' not in text
  return text


# What JSON can hold, and then some.
_JSON = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(['sep_conv_3x3', 'skip_connect', 'none', '../x']),
  ),
  lambda children: st.one_of(
    st.lists(children, max_size=4),
    st.dictionaries(st.text(max_size=8), children, max_size=4),
  ),
  max_leaves=12,
)


@_cases(400)
@hypothesis.given(_CHANGES)
def test_genotype_text(changes):
  text = _changed(cells.DARTS_V2.to_json().encode(), changes)
  try:
    found = genotype.Genotype.from_json(text.decode('utf-8', 'replace'))
    genotype.check_operations(found, {'sep_conv_3x3', 'skip_connect'})
  except UsageError as error:
    _in_words(error)


@_cases(400)
@hypothesis.given(_CHANGES)
def test_genotype_text_of_darts(changes):
  text = _changed(cells.DARTS_V2.to_darts().encode(), changes)
  try:
    found = darts_text.parse(text.decode('utf-8', 'replace'))
    genotype.check_operations(found, {'sep_conv_3x3', 'skip_connect'})
  except UsageError as error:
    _in_words(error)


@_cases(400)
@hypothesis.given(
  st.sampled_from(
    ['normal', 'normal_concat', 'reduction', 'reduction_concat', 'more']
  ),
  _JSON,
)
def test_genotype_fields(field, value):
  fields = json.loads(cells.DARTS_V2.to_json())
  fields[field] = value
  try:
    found = genotype.Genotype.from_json(json.dumps(fields))
  except UsageError as error:
    assert field in _in_words(error) or 'JSON' in str(error)
  else:
    # What is accepted makes a network.
    grid.build_plan(
      grid.NetworkSpec(4, 3, found.nodes),
      len(found.normal_concat),
      len(found.reduction_concat),
    )


_FIELDS = sorted(fields.flatten(default_config.get_config().to_dict()))


@_cases(1500)
@hypothesis.given(st.sampled_from(_FIELDS), _JSON)
def test_config_values(field, value):
  config = default_config.get_config().to_dict()
  *sections, name = field.split('.')
  section = config
  for part in sections:
    section = section[part]
  section[name] = value
  try:
    settings.check_config(config)
  except UsageError as error:
    assert f'config.{field} = ' in _in_words(error) or isinstance(value, dict)
  else:
    whole = settings.parse(config)
    for network in (whole.search.network, whole.train.network):
      if not isinstance(network, grid.GridConfig | grid.DerivedGridConfig):
        continue
      spec = grid.network_spec(network, (8, 8, 1), 10)
      if max(spec.layers, spec.scales, spec.nodes) < 50:
        try:
          grid.build_plan(spec)
        except UsageError as error:
          _in_words(error)


_LAYOUTS = [
  cifar_files.PYTHON_LAYOUTS['cifar10'],
  cifar_files.BINARY_LAYOUTS['cifar10'],
]


def _batch(layout, rows=3):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (rows, 3072), np.uint8)
  labels = rng.integers(0, 10, rows)
  if layout.label_bytes:
    first = labels.astype(np.uint8)[:, None]
    return np.concatenate([first, images], axis=1).tobytes()
  batch = {b'data': images, layout.labels_key.encode(): labels.tolist()}
  return pickle.dumps(batch, protocol=2)


@pytest.fixture(
  scope='module', params=_LAYOUTS, ids=lambda layout: layout.folder
)
def cifar(request, tmp_path_factory):
  """A small dataset in one of the published layouts."""
  layout = request.param
  folder = tmp_path_factory.mktemp('cifar') / layout.folder
  folder.mkdir()
  for name in (*layout.train_files, layout.test_file):
    (folder / name).write_bytes(_batch(layout))
  return layout, folder


@_cases(300)
@hypothesis.given(changes=_CHANGES)
def test_cifar_files(cifar, changes):
  layout, folder = cifar
  path = folder / layout.train_files[2]
  path.write_bytes(_changed(_batch(layout), changes))
  try:
    arrays = cifar_files.read('cifar10', folder)
  except UsageError as error:
    assert path.name in _in_words(error)
  else:
    images, labels = arrays[:2]
    assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)
    assert len(labels) == len(images)
    assert set(np.unique(labels)) <= set(range(10))


class _Touch:
  """Its pickle makes a file when it is loaded the usual way."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path(self.path),)


@_cases(300)
@hypothesis.given(changes=_CHANGES, protocol=st.integers(0, 5))
def test_pickles_that_would_call_something(tmp_path_factory, changes, protocol):
  folder = tmp_path_factory.getbasetemp() / 'calls'
  folder.mkdir(exist_ok=True)
  touched = folder / 'touched'
  batch = {b'data': _Touch(touched), b'labels': [1, 2]}
  whole = pickle.dumps(batch, protocol)
  path = folder / 'batch'
  for data in (whole, _changed(whole, changes)):
    path.write_bytes(data)
    try:
      plain_pickle.load(path)
    except UsageError as error:
      _in_words(error)
    else:
      assert data != whole
    assert not touched.exists()


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
  path = tmp_path_factory.mktemp('npz') / 'mine.npz'
  rng = np.random.default_rng(0)
  arrays = {}
  for part in ('train', 'test'):
    arrays[f'x_{part}'] = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    arrays[f'y_{part}'] = np.array([0, 1, 0, 1])
  np.savez_compressed(path, **arrays)
  return path, path.read_bytes()


@_cases(300)
@hypothesis.given(changes=_CHANGES)
def test_npz_files(npz, changes):
  path, data = npz
  path.write_bytes(_changed(data, changes))
  for read in (npz_file.read, files.read_npz):
    try:
      read(str(path))
    except UsageError as error:
      assert str(path) in _in_words(error)


@_cases(200)
@hypothesis.given(changes=_CHANGES)
def test_metrics_files(tmp_path_factory, changes):
  path = tmp_path_factory.getbasetemp() / 'metrics.jsonl'
  lines = [json.dumps({'step': i, 'loss': 1 / (i + 1)}) for i in range(5)]
  path.write_bytes(_changed('\n'.join([*lines, '']).encode(), changes))
  before = path.read_bytes()
  try:
    metrics.read_metrics(path)
  except UsageError as error:
    assert str(path) in _in_words(error)
  assert path.read_bytes() == before
  # A run that goes on keeps what comes before its step.
  try:
    with metrics.MetricsWriter(path.parent, 2):
      pass
  except UsageError as error:
    assert str(path) in _in_words(error)
    assert path.read_bytes() == before


def _saved(step):
  return {'weight': jnp.arange(6.0) * step, 'key': jax.random.key(step)}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole') / 'checkpoints'
  with checkpoint.open_manager(folder, keep=3) as manager:
    for step in (1, 2, 3):
      checkpoint.save(manager, step, _saved(step))
  return folder


def _contents(folder):
  return {
    path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
    for path in folder.rglob('*')
    if path.is_file()
  }


@_cases(60)
@hypothesis.given(
  damage=st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.none() | _CHANGES),
    min_size=1,
    max_size=4,
  )
)
def test_checkpoints(checkpoints, tmp_path_factory, damage):
  """A checkpoint is restored bit for bit, or passed over; none is deleted."""
  folder = tmp_path_factory.getbasetemp() / 'damaged'
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(checkpoints, folder)
  paths = sorted(p for p in folder.rglob('*') if p.is_file())
  for place, changes in damage:
    path = paths[int(place * len(paths))]
    if not path.exists():
      continue
    if changes is None:
      path.unlink()
    else:
      path.write_bytes(_changed(path.read_bytes(), changes))
  before = _contents(folder)
  try:
    with checkpoint.open_manager(folder) as manager:
      step, state = checkpoint.restore_latest(manager, _saved(1))
  except UsageError as error:
    _in_words(error)
  else:
    np.testing.assert_array_equal(state['weight'], _saved(step)['weight'])
    np.testing.assert_array_equal(
      jax.random.key_data(state['key']),
      jax.random.key_data(_saved(step)['key']),
    )
  after = _contents(folder)
  assert {p: after.get(p) for p in before} == before


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Two folders with the same model, one to be changed."""
  edges = (('skip_connect', 0), ('max_pool_3x3', 1))
  network = network_lib.derived_network(
    grid.NetworkSpec(channels=4, layers=3, nodes=1, image_shape=(8, 8, 1)),
    genotype.Genotype(edges, (2,), edges, (2,)),
    lowering='conv',
  )
  variables = initialization.init_variables(network, jax.random.key(0))
  whole = tmp_path_factory.mktemp('models') / 'whole'
  model_lib.build_model(network, variables, (0.5,), (0.5,)).save(whole)
  path = whole / description.FILE
  value = json.loads(path.read_text())
  value['evaluation'] = {
    'dataset': 'toy',
    'test_images': {},
    'other_images': False,
    'accuracies': [0.5, 0.6],
    'num_holdout': 3,
    'temperatures': [1.0, 2.0],
    'thresholds': [{'q': 0.5, 'thresholds': [0.5, 0.0]}],
  }
  path.write_text(json.dumps(value))
  return whole, shutil.copytree(whole, whole.with_name('changed'))


@_cases(300)
@hypothesis.given(
  place=st.floats(0, 1, exclude_max=True), value=_JSON, remove=st.booleans()
)
def test_descriptions_of_models(models, place, value, remove):
  whole, folder = models
  changed = json.loads((whole / description.FILE).read_text())
  sections = [changed, changed['evaluation'], changed['network']]
  sections += [changed['tensors'], changed['exits'][0]]
  fields = [(section, name) for section in sections for name in section]
  section, name = fields[int(place * len(fields))]
  if remove:
    del section[name]
  else:
    section[name] = value
  (folder / description.FILE).write_text(json.dumps(changed))
  try:
    model_lib.load_model(folder)
  except UsageError as error:
    assert str(folder) in _in_words(error)
  finally:
    shutil.copy(whole / description.FILE, folder)


@_cases(200)
@hypothesis.given(changes=_CHANGES)
def test_params_of_models(models, changes):
  whole, folder = models
  data = (whole / tensors.FILE).read_bytes()
  path = folder / tensors.FILE
  path.write_bytes(_changed(data, changes))
  try:
    model_lib.load_model(folder)
  except UsageError as error:
    assert str(path) in _in_words(error)
  else:
    assert path.read_bytes() == data
  finally:
    shutil.copy(whole / tensors.FILE, folder)

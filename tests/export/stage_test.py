"""The stage: from a config to the folder, and what it refuses before."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax import importing
from ms_ranas_jax import settings
from ms_ranas_jax import stages
from ms_ranas_jax.data import datasets
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import folder
from ms_ranas_jax.export import latency
from ms_ranas_jax.export import runners
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.training import stage as train_stage

pytest.importorskip(
  'ai_edge_litert', reason='LiteRT is not installed, see setup.cfg'
)

SHAPE, CLASSES, TRAIN, TEST, HELD_OUT = (8, 8, 1), 3, 96, 40, 24


def _write_images(path):
  """Images that tell their class, most of the time."""
  rng = np.random.default_rng(0)
  arrays = {}
  for part, count in ('train', TRAIN), ('test', TEST):
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 120, (count, *SHAPE))
    images[np.arange(count), 2 * labels + 1] += 130
    arrays[f'x_{part}'] = images.astype(np.uint8)
    arrays[f'y_{part}'] = labels
  np.savez(path, **arrays)


def _config(path, **changes):
  config = default_config.get_config()
  config.stages = ('export',)
  config.num_devices = 1
  config.dataset.update(
    name='npz', dir=str(path / 'data.npz'), holdout=HELD_OUT
  )
  config.train.update(epochs=3, batch_size=12)
  config.train.network.update(
    family='msdnet', channels=4, scales=2, blocks=2, base=1, growth=2
  )
  config.train.learning_rate = 0.1
  config.export.latency = False
  config.update_from_flattened_dict(changes)
  return config


def _run(path, **changes):
  said = []
  stages.run_stages(_config(path, **changes), str(path / 'run'), said.append)
  return '\n'.join(said)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with images, and the work directory `run`, evaluated."""
  path = tmp_path_factory.mktemp('export')
  _write_images(path / 'data.npz')
  _run(path, stages=('train', 'evaluate'))
  return path


@pytest.fixture(scope='module')
def exported(trained):
  """The same after an export."""
  assert 'export: ' in _run(trained, **{'export.formats': ('onnx', 'tflite')})
  return trained


def _json(path):
  return json.loads(path.read_text())


def test_the_folder_is_of_what_was_trained(exported):
  about = folder.read_manifest(str(exported / 'run/export'))
  trained = _json(exported / 'run/model/model.json')
  assert about['model'] == trained['tensors']['sha256']
  steps = [
    str(exported / 'run/export' / name) for name in about['steps']['float32']
  ]
  images = files.read_npz(exported / 'data.npz')['x_test']
  model = model_lib.load_model(exported / 'run')
  np.testing.assert_allclose(
    runners.logits(runners.load_onnx(steps), images),
    model.compiled_steps.logits(images, 250),
    atol=1e-4,
  )


def test_vectors_are_held_out(exported):
  vectors = files.read_npz(exported / 'run/export' / folder.VECTORS)
  config = settings.parse(_config(exported))
  dataset = datasets.load_dataset('npz', str(exported / 'data.npz'))
  _, held_out = train_stage.split_training_images(config, dataset)
  np.testing.assert_array_equal(
    vectors['images'], dataset.train_images[held_out][:16]
  )


def test_floats_stand_beside_8_bits(exported):
  found = _json(exported / 'run/export/quantized.json')
  anytime = _json(exported / 'run/evaluate/anytime.json')
  assert found['num_examples'] == TEST
  assert found['calibration_images'][0] == HELD_OUT
  for entry, judged in zip(found['exits'], anytime['exits'], strict=True):
    for runtime in 'onnx', 'tflite':
      in_floats, in_bits = (entry[runtime][f] for f in ('float32', 'int8'))
      assert in_floats['accuracy'] == judged['accuracy']
      assert abs(in_bits['accuracy'] - judged['accuracy']) <= 0.1
      assert 'milliseconds' not in in_floats
    assert (
      entry['onnx']['int8']['weight_bytes']
      < (entry['onnx']['float32']['weight_bytes'])
    )
  last = found['exits'][-1]['onnx']
  for form, name in ('float32', 'step_{}.onnx'), ('int8', 'step_{}_int8.onnx'):
    sizes = [
      (exported / 'run/export/onnx' / name.format(step)).stat().st_size
      for step in range(len(found['exits']))
    ]
    assert last[form]['file_bytes'] == sum(sizes)


@pytest.mark.slow
def test_milliseconds_of_every_form(exported, monkeypatch):
  monkeypatch.setattr(latency, '_SECONDS', 0.0)
  _run(
    exported, **{'export.latency': True, 'export.formats': ('onnx', 'tflite')}
  )
  found = _json(exported / 'run/evaluate/latency.json')
  trained = _json(exported / 'run/model/model.json')
  assert found['model'] == trained['tensors']['sha256']
  forms = {(e['runtime'], e['batch_size']) for e in found['entries']}
  of_any_batch = ('xla', 'onnxruntime', 'onnxruntime_int8')
  assert forms == {
    *((name, size) for name in of_any_batch for size in (1, 64)),
    *((name, 1) for name in ('onnxruntime_anytime', 'litert', 'litert_int8')),
  }
  assert 1 in {e['threads'] for e in found['entries']}
  for entry in found['entries']:
    assert entry['rounds'] >= 11
    medians = [exit_['median'] for exit_ in entry['exits']]
    assert medians[0] > 0
    if entry['runtime'] != 'onnxruntime_anytime':  # whose exits are runs apart
      assert medians == sorted(medians)
    assert all(e['low'] <= e['median'] <= e['high'] for e in entry['exits'])
  compared = _json(exported / 'run/export/quantized.json')['exits'][0]
  for runtime in 'onnx', 'tflite':
    assert compared[runtime]['int8']['milliseconds'] > 0


@pytest.mark.slow
def test_a_new_training_sets_the_export_aside(exported, tmp_path):
  shutil.copytree(exported, tmp_path / 'copy')
  path = tmp_path / 'copy'
  config = _config(path, stages=('train',), **{'train.epochs': 1})
  config.dataset.dir = str(exported / 'data.npz')
  stages.run_stages(config, str(path / 'run'), lambda _: None, redo=True)
  assert not (path / 'run/export').exists()
  assert (path / 'run/aside/1/export/manifest.json').is_file()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dataset.holdout': 0}, 'config.dataset.holdout = 0, but config.stages'),
    (
      {'export.formats': ('tflite',)},
      r"config.export.formats = \('tflite',\): give \('onnx',\)",
    ),
    (
      {'export.int8': False, 'export.calibration_q': 0.5},
      'config.export.calibration_q = 0.5 does nothing',
    ),
    ({'export.calibration_q': 0.123}, 'no thresholds of q = 0.123'),
  ],
)
def test_what_cannot_be_exported_is_refused(exported, changes, message):
  if 'dataset.holdout' in changes:
    path = exported / 'other'
    path.mkdir()
    changes = {
      **changes,
      'dataset.dir': str(exported / 'data.npz'),
      'stages': ('train', 'evaluate', 'export'),
    }
  else:
    path = exported
  before = (exported / 'run/export/manifest.json').read_bytes()
  with pytest.raises(UsageError, match=message):
    _run(path, **changes)
  assert (exported / 'run/export/manifest.json').read_bytes() == before


def test_8_bits_need_an_evaluation(trained, tmp_path):
  path = tmp_path
  (path / 'data.npz').write_bytes((trained / 'data.npz').read_bytes())
  with pytest.raises(UsageError, match="add 'evaluate' to config.stages"):
    _run(path, stages=('train', 'export'))
  with pytest.raises(UsageError, match='no finished training'):
    _run(path)


def test_libraries_that_are_not_installed_are_named(trained, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *args: None if name == 'onnx' else find(name, *args),
  )
  with pytest.raises(UsageError, match=r"pip install 'ms_ranas_jax\[onnx\]'"):
    _run(trained)
  importing.check_extra('test', ['pytest'], 'this')

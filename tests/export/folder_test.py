"""The export folder: its manifest, and the runner that needs no JAX."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from ms_ranas_jax.data import pictures
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.export import folder
from ms_ranas_jax.export import onnx_file
from ms_ranas_jax.export import preprocessing
from ms_ranas_jax.export import run_exported
from ms_ranas_jax.export import runners
from ms_ranas_jax.runtime import files

# As where they are not installed.
_WITHOUT_JAX = (
  'import runpy, sys; '
  "sys.modules.update(dict.fromkeys(['jax', 'flax', 'ms_ranas_jax'])); "
  "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope='module')
def model(build):
  return build('digits_msdnet')


@pytest.fixture(scope='module')
def images(model, draw):
  return draw(model, 40)


@pytest.fixture(scope='module')
def exported(model, images):
  return folder.export(model, images)


@pytest.fixture
def written(tmp_path, model, exported):
  """The folder."""
  folder.write(str(tmp_path), exported, folder.manifest(model, exported))
  return tmp_path


def _run(path, *arguments, fails=False):
  end = subprocess.run(
    [sys.executable, '-c', _WITHOUT_JAX, str(path / 'run.py'), *arguments],
    capture_output=True,
    check=False,
    text=True,
  )
  assert (end.returncode != 0) == fails, end.stderr
  return end.stderr if fails else end.stdout


def test_the_manifest_tells_of_every_file(model, written):
  about = folder.read_manifest(str(written))
  there = {
    str(path.relative_to(written)): path.read_bytes()
    for path in written.rglob('*')
    if path.is_file()
  }
  manifest = there.pop(folder.MANIFEST)
  assert json.loads(manifest) == about
  assert set(about['files']) == set(there)
  for name, content in there.items():
    entry = about['files'][name]
    assert entry['sha256'] == hashlib.sha256(content).hexdigest()
    assert entry['bytes'] == len(content)
  for form, steps in about['steps'].items():
    assert len(steps) == len(model.exits)
    for name in steps:
      session = runners.session(there[name])
      entry = about['files'][name]
      for kind, found in (
        ('inputs', session.get_inputs()),
        ('outputs', session.get_outputs()),
      ):
        assert [e['name'] for e in entry[kind]] == [e.name for e in found], form
        assert [e['shape'] for e in entry[kind]] == [e.shape for e in found]
  first = about['files'][about['steps']['float32'][0]]['inputs']
  assert first == [
    {'name': 'images', 'dtype': 'uint8', 'shape': ['batch', 8, 8, 1]}
  ]


def test_the_manifest_tells_of_the_network(model, written):
  about = folder.read_manifest(str(written))
  assert tuple(about['image_shape']) == model.image_shape
  assert tuple(about['class_names']) == model.class_names
  evaluation = model.description.evaluation
  assert [e['macs'] for e in about['exits']] == [e.macs for e in model.exits]
  assert [e['temperature'] for e in about['exits']] == list(model.temperatures)
  assert [e['accuracy'] for e in about['exits']] == list(evaluation.accuracies)
  assert about['thresholds'] == [
    {'q': q, 'thresholds': list(row)}
    for q, row in evaluation.thresholds.items()
  ]


def test_the_vectors_are_answers_of_the_network(model, images, written):
  vectors = files.read_npz(written / folder.VECTORS)
  np.testing.assert_array_equal(vectors['images'], images[:16])
  expected = model.compiled_steps.logits(images, 64)[:, :16]
  np.testing.assert_allclose(vectors['logits'], expected, rtol=1e-4, atol=1e-3)


def test_the_runner_checks_itself_without_jax(written, exported, model):
  assert 'by exit: [1. 1. 1.]' in _run(written)
  assert 'same classes' in _run(written, '--int8')
  assert len((written / 'run.py').read_text().splitlines()) <= 80
  # An answer that is not that of the network is seen.
  vectors = files.read_npz(written / folder.VECTORS)
  np.savez(written / folder.VECTORS, **vectors | {'logits': -vectors['logits']})
  assert f'{folder.VECTORS} was changed' in _run(written, fails=True)
  other = folder.Exported(
    {
      **exported.files,
      folder.VECTORS: (written / folder.VECTORS).read_bytes(),
    }
  )
  folder.write(str(written), other, folder.manifest(model, other))
  assert 'not the answers' in _run(written, fails=True)


@pytest.mark.parametrize(
  ('flags', 'choice'),
  [
    ([], {}),
    (['--exit=1'], {'exit': 1}),
    (['--q=1.0'], {'q': 1.0}),
    (['--confidence=0.2'], {'confidence': 0.2}),
    (['--exit=0', '--int8'], {'exit': 0}),
  ],
)
def test_the_runner_answers_as_the_model_does(
  model, images, written, flags, choice
):
  path = written / 'picture.png'
  Image.fromarray(images[3, ..., 0]).save(path)
  answer = model.predict(images[3:4], **choice)
  expected = f'{path}: {answer.names[0]}, '
  (line,) = _run(written, *flags, str(path)).splitlines()
  assert line.startswith(expected)
  assert line.endswith(f'exit {answer.exits[0]}')
  if '--int8' not in flags:
    assert f'{answer.confidence[0]:.1%}' in line


def _pictures():
  """Yields pictures of every kind, and how they are saved."""
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (9, 14), np.uint8)
  colour = rng.integers(0, 256, (9, 14, 3), np.uint8)
  alpha = np.dstack([colour, grey])
  yield 'grey.png', Image.fromarray(grey), {}
  yield 'colour.jpg', Image.fromarray(colour), {}
  yield 'alpha.png', Image.fromarray(alpha), {}
  yield 'palette.png', Image.fromarray(colour).convert('P'), {'transparency': 3}
  yield 'deep.png', Image.fromarray(grey.astype(np.uint16) * 257), {}
  for orientation in range(2, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(colour)
    yield f'turned_{orientation}.jpg', picture, {'exif': exif}


@pytest.mark.parametrize('shape', [(8, 8, 3), (8, 12, 1), (9, 14, 3)])
def test_the_runner_reads_the_same_pixels(tmp_path, shape):
  for name, picture, options in _pictures():
    path = tmp_path / name
    picture.save(path, **options)
    np.testing.assert_array_equal(
      run_exported.read(str(path), list(shape)),
      pictures.read(path, shape).pixels,
      err_msg=name,
    )


@pytest.mark.parametrize(
  'pixels',
  [
    np.full((8, 8), 65536, np.int32),
    np.full((8, 8), 255, np.uint16),
    np.arange(-1, 399, dtype=np.int32).reshape(20, 20),
    np.full((8, 8), 0.5, np.float32),
  ],
)
def test_the_runner_refuses_the_same_pixels(tmp_path, pixels):
  path = tmp_path / 'deep.tiff'
  Image.fromarray(pixels).save(path)
  with pytest.raises(UsageError, match='range'):
    pictures.read(path, (8, 8, 3))
  with pytest.raises(AssertionError, match='range'):
    run_exported.read(str(path), [8, 8, 3])


@pytest.mark.slow
def test_the_runner_in_a_fresh_environment(written):
  venv = written / 'venv'
  subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
  python = venv / 'bin/python'
  fetched = subprocess.run(
    [python, '-m', 'pip', 'install', '-q', 'onnxruntime', 'numpy', 'pillow'],
    capture_output=True,
    check=False,
    text=True,
  )
  if fetched.returncode:
    pytest.skip('pip cannot fetch onnxruntime: no network here')
  found = subprocess.run(
    [python, '-c', 'import jax'], capture_output=True, check=False
  )
  assert found.returncode, 'JAX is there after all'
  hidden = ('PYTHONPATH', 'PYTHONHOME')
  end = subprocess.run(
    [python, str(written / 'run.py')],
    capture_output=True,
    check=False,
    cwd=written,
    env={k: v for k, v in os.environ.items() if k not in hidden},
    text=True,
  )
  assert 'by exit: [1. 1. 1.]' in end.stdout, end.stderr


def test_files_that_compute_something_else_are_not_written(
  model, images, monkeypatch
):
  build = onnx_file.step_model

  def other(form, step, before):
    file = build(form, step, before)
    bias = next(t for t in file.graph.initializer if t.name.endswith('/bias'))
    bias.raw_data = bytes(len(bias.raw_data))
    return file

  monkeypatch.setattr(onnx_file, 'step_model', other)
  with pytest.raises(RuntimeError, match='exported for ONNX differs'):
    folder.export(model, images, int8=False)


@pytest.mark.parametrize('name', ['all_exits', 'anytime'])
def test_the_files_of_a_whole_network_are_compared(
  model, images, monkeypatch, name
):
  build = getattr(onnx_file, f'{name}_model')

  def other(form, before, *args):
    wrong = preprocessing.Preprocessing([0.1], before.std)
    return build(form, wrong, *args)

  monkeypatch.setattr(onnx_file, f'{name}_model', other)
  with pytest.raises(RuntimeError, match=f'onnx/{name}.onnx differs'):
    folder.export(model, images, int8=False)


def test_what_cannot_be_exported_is_refused(model, images):
  with pytest.raises(UsageError, match='no images to compare'):
    folder.export(model, images[:0])
  narrow = dataclasses.replace(model.description, dtype='bfloat16')
  with pytest.raises(UsageError, match='the network computes in bfloat16'):
    folder.export(dataclasses.replace(model, description=narrow), images)
  with pytest.raises(UsageError, match='no thresholds of q = 0.7'):
    folder.export(model, images, calibration_q=0.7)
  with pytest.raises(UsageError, match='manifest.json does not exist'):
    folder.read_manifest(os.path.dirname(__file__))

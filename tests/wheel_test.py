"""What is installed, from a wheel or in place, where there is no checkout."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

pytestmark = pytest.mark.slow

_SOURCES = ('setup.cfg', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE')
_FOLDERS = ('ms_ranas_jax', 'configs')


def _call(*command, cwd, fails=False):
  """Runs a command that sees no checkout; returns what it wrote."""
  hidden = ('PYTHONPATH', 'PYTHONHOME')
  end = subprocess.run(
    list(map(str, command)),
    capture_output=True,
    check=False,
    cwd=cwd,
    env={k: v for k, v in os.environ.items() if k not in hidden}
    | {'JAX_PLATFORMS': 'cpu', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'},
    text=True,
    timeout=300,
  )
  if end.returncode and 'No matching distribution found' in end.stderr:
    pytest.skip('pip cannot fetch setuptools to build with: no network here')
  assert (end.returncode != 0) == fails, end.stderr[-2000:]
  return end.stderr if fails else end.stdout


def _has_setuptools():
  """Whether the running interpreter can build by itself."""
  try:
    version = importlib.metadata.version('setuptools')
  except importlib.metadata.PackageNotFoundError:
    return False
  return 77 <= int(version.partition('.')[0]) < 85


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def scripts(request, repo_root, tmp_path_factory):
  """The folder of the commands of a fresh environment."""
  folder = tmp_path_factory.mktemp(request.param)
  # A build leaves files beside its sources.
  sources = folder / 'sources'
  sources.mkdir()
  for name in _SOURCES:
    shutil.copy(repo_root / name, sources)
  for name in _FOLDERS:
    shutil.copytree(
      repo_root / name,
      sources / name,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  _call(sys.executable, '-m', 'venv', folder / 'venv', cwd=folder)
  scripts = folder / 'venv' / ('Scripts' if os.name == 'nt' else 'bin')
  python = scripts / pathlib.Path(sys.executable).name
  (packages,) = _call(
    *(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'),
    cwd=folder,
  ).splitlines()
  # The libraries are those of the running interpreter.
  outer = sysconfig.get_path('purelib')
  (pathlib.Path(packages) / 'outer.pth').write_text(f'{outer}\n')
  isolation = ['--no-build-isolation'] if _has_setuptools() else []
  pip = (python, '-m', 'pip')
  if request.param == 'editable':
    _call(
      *pip,
      'install',
      '--no-deps',
      *isolation,
      *('--editable', sources),
      cwd=folder,
    )
  else:
    _call(
      *pip,
      'wheel',
      '--no-deps',
      *isolation,
      *('--wheel-dir', folder, sources),
      cwd=folder,
    )
    (wheel,) = folder.glob('*.whl')
    _call(*pip, 'install', '--no-deps', '--no-index', wheel, cwd=folder)
    shutil.rmtree(sources)
  return scripts


def test_the_command_runs_a_config_by_its_name(scripts, tmp_path):
  out = _call(
    scripts / 'ms-ranas-jax',
    '--config=digits',
    '--config.stages=describe',
    cwd=tmp_path,
  )
  assert 'work directory: runs/digits\n' in out
  assert (tmp_path / 'runs/digits/describe/search_network.json').is_file()
  # It is the one that was installed.
  environment = scripts.parent.parent
  place = _call(
    scripts / pathlib.Path(sys.executable).name,
    *('-c', 'import ms_ranas_jax; print(ms_ranas_jax.__file__)'),
    cwd=tmp_path,
  )
  assert pathlib.Path(place.strip()).is_relative_to(environment)


def test_a_config_takes_an_argument(scripts, tmp_path):
  err = _call(
    scripts / 'ms-ranas-jax',
    '--config=configs/study.py:figure7',
    cwd=tmp_path,
    fails=True,
  )
  assert "config.study.figure = 'figure7': give one of" in err
  assert not list(tmp_path.iterdir())


def test_messages_name_what_is_there(scripts, tmp_path):
  err = _call(
    scripts / 'ms-ranas-jax',
    *('--config=digits', '--config.search.epoch=1'),
    cwd=tmp_path,
    fails=True,
  )
  named = err.partition(' or see ')[2].partition(' for ')[0]
  assert named.endswith('sections.py') and pathlib.Path(named).is_file()


def test_the_other_commands_are_there(scripts, tmp_path):
  out = _call(scripts / 'ms-ranas-jax-predict', '--help', cwd=tmp_path)
  assert '--confidence' in out
  err = _call(
    *(scripts / 'ms-ranas-jax-predict', '--model=none', scripts / 'activate'),
    cwd=tmp_path,
    fails=True,
  )
  assert err.startswith('ms_ranas_jax: none is neither a model folder')
  out = _call(scripts / 'ms-ranas-jax-convert', '--help', cwd=tmp_path)
  assert '--genotype' in out


def test_a_trained_network_is_there(scripts, tmp_path):
  out = _call(
    scripts / pathlib.Path(sys.executable).name,
    '-c',
    'import ms_ranas_jax as mr, numpy as np\n'
    "model = mr.load_model('cifar10_tiny')\n"
    'images = np.zeros((1, *model.image_shape), np.uint8)\n'
    'print(model.predict(images, exit=0).names[0] in model.class_names)',
    cwd=tmp_path,
  )
  assert out == 'True\n'


def test_help_says_what_the_command_takes(scripts, tmp_path):
  # Its status is that of a refusal, as in all commands of absl.
  end = subprocess.run(
    [scripts / 'ms-ranas-jax', '--help'],
    capture_output=True,
    check=False,
    cwd=tmp_path,
    text=True,
  )
  assert end.stdout.startswith('Searches, trains, measures')
  for text in (
    '--config:',
    '--workdir:',
    'digits, fine_tune, flowers, imagenet',  # the line ends there
  ):
    assert text in end.stdout

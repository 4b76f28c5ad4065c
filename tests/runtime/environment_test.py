"""Environment variables with which nothing can run, as libraries read them."""

import os
import subprocess
import sys

import jax
import pytest

from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.runtime import environment


@pytest.mark.parametrize(
  ('setting', 'training', 'text'),
  [
    (jax.disable_jit(), True, 'JAX_DISABLE_JIT is set to True, but steps'),
    (jax.debug_infs(True), True, 'JAX_DEBUG_INFS is set to True'),
    (
      jax.numpy_dtype_promotion('strict'),
      True,
      'JAX_NUMPY_DTYPE_PROMOTION is set to strict',
    ),
    (
      jax.transfer_guard_host_to_device('disallow'),
      False,
      'JAX_TRANSFER_GUARD_HOST_TO_DEVICE is set to disallow',
    ),
  ],
  ids=['jit', 'infinities', 'promotion', 'transfers'],
)
def test_settings_that_are_in_the_way_are_refused(setting, training, text):
  environment.check_settings(training=True)
  with setting:
    with pytest.raises(UsageError, match=f'^{text}.*; unset it'):
      environment.check_settings(training=True)
    # A trained network runs with some of them.
    if training:
      environment.check_settings()


def test_devices_that_are_there_are_taken():
  environment.check_devices()


@pytest.mark.parametrize(
  ('error', 'reason'),
  [
    (AssertionError(), 'there is none of that kind'),
    (
      RuntimeError(
        "Unable to initialize backend 'foo': unknown. (set JAX_PLATFORMS='' to "
        'automatically choose an available backend)\nmore'
      ),
      "Unable to initialize backend 'foo': unknown",
    ),
  ],
)
@pytest.mark.parametrize('platforms', ['cuda', ''])
def test_devices_that_are_missing_are_told(
  monkeypatch, error, reason, platforms
):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'devices', fail)
  for name in ('JAX_PLATFORM_NAME', 'JAX_NUM_CPU_DEVICES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  with pytest.raises(UsageError) as caught:
    environment.check_devices()
  with_ = ' with JAX_PLATFORMS=cuda' if platforms else ''
  mend = 'unset that' if platforms else 'set JAX_PLATFORMS=cpu'
  assert f'finds no device{with_} ({reason}); {mend}' in str(caught.value)
  assert "'jax[cuda]'" in str(caught.value)


# name: ((module, arguments), (variable, value), texts). As users run them:
# libraries read these once in a process.
_COMMANDS = {
  'an unknown platform': (
    ('main', '--config=digits', '--workdir={fresh}'),
    ('JAX_PLATFORMS', 'foo'),
    ['JAX_PLATFORMS=foo', "Backend 'foo' is not in the list", 'unset that'],
  ),
  'no compilation': (
    ('main', '--config=digits', '--workdir={fresh}'),
    ('JAX_DISABLE_JIT', '1'),
    ['JAX_DISABLE_JIT is set to True', 'unset it'],
  ),
  'no truth value': (
    ('predict', '--model={fresh}', __file__),
    ('JAX_ENABLE_X64', 'maybe'),
    ["'maybe' for environment 'JAX_ENABLE_X64'", 'correct or unset'],
  ),
  'no backend of matplotlib': (
    ('main', '--config=digits', '--workdir={fresh}'),
    ('MPLBACKEND', 'foo'),
    ["'foo' is not a valid value for backend", 'correct MPLBACKEND'],
  ),
  'no such platform for a prediction': (
    ('predict', '--model={fresh}', __file__),
    ('JAX_PLATFORMS', 'cuda,foo'),
    ['JAX_PLATFORMS=cuda,foo', 'unset that'],
  ),
}


@pytest.mark.parametrize('name', _COMMANDS)
def test_a_command_says_it_in_a_sentence(name, repo_root, tmp_path):
  (module, *arguments), (variable, value), texts = _COMMANDS[name]
  fresh = tmp_path / 'fresh'
  end = subprocess.run(
    [sys.executable, '-m', f'ms_ranas_jax.{module}']
    + [argument.format(fresh=fresh) for argument in arguments],
    capture_output=True,
    check=False,
    cwd=repo_root,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', variable: value},
    text=True,
    timeout=60,
  )
  assert (end.returncode, end.stdout) == (2, '')
  assert end.stderr.startswith('ms_ranas_jax: ')
  assert end.stderr.count('\n') == 1
  assert [text for text in texts if text not in end.stderr] == []
  assert not fresh.exists()

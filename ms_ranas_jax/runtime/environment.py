"""Environment variables with which no command can run, refused at its start.

Libraries read theirs when they are imported, when a device is asked for or in
the middle of a step, and what comes of a wrong one is a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
import importlib
import os
import types
from typing import Any

from ms_ranas_jax.errors import UsageError

_TRANSFER = 'images and results have to go to a device and back'
# Setting of JAX -> the values to refuse, and what they are in the way of.
_UNFIT: Mapping[str, tuple[tuple[Any, ...], str]] = types.MappingProxyType(
  {
    'jax_no_tracing': ((True,), 'what is compiled is traced before'),
    **{
      f'jax_transfer_guard{way}': (('disallow', 'disallow_explicit'), _TRANSFER)
      for way in ('', '_host_to_device', '_device_to_host')
    },
  }
)
_UNFIT_FOR_TRAINING: Mapping[str, tuple[tuple[Any, ...], str]] = (
  types.MappingProxyType(
    {
      'jax_disable_jit': ((True,), 'steps are compiled before they run'),
      'jax_debug_infs': ((True,), 'what is left out of a maximum is infinite'),
      'jax_numpy_dtype_promotion': (
        ('strict',),
        'numbers of several types are computed with',
      ),
    }
  )
)
# What decides which devices there are.
_DEVICES = ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'JAX_NUM_CPU_DEVICES')
JAX, MATPLOTLIB = 'jax', 'matplotlib'
_MENDS = types.MappingProxyType(
  {
    JAX: 'correct or unset that environment variable',
    MATPLOTLIB: 'correct MPLBACKEND, or the backend in matplotlibrc',
  }
)


def load(*libraries: str) -> None:
  """Imports libraries that read settings of their own.

  Args:
    *libraries: `JAX` or `MATPLOTLIB`.

  Raises:
    UsageError: one cannot be imported with the settings that it has.
  """
  for library in libraries:
    try:
      importlib.import_module(library)
    except ValueError as error:
      raise UsageError(
        f'{library} does not start ({_in_short(error)}); {_MENDS[library]}.'
      ) from error


def check_settings(training: bool = False) -> None:
  """Refuses settings of JAX with which nothing can run; starts no device.

  Args:
    training: whether more than a trained network is to run.

  Raises:
    UsageError: names the variable, and what it is in the way of.
  """
  import jax  # what it has read is looked at, and so it is not read here

  unfit = {**_UNFIT, **(_UNFIT_FOR_TRAINING if training else {})}
  for name, (values, reason) in unfit.items():
    value = getattr(jax.config, name, None)
    if value in values:
      raise UsageError(
        f'{name.upper()} is set to {value}, but {reason}; unset it.'
      )


def check_devices() -> None:
  """Refuses to go on where JAX finds no device; starts those that there are.

  Raises:
    UsageError: names what was asked for, and how to run on the CPU.
  """
  import jax

  try:
    jax.devices()
  # A platform of which there is no plugin ends in a bare assertion.
  except (RuntimeError, AssertionError) as error:
    asked = ' '.join(
      f'{name}={os.environ[name]}' for name in _DEVICES if os.environ.get(name)
    )
    reason = _in_short(error) or 'there is none of that kind'
    mend = 'unset that for what is there' if asked else 'set JAX_PLATFORMS=cpu'
    raise UsageError(
      f'JAX finds no device{" with " * bool(asked)}{asked} ({reason}); {mend}, '
      "or install what the device needs, such as 'jax[cuda]' for a GPU."
    ) from error


def _in_short(error: Exception) -> str:
  """Returns the first line of an error, without JAX's own advice."""
  lines = str(error).strip().splitlines() or ['']
  return lines[0].partition(" (set JAX_PLATFORMS=''")[0].rstrip('. ')

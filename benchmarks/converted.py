r"""Compares converted networks with the public code whose weights they took.

python benchmarks/converted.py --darts DIR --msdnet DIR \
  --reference-python PYTHON

Every tensor of a checkout's network is drawn at random, running averages
included; the command `ms_ranas_jax.convert` makes a model folder of it; and
both answer the same images. Told of every exit is the largest difference of a
logit over the largest logit. It ends with 1 where one is above --tolerance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import datetime
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

import drawn
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from ms_ranas_jax import convert
from ms_ranas_jax import paths
from ms_ranas_jax.baselines import cells
from ms_ranas_jax.model import model as model_lib
from ms_ranas_jax.runtime import files
from ms_ranas_jax.space import genotype as genotype_lib

_HERE = pathlib.Path(__file__).resolve().parent
# Every operation of DARTS, with two edges of one kind at a time.
TINY_CELLS = genotype_lib.Genotype(
  normal=(
    ('sep_conv_3x3', 0),
    ('dil_conv_5x5', 1),
    ('sep_conv_5x5', 0),
    ('sep_conv_3x3', 0),
    ('skip_connect', 1),
    ('avg_pool_3x3', 3),
  ),
  normal_concat=(2, 4),
  reduction=(
    ('skip_connect', 0),
    ('skip_connect', 0),
    ('conv_7x1_1x7', 1),
    ('max_pool_3x3', 0),
    ('sep_conv_7x7', 1),
    ('dil_conv_3x3', 2),
  ),
  reduction_concat=(3, 4),
)
_MSDNET_11 = {'channels': 16, 'blocks': 11, 'base': 4, 'step': 2}
# name -> source, sizes as the flags have them, and what is said besides.
CASES: Mapping[str, Mapping[str, Any]] = {
  'DARTS_V2, 8 layers, 16 channels': {
    'source': 'darts',
    'sizes': {'genotype': 'DARTS_V2', 'layers': 8, 'channels': 16},
  },
  'DARTS_V2, 20 layers, 36 channels': {
    'source': 'darts',
    'sizes': {'genotype': 'DARTS_V2', 'layers': 20, 'channels': 36},
  },
  'AmoebaNet, 8 layers, 16 channels': {
    'source': 'darts',
    'sizes': {'genotype': 'AmoebaNet', 'layers': 8, 'channels': 16},
  },
  "MSDNet, 11 blocks, prune 'max'": {
    'source': 'msdnet',
    'sizes': {**_MSDNET_11, 'prune': 'max'},
  },
  "MSDNet, 11 blocks, prune 'min'": {
    'source': 'msdnet',
    'sizes': {**_MSDNET_11, 'prune': 'min'},
  },
  'MSDNet, 5 blocks that grow': {
    'source': 'msdnet',
    'sizes': {
      **{'channels': 16, 'blocks': 5, 'base': 1, 'step': 1},
      'step_mode': 'lin_grow',
    },
  },
  'MSDNet for ImageNet, 5 blocks': {
    'source': 'msdnet',
    'sizes': {
      **{'channels': 32, 'blocks': 5, 'base': 4, 'step': 4},
      **{'growth': 16, 'scales': 4, 'stem': 'imagenet'},
      'growth_factors': (1, 2, 4, 4),
    },
  },
  # Those that tests have the answers of.
  'tiny DARTS': {
    'source': 'darts',
    'sizes': {'genotype': TINY_CELLS, 'layers': 3, 'channels': 2},
    'side': 8,
    'images': 2,
  },
  'tiny MSDNet': {
    'source': 'msdnet',
    'sizes': {
      **{'channels': 4, 'blocks': 3, 'base': 1, 'step': 1},
      **{'step_mode': 'lin_grow', 'growth': 2, 'scales': 2},
    },
    'side': 16,
    'images': 2,
  },
}


def flags_of(sizes: Mapping[str, Any], folder: str) -> list[str]:
  """Returns the flags of `convert` for some sizes.

  Args:
    sizes: name -> value; a genotype that is not published is written down.
    folder: where that goes.
  """
  found = []
  for name, value in sizes.items():
    if isinstance(value, genotype_lib.Genotype):
      path = f'{folder}/genotype.json'
      files.write_text(path, value.to_json())
      value = path
    elif isinstance(value, tuple):
      value = ','.join(map(str, value))
    found.append(f'--{name}={value}')
  return found


def _reference_case(
  source: str, sizes: Mapping[str, Any], case: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what the process of the reference is told."""
  sizes = dict(sizes)
  told = {**case, 'reference_device': 'cpu', 'channels_last': False}
  if source == 'darts':
    genotype = sizes.pop('genotype')
    if genotype in cells.PUBLISHED:
      told['genotype'] = genotype
    else:
      told['genotype'] = {
        theirs: getattr(genotype, ours)
        for theirs, ours in genotype_lib.DARTS_FIELDS.items()
      }
    return {**told, **sizes, 'auxiliary': True, 'drop_path': 0.0}
  full = {**convert.SOURCES[source].sizes, **sizes}
  told['data'] = 'ImageNet' if full['stem'] == 'imagenet' else 'cifar10'
  return {**told, **full, 'factors': full['growth_factors']}


def facts_of(name: str, seed: int, count: int) -> dict[str, Any]:
  """Returns what a case is asked with: seed, images, and their range.

  Args:
    name: of `CASES`.
    seed: of the weights and images.
    count: images, where the case does not say.
  """
  case = CASES[name]
  known = convert.SOURCES[case['source']]
  images = known.images({**known.sizes, **case['sizes']})
  return {
    'source': case['source'],
    'seed': seed,
    'images': case.get('images', count),
    'side': case.get('side', images.side),
    'mean': images.mean,
    'std': images.std,
  }


def ask(
  name: str,
  command: Sequence[str],
  checkout: str,
  folder: str,
  facts: Mapping[str, Any],
) -> str:
  """Runs a process of the reference; returns what it printed.

  Args:
    name: of `CASES`.
    command: an interpreter that has torch, and its script.
    checkout: of the code that the case is of.
    folder: where the process writes to.
    facts: see `facts_of`; more of them are passed on too.
  """
  case = CASES[name]
  told = json.dumps(_reference_case(case['source'], case['sizes'], facts))
  return subprocess.run(
    [*command, checkout, folder, told],
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  ).stdout


def converted_model(
  name: str, folder: str, side: int
) -> tuple[model_lib.Model, str]:
  """Makes a model of the weights that a process of the reference wrote.

  Args:
    name: of `CASES`.
    folder: with weights.npz; the model folder is written into it.
    side: of the images.

  Returns:
    The model, and what `convert` printed.
  """
  case = CASES[name]
  file = f'{folder}/weights.safetensors'
  safetensors_numpy.save_file(files.read_npz(f'{folder}/weights.npz'), file)
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    status = convert.main(
      [
        *(f'--source={case["source"]}', f'--weights={file}'),
        *(f'--output={folder}/model', f'--image_size={side}'),
        *flags_of(case['sizes'], folder),
      ]
    )
  if status:
    raise SystemExit(f'{name}: the weights were refused; see above.')
  return model_lib.load_model(f'{folder}/model'), out.getvalue()


def compare(
  name: str, python: str, checkout: str, seed: int, count: int
) -> dict[str, Any]:
  """Converts the weights of a case, and compares the answers.

  Args:
    name: of `CASES`.
    python: an interpreter that has torch.
    checkout: of the code that the case is of.
    seed: of the weights and images.
    count: images, where the case does not say.

  Returns:
    How many tensors there were, and for each exit the largest difference over
    the largest logit; of tiny cases also the reference's logits.
  """
  with tempfile.TemporaryDirectory() as folder:
    facts = facts_of(name, seed, count)
    said = ask(
      name,
      [python, str(_HERE / 'reference_weights.py')],
      checkout,
      folder,
      facts,
    )
    theirs = files.read_npz(f'{folder}/logits.npz')['logits']
    state = files.read_npz(f'{folder}/weights.npz')
    model, told = converted_model(name, folder, facts['side'])
    flags = flags_of(CASES[name]['sizes'], folder)
  ours = model.compiled_steps.logits(
    drawn.images(facts['images'], facts['side'], seed), facts['images']
  )
  difference = np.abs(ours - theirs).max(axis=(1, 2))
  largest = np.abs(theirs).max(axis=(1, 2))
  result = {
    'flags': [
      flag.replace(f'{folder}/genotype.json', 'FILE') for flag in flags
    ],
    'images': facts['images'],
    'tensors': len(state),
    'not_used': told.count('not used: '),
    'params': model.exits[-1].total_params,
    'torch': said.split()[-1],
    'relative_difference': (difference / largest).tolist(),
    # Answers that did not depend on the image would prove little.
    'deviation_over_images': (theirs.std(axis=1).mean(-1) / largest).tolist(),
    'same_classes': bool((ours.argmax(-1) == theirs.argmax(-1)).all()),
  }
  if 'side' in CASES[name]:
    result['logits'] = theirs.tolist()
  return result


def main(argv: Sequence[str] | None = None) -> int:
  """Compares all cases, or those that are named."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--darts', type=paths.expand, help='of quark0/darts')
  parser.add_argument(
    '--msdnet', type=paths.expand, help='of kalviny/MSDNet-PyTorch'
  )
  parser.add_argument(
    '--reference-python', type=paths.expand, default=sys.executable
  )
  parser.add_argument('--only', default='', help='cases that hold this text')
  parser.add_argument('--images', type=int, default=16)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--tolerance', type=float, default=1e-4)
  parser.add_argument('--json', type=paths.expand)
  args = parser.parse_args(argv)
  found = {}
  for name, case in CASES.items():
    checkout = getattr(args, case['source'])
    if not checkout or args.only not in name:
      continue
    found[name] = compare(
      name, args.reference_python, checkout, args.seed, args.images
    )
    worst = max(found[name]['relative_difference'])
    print(f'{name}: {worst:.1e} at the worst exit', flush=True)
  versions = {entry.pop('torch') for entry in found.values()}
  result = {
    'command': 'python benchmarks/converted.py --darts DIR --msdnet DIR '
    '--reference-python PYTHON --json benchmarks/results/converted.json',
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} cores, {platform.machine()}, '
    f'{jax.default_backend()}',
    'python': platform.python_version(),
    'jax': jax.__version__,
    'torch': ', '.join(sorted(versions)),
    'seed': args.seed,
    'tolerance': args.tolerance,
    'cases': found,
  }
  if args.json:
    files.write_json(args.json, result)
  return int(
    any(
      max(entry['relative_difference']) > args.tolerance
      for entry in found.values()
    )
  )


if __name__ == '__main__':
  sys.exit(main())

"""Cells that others published, and genotypes by their name or file.

>>> import ms_ranas_jax as mr
>>> [g.nodes for g in (mr.NASNET, mr.AMOEBANET, mr.DARTS_V1, mr.DARTS_V2)]
[5, 5, 4, 4]
>>> mr.DARTS_V2.normal[0]
('sep_conv_3x3', 0)
"""

from __future__ import annotations

from collections.abc import Container

from etils import epath

from ms_ranas_jax import paths
from ms_ranas_jax.baselines import darts_text
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.genotype import check_operations

# NASNet-A, Zoph et al., "Learning Transferable Architectures for Scalable
# Image Recognition", in the form that the DARTS paper compares with.
NASNET = Genotype(
  normal=(
    ('sep_conv_5x5', 1),
    ('sep_conv_3x3', 0),
    ('sep_conv_5x5', 0),
    ('sep_conv_3x3', 0),
    ('avg_pool_3x3', 1),
    ('skip_connect', 0),
    ('avg_pool_3x3', 0),
    ('avg_pool_3x3', 0),
    ('sep_conv_3x3', 1),
    ('skip_connect', 1),
  ),
  normal_concat=(2, 3, 4, 5, 6),
  reduction=(
    ('sep_conv_5x5', 1),
    ('sep_conv_7x7', 0),
    ('max_pool_3x3', 1),
    ('sep_conv_7x7', 0),
    ('avg_pool_3x3', 1),
    ('sep_conv_5x5', 0),
    ('skip_connect', 3),
    ('avg_pool_3x3', 2),
    ('sep_conv_3x3', 2),
    ('max_pool_3x3', 1),
  ),
  reduction_concat=(4, 5, 6),
)

# AmoebaNet-A, Real et al., "Regularized Evolution for Image Classifier
# Architecture Search".
AMOEBANET = Genotype(
  normal=(
    ('avg_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('sep_conv_3x3', 0),
    ('sep_conv_5x5', 2),
    ('sep_conv_3x3', 0),
    ('avg_pool_3x3', 3),
    ('sep_conv_3x3', 1),
    ('skip_connect', 1),
    ('skip_connect', 0),
    ('avg_pool_3x3', 1),
  ),
  normal_concat=(4, 5, 6),
  reduction=(
    ('avg_pool_3x3', 0),
    ('sep_conv_3x3', 1),
    ('max_pool_3x3', 0),
    ('sep_conv_7x7', 2),
    ('sep_conv_7x7', 0),
    ('avg_pool_3x3', 1),
    ('max_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('conv_7x1_1x7', 0),
    ('sep_conv_3x3', 5),
  ),
  reduction_concat=(3, 4, 6),
)

# Liu et al., "DARTS: Differentiable Architecture Search", first order.
DARTS_V1 = Genotype(
  normal=(
    ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 0),
    ('skip_connect', 0),
    ('sep_conv_3x3', 1),
    ('skip_connect', 0),
    ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 0),
    ('skip_connect', 2),
  ),
  normal_concat=(2, 3, 4, 5),
  reduction=(
    ('max_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('skip_connect', 2),
    ('max_pool_3x3', 0),
    ('max_pool_3x3', 0),
    ('skip_connect', 2),
    ('skip_connect', 2),
    ('avg_pool_3x3', 0),
  ),
  reduction_concat=(2, 3, 4, 5),
)

# The same, second order.
DARTS_V2 = Genotype(
  normal=(
    ('sep_conv_3x3', 0),
    ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 0),
    ('sep_conv_3x3', 1),
    ('sep_conv_3x3', 1),
    ('skip_connect', 0),
    ('skip_connect', 0),
    ('dil_conv_3x3', 2),
  ),
  normal_concat=(2, 3, 4, 5),
  reduction=(
    ('max_pool_3x3', 0),
    ('max_pool_3x3', 1),
    ('skip_connect', 2),
    ('max_pool_3x3', 1),
    ('max_pool_3x3', 0),
    ('skip_connect', 2),
    ('skip_connect', 2),
    ('max_pool_3x3', 1),
  ),
  reduction_concat=(2, 3, 4, 5),
)

PUBLISHED = {
  'NASNet': NASNET,
  'AmoebaNet': AMOEBANET,
  'DARTS_V1': DARTS_V1,
  'DARTS_V2': DARTS_V2,
}


def load_genotype(
  name_or_path: str, known: Container[str] | None = None
) -> Genotype:
  """Returns a published genotype by name, or one read from a file.

  Args:
    name_or_path: a key of `PUBLISHED`, or the path of a genotype file: JSON, or
      the text that DARTS, PC-DARTS and pt.darts print, see `darts_text`.
    known: the operations that it may use; None is any.

  Returns:
    The genotype.

  Raises:
    UsageError: neither a published name nor a readable genotype file.

  Example:
    >>> import ms_ranas_jax as mr
    >>> mr.load_genotype('DARTS_V2') == mr.DARTS_V2
    True
  """
  if name_or_path in PUBLISHED:
    return PUBLISHED[name_or_path]
  if darts_text.is_text(name_or_path):
    raise UsageError(
      'the genotype is given as its text; write that to a file, and give the '
      'path.'
    )
  path = epath.Path(paths.expand(name_or_path))
  if not path.is_file():
    raise UsageError(
      f'genotype "{name_or_path}" is neither a published one '
      f'({", ".join(PUBLISHED)}) nor a file; correct the name or the path.'
    )
  try:
    data = path.read_bytes()
    text = data.decode('utf-8-sig', errors='replace')
    if darts_text.is_text(text):
      genotype = darts_text.parse(text)
    else:
      genotype = Genotype.from_json(data)
    if known is not None:
      check_operations(genotype, known)
    return genotype
  except UsageError as error:
    raise UsageError(f'{name_or_path}: {error}') from error

"""How the seeds of a search compare."""

import numpy as np
import pytest

from ms_ranas_jax import default_config
from ms_ranas_jax.search import seeds
from ms_ranas_jax.space.genotype import Genotype

POOL, SKIP, CONV = 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3'


def _genotype(normal, reduction):
  return Genotype(normal, (2, 3), reduction, (2, 3))


FIRST = _genotype(
  ((POOL, 0), (SKIP, 1), (CONV, 0), (CONV, 2)),
  ((POOL, 0), (POOL, 1), (SKIP, 2), (SKIP, 0)),
)


def test_agreement():
  assert seeds.agreement(FIRST, FIRST) == (1, 1)
  # The order of a node's edges does not count.
  turned = _genotype(
    ((SKIP, 1), (POOL, 0), (CONV, 2), (CONV, 0)), FIRST.reduction
  )
  assert seeds.agreement(FIRST, turned) == (1, 1)
  other = _genotype(
    # The operations of the first node change places.
    ((SKIP, 0), (POOL, 1), (CONV, 1), (CONV, 2)),
    ((POOL, 0), (POOL, 1), (SKIP, 2), (SKIP, 1)),
  )
  # Edges: 2 + 1 + 2 + 1 of 8; operations: 0 + 1 + 2 + 1.
  assert seeds.agreement(FIRST, other) == (6 / 8, 4 / 8)
  assert seeds.agreement(other, FIRST) == (6 / 8, 4 / 8)


def test_the_last_epoch_is_a_mean_over_its_steps():
  records = [
    {'step': 3, 'epoch': 0, 'loss': 0, 'loss_by_seed': [9.0, 9.0]},
    {'step': 4, 'epoch': 0, 'loss': 0, 'loss_by_seed': [9.0, 9.0]},
    {'step': 7, 'epoch': 1, 'loss': 0, 'loss_by_seed': [1.0, 2.0]},
    {'step': 8, 'epoch': 1, 'loss': 0, 'loss_by_seed': [5.0, 2.0]},
  ]
  assert seeds.last_epoch(records, ['loss']) == {'loss': [2.0, 2.0]}


def test_compare():
  other = _genotype(FIRST.normal, ((CONV, 0), (CONV, 1)) + FIRST.reduction[2:])
  content = seeds.compare(
    [4, 5, 6], [FIRST, FIRST, other], {'valid_loss': np.arange(3)}, 5
  )
  assert content['chosen'] == 5
  assert [record['seed'] for record in content['seeds']] == [4, 5, 6]
  assert [record['valid_loss'] for record in content['seeds']] == [0, 1, 2]
  assert Genotype(**content['seeds'][2]['genotype']) == other
  np.testing.assert_array_equal(content['agreement']['edges'], np.ones((3, 3)))
  share = 6 / 8
  np.testing.assert_array_equal(
    content['agreement']['operations'],
    [[1, 1, share], [1, 1, share], [share, share, 1]],
  )
  assert content['mean_agreement'] == {
    'edges': 1,
    'operations': pytest.approx((1 + 2 * share) / 3),
  }


def test_one_seed_has_no_axis():
  config = default_config.get_config()
  config.seed = 3
  assert seeds.numbers(config.seed, config.search.num_seeds) == (3,)
  assert seeds.side_by_side(config.search) is None
  config.search.update(num_seeds=6, seeds_at_once=4)
  assert seeds.numbers(3, 6) == (3, 4, 5, 6, 7, 8)
  # Groups of one size: one program.
  assert seeds.side_by_side(config.search).group == 3

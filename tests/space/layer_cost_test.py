"""Costs of single layers, by hand."""

from ms_ranas_jax.space import layer_cost


def test_convolution():
  layer = layer_cost.convolution(4, 5, 6, 8, (3, 3))
  assert layer.params == 3 * 3 * 6 * 8
  assert layer.macs == layer.flops_msdnet == 3 * 3 * 6 * 8 * 4 * 5
  assert layer.elements == 4 * 5 * 8
  assert not layer.in_place
  # Whatever follows, it is given a bias.
  assert layer.params_deployed == layer.params + 8


def test_grouped_convolution():
  layer = layer_cost.convolution(4, 5, 6, 6, (1, 7), groups=6)
  assert layer.params == 7 * 6
  assert layer.macs == 7 * 6 * 4 * 5


def test_relu_and_norm_are_in_place():
  relu = layer_cost.relu(4, 5, 6)
  assert relu == layer_cost.Layer(0, 120, 0, 120, in_place=True)
  norm = layer_cost.norm(4, 5, 6, affine=True)
  assert norm == layer_cost.Layer(0, 0, 12, 120, in_place=True, folded=12)
  assert layer_cost.norm(4, 5, 6, affine=False).params == 0


def test_a_norm_or_bias_after_a_convolution_is_folded():
  for affine in (True, False):
    assert layer_cost.norm(4, 5, 6, affine).params_deployed == 0
    alone = layer_cost.norm(4, 5, 6, affine, after_convolution=False)
    assert alone.params_deployed == 2 * 6
  bias = layer_cost.bias(4, 5, 6)
  assert (bias.params, bias.params_deployed, bias.elements) == (6, 0, 120)
  assert bias.in_place


def test_pools():
  pool = layer_cost.pool(4, 5, 6, kernel=3)
  assert pool == layer_cost.Layer(0, 120 * 9, 0, 120)
  last = layer_cost.global_pool(4, 5, 6)
  assert last == layer_cost.Layer(0, 120, 0, 6)


def test_dense():
  layer = layer_cost.dense(6, 10)
  assert layer == layer_cost.Layer(60, 70, 70, 10)
  assert layer.params_deployed == 70

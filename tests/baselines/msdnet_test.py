"""MSDNet's forward pass against a plain form, its exits, and two devices."""

import math

import jax
import numpy as np
from numpy.lib import stride_tricks
import pytest

from ms_ranas_jax.baselines import msdnet
from ms_ranas_jax.baselines import msdnet_plan
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels import lowering
from ms_ranas_jax.training import losses

_SPECS = {
  'max': msdnet_plan.MSDNetSpec(4, 3, 1, 1, growth=2, image_shape=(8, 8, 3)),
  'max, lin_grow': msdnet_plan.MSDNetSpec(
    3, 2, 2, 1, 'lin_grow', 2, scales=2, image_shape=(7, 8, 1), num_classes=3
  ),
  'min, lin_grow': msdnet_plan.MSDNetSpec(
    3, 2, 1, 2, 'lin_grow', growth=2, prune='min', image_shape=(8, 8, 3)
  ),
  'min': msdnet_plan.MSDNetSpec(
    4, 2, 2, 1, growth=4, scales=2, prune='min', image_shape=(8, 8, 3)
  ),
  'other factors, a 1x1 at one scale': msdnet_plan.MSDNetSpec(
    2,
    2,
    1,
    1,
    growth=2,
    scales=2,
    growth_factors=(1, 3),
    bottleneck_factors=(0, 2),
    image_shape=(8, 8, 3),
  ),
  'imagenet': msdnet_plan.MSDNetSpec(
    3, 2, 1, 1, growth=2, scales=2, stem='imagenet', image_shape=(33, 32, 3)
  ),
}


class _Plain:
  """The public code's network in float64, one convolution after another."""

  def __init__(self, spec, variables, train):
    self.spec = spec
    self.train = train
    self.variables = jax.tree.map(lambda a: np.asarray(a, float), variables)

  def _windows(self, x, size, stride, fill=0.0):
    half = size // 2
    x = np.pad(
      x, [(0, 0), (half, half), (half, half), (0, 0)], constant_values=fill
    )
    windows = stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return windows[:, ::stride, ::stride]  # (b, h, w, c, size, size)

  def conv(self, x, kernel, stride=1):
    windows = self._windows(x, kernel.shape[1], stride)
    return np.einsum('bhwcij,fijc->bhwf', windows, kernel)

  def norm_relu(self, x, path, part=slice(None)):
    """BN and ReLU; `part` are the channels of a BN over several."""
    module, name = path
    params = self.variables['params'][module][name]
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    if not self.train:
      stats = self.variables['batch_stats'][module][name]
      mean, variance = stats['mean'][part], stats['var'][part]
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return np.maximum(x * params['scale'][part] + params['bias'][part], 0)

  def stems(self, x):
    found = []
    for scale in range(self.spec.scales):
      name = f'stem_{scale}'
      params = self.variables['params'][name]
      if not scale and self.spec.stem == 'imagenet':
        x = self.conv(x, params['kernel'], 2) + params['bias']
        x = self.norm_relu(x, (name, 'norm'))
        x = self._windows(x, 3, 2, -np.inf).max((4, 5))
      else:
        x = self.conv(x, params['kernel'], 2 if scale else 1)
        x = self.norm_relu(x, (name, 'norm'))
      found.append(x)
    return dict(enumerate(found))

  def new_features(self, layer, scale, source, features, columns, down, part):
    """One convolution of a layer; `columns` are its own in the shared 1x1."""
    params = self.variables['params']
    x = features[source]
    before = f'layer_{layer - 1}_{source}' if layer else f'stem_{source}'
    if columns is not None:
      module = f'{before}_bottleneck'
      x = self.conv(x, params[module]['kernel'][columns])
      x = self.norm_relu(x, (module, 'norm'), columns)
    name = f'layer_{layer}_{scale}'
    kernel = params[name]['diagonal' if down else 'horizontal']
    x = self.conv(x, kernel, 2 if down else 1)
    return self.norm_relu(x, (name, 'norm'), part)

  def __call__(self, images):
    spec, params = self.spec, self.variables['params']
    factors = spec.growth_factors or [2**s for s in range(spec.scales)]
    narrow = spec.bottleneck_factors or factors
    steps = [spec.base] + [
      spec.step if spec.step_mode == 'even' else spec.step * i + 1
      for i in range(1, spec.blocks)
    ]
    layers, features = sum(steps), self.stems(np.asarray(images, float))
    ends = np.cumsum(steps) - 1
    logits = []
    for layer in range(layers):
      interval = math.ceil(layers / spec.scales)
      left = (
        spec.scales - layer // interval
        if spec.prune == 'max'
        else min(spec.scales, layers - layer)
      )
      dropped = left < len(features)
      halve = (
        dropped
        if spec.prune == 'max'
        else layer + 1 in (layers // 3, 2 * layers // 3)
      )
      outputs = {}
      for scale in range(spec.scales - left, spec.scales):
        new = spec.growth * factors[scale]
        parts = [features[scale]]
        if scale - 1 in features:
          new //= 2
        widths = {}  # of the 1x1 convolutions on a feature, in their order
        for source in (scale - 1, scale):
          if source not in features or not narrow[source]:
            widths[source] = None
            continue
          channels = features[source].shape[-1]
          own = min(channels, narrow[source] * new)
          start = 0
          if source < scale and source >= spec.scales - left:
            # The finer scale's own convolution stands first.
            finer = spec.growth * factors[source]
            finer //= 2 if source - 1 in features else 1
            start = min(channels, narrow[source] * finer)
          widths[source] = slice(start, start + own)
        if scale - 1 in features:
          parts.append(
            self.new_features(
              *(layer, scale, scale - 1, features, widths[scale - 1]),
              *(True, slice(0, new)),
            )
          )
        start = new if scale - 1 in features else 0
        parts.append(
          self.new_features(
            *(layer, scale, scale, features, widths[scale]),
            *(False, slice(start, start + new)),
          )
        )
        x = np.concatenate(parts, -1)
        name = f'layer_{layer}_{scale}'
        if halve:
          x = self.conv(x, params[name]['transition'])
          x = self.norm_relu(x, (name, 'transition_norm'))
        outputs[scale] = x
      features = outputs
      if layer in ends:
        x, name = features[spec.scales - 1], f'exit_{layer}'
        for index in range(2):
          x = self.conv(x, params[name][f'kernel_{index}'], 2)
          x = self.norm_relu(x, (name, f'norm_{index}'))
        dense = params[name]['dense']
        logits.append(x.mean((1, 2)) @ dense['kernel'] + dense['bias'])
    return np.stack(logits)


def _images(spec, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, *spec.image_shape)).astype(np.float32)


@pytest.mark.parametrize('name', _SPECS)
def test_the_forward_pass_is_that_of_the_plain_form(name, fill):
  spec = _SPECS[name]
  network = msdnet.build_msdnet(spec, lowering=lowering.TAPS)
  # Statistics of two values are too near nothing for single precision.
  images = _images(spec, batch=8)
  variables = fill(network, images, train=True)

  @jax.jit
  def both(variables, images):
    return (
      network.apply(variables, images, train=False),
      network.apply(variables, images, train=True, mutable=['batch_stats'])[0],
    )

  for train, logits in zip((False, True), both(variables, images), strict=True):
    wanted = _Plain(spec, variables, train)(images)
    assert logits.shape == (spec.blocks, 8, spec.num_classes)
    assert logits.dtype == np.float32
    # Random BNs make logits of hundreds, sums of terms as large.
    atol = 1e-5 * max(1, np.abs(wanted).max())
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=atol)


@jax.enable_x64(True)
def test_an_exit_needs_no_later_params(fill):
  spec = _SPECS['max']
  network = msdnet.build_msdnet(spec, dtype='float64', lowering=lowering.TAPS)
  images = _images(spec)
  # Logits are in the hundreds, and two programs round apart in float32.
  variables = jax.tree.map(np.float64, fill(network, images, train=True))
  every = jax.jit(lambda v: network.apply(v, images, train=False))(variables)
  for last in range(spec.blocks):
    needed = jax.eval_shape(
      lambda last=last: network.init(
        jax.random.key(0), images, train=False, last_exit=last
      )
    )
    # Only what the exits up to this one have is there.
    kept = {
      collection: {name: variables[collection][name] for name in tree}
      for collection, tree in needed.items()
    }
    found = jax.jit(
      lambda v, last=last: network.apply(v, images, train=False, last_exit=last)
    )(kept)
    np.testing.assert_allclose(found, every[: last + 1], rtol=1e-5, atol=1e-5)
  assert len(kept['params']) > len(
    jax.eval_shape(
      lambda: network.init(jax.random.key(0), images, train=False, last_exit=0)
    )['params']
  )


def _loss_and_gradient(network, variables, images, labels):
  def loss(params):
    logits, updates = network.apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
    )
    return losses.weighted_loss(logits, labels, (1.0,) * network.num_exits), (
      updates['batch_stats']
    )

  (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(
    variables['params']
  )
  return value, stats, gradient


def test_both_lowerings_and_two_devices_give_one_gradient(fill):
  spec = _SPECS['max, lin_grow']
  images, labels = _images(spec, batch=4), np.array([0, 1, 2, 0])
  network = msdnet.build_msdnet(spec, lowering=lowering.CONV)
  variables = fill(network, images, train=True)

  def run(network, images, labels):
    return _loss_and_gradient(network, variables, images, labels)

  wanted = jax.jit(lambda x, y: run(network, x, y))(images, labels)
  taps = network.clone(lowering=lowering.TAPS)
  found = jax.jit(lambda x, y: run(taps, x, y))(images, labels)
  plain, ours = (
    str(
      jax.make_jaxpr(lambda x, n=n: n.apply(variables, x, train=False))(images)
    )
    for n in (network, taps)
  )
  assert 'conv_general_dilated' in plain
  assert 'conv_general_dilated' not in ours
  shared = network.clone(axis_name='devices')

  # A vmap with a named axis stands for devices: the same collectives.
  def on_device(x, y):
    return jax.lax.pmean(run(shared, x, y), 'devices')

  split = jax.jit(jax.vmap(on_device, axis_name='devices'))(
    images.reshape(2, 2, *images.shape[1:]), labels.reshape(2, 2)
  )
  for other in (found, jax.tree.map(lambda a: a[0], split)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
      other,
      wanted,
    )


def test_the_computation_can_be_bfloat16_and_logits_stay_float32(fill):
  spec = _SPECS['min']
  network = msdnet.build_msdnet(spec, dtype='bfloat16', lowering=lowering.CONV)
  images = _images(spec)
  variables = fill(network, images, train=True)
  found = jax.eval_shape(
    lambda v: network.apply(v, images, train=True, mutable=['batch_stats']),
    variables,
  )
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(found)}
  assert kinds == {'float32'}


def test_other_images_and_exits_are_refused():
  network = msdnet.build_msdnet(_SPECS['max'])
  with pytest.raises(UsageError, match=r'\(8, 8, 3\)'):
    network.init(jax.random.key(0), np.zeros((1, 9, 8, 3)), train=False)
  with pytest.raises(UsageError, match='last_exit = 3.*0 to 2'):
    network.init(
      jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False, last_exit=3
    )

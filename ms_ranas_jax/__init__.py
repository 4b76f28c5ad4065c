"""MS-RANAS in JAX: search, train, measure and ship anytime classifiers.

What stands here is the public API; everything is a pure function, a frozen
dataclass or a Flax linen module. `examples/` shows how the parts are used in
other programs.

Nothing is imported before it is asked for: JAX alone takes a second or two.
"""

import importlib
import importlib.util
import types
import typing

from ms_ranas_jax.version import __version__ as __version__

if typing.TYPE_CHECKING:
  from ms_ranas_jax.anytime.budgets import budgeted_curve
  from ms_ranas_jax.anytime.budgets import solve_thresholds
  from ms_ranas_jax.anytime.curves import expected_accuracy
  from ms_ranas_jax.anytime.curves import step_area
  from ms_ranas_jax.baselines.cells import AMOEBANET
  from ms_ranas_jax.baselines.cells import DARTS_V1
  from ms_ranas_jax.baselines.cells import DARTS_V2
  from ms_ranas_jax.baselines.cells import NASNET
  from ms_ranas_jax.baselines.cells import load_genotype
  from ms_ranas_jax.baselines.msdnet import MSDNet
  from ms_ranas_jax.baselines.msdnet import build_msdnet
  from ms_ranas_jax.baselines.msdnet_plan import MSDNetSpec
  from ms_ranas_jax.baselines.resnet8 import ResNet8
  from ms_ranas_jax.baselines.resnet8 import ResNet8Spec
  from ms_ranas_jax.baselines.resnet8 import build_resnet8
  from ms_ranas_jax.costs.cost import NetworkCost
  from ms_ranas_jax.costs.cost import network_cost
  from ms_ranas_jax.costs.linear_cost import CostTables
  from ms_ranas_jax.costs.linear_cost import cost_tables
  from ms_ranas_jax.costs.linear_cost import expected_cost
  from ms_ranas_jax.data.datasets import Dataset
  from ms_ranas_jax.data.datasets import load_dataset
  from ms_ranas_jax.errors import UsageError
  from ms_ranas_jax.hypernetwork.hypernetwork import Hypernetwork
  from ms_ranas_jax.hypernetwork.hypernetwork import (
    init_params as init_hypernetwork,
  )
  from ms_ranas_jax.hypernetwork.hypernetwork import (
    logits as hypernetwork_logits,
  )
  from ms_ranas_jax.hypernetwork.hypernetwork import make_params
  from ms_ranas_jax.kernels.lowering import using as use_lowering
  from ms_ranas_jax.model.model import Answer
  from ms_ranas_jax.model.model import Model
  from ms_ranas_jax.model.model import build_model
  from ms_ranas_jax.model.model import load_model
  from ms_ranas_jax.model.model import packaged_networks
  from ms_ranas_jax.search.alphas import derive_genotype
  from ms_ranas_jax.search.alphas import init_alphas
  from ms_ranas_jax.search.alphas import one_hot_weights
  from ms_ranas_jax.search.auxiliary_skip import with_auxiliary_skip
  from ms_ranas_jax.search.auxiliary_skip import with_auxiliary_weights
  from ms_ranas_jax.search.bilevel import SearchState
  from ms_ranas_jax.search.bilevel import alphas_gradient
  from ms_ranas_jax.search.bilevel import init_state
  from ms_ranas_jax.search.bilevel import search_step
  from ms_ranas_jax.search.constrained import cost_range
  from ms_ranas_jax.search.constrained import derive_capped
  from ms_ranas_jax.search.constrained import derive_within
  from ms_ranas_jax.search.derived_cost import expected_derived_cost
  from ms_ranas_jax.search.early_stop import epoch_before_rise
  from ms_ranas_jax.search.early_stop import hessian_eigenvalue
  from ms_ranas_jax.search.hypernetwork_file import load_hypernetwork
  from ms_ranas_jax.search.optimizers import adam_with_l2
  from ms_ranas_jax.search.random_search import random_genotypes
  from ms_ranas_jax.search.random_search import random_search_step
  from ms_ranas_jax.space.cell import Cell
  from ms_ranas_jax.space.cell import Wiring
  from ms_ranas_jax.space.cell import fixed_wiring
  from ms_ranas_jax.space.cell import mixed_wiring
  from ms_ranas_jax.space.edges import softmax_weights
  from ms_ranas_jax.space.genotype import Genotype
  from ms_ranas_jax.space.grid import NetworkSpec
  from ms_ranas_jax.space.grid import Plan
  from ms_ranas_jax.space.grid import build_plan
  from ms_ranas_jax.space.layer_cost import Layer
  from ms_ranas_jax.space.layers import ConvNorm
  from ms_ranas_jax.space.network import Network
  from ms_ranas_jax.space.network import derived_network
  from ms_ranas_jax.space.network import search_network
  from ms_ranas_jax.space.operations import OPERATIONS
  from ms_ranas_jax.space.operations import PRIMITIVES
  from ms_ranas_jax.space.operations import Custom
  from ms_ranas_jax.space.operations import Pool
  from ms_ranas_jax.space.operations import Separable
  from ms_ranas_jax.space.operations import Skip
  from ms_ranas_jax.space.operations import Zero
  from ms_ranas_jax.training.initialization import init_variables
  from ms_ranas_jax.training.losses import exit_losses
  from ms_ranas_jax.training.optimizers import sgd

__all__ = [
  'AMOEBANET',
  'Answer',
  'Cell',
  'ConvNorm',
  'CostTables',
  'Custom',
  'DARTS_V1',
  'DARTS_V2',
  'Dataset',
  'Genotype',
  'Hypernetwork',
  'Layer',
  'MSDNet',
  'MSDNetSpec',
  'Model',
  'NASNET',
  'Network',
  'NetworkCost',
  'NetworkSpec',
  'OPERATIONS',
  'PRIMITIVES',
  'Plan',
  'Pool',
  'ResNet8',
  'ResNet8Spec',
  'SearchState',
  'Separable',
  'Skip',
  'UsageError',
  'Wiring',
  'Zero',
  'adam_with_l2',
  'alphas_gradient',
  'budgeted_curve',
  'build_model',
  'build_msdnet',
  'build_plan',
  'build_resnet8',
  'cost_range',
  'cost_tables',
  'derive_capped',
  'derive_genotype',
  'derive_within',
  'derived_network',
  'epoch_before_rise',
  'exit_losses',
  'expected_accuracy',
  'expected_cost',
  'expected_derived_cost',
  'fixed_wiring',
  'hessian_eigenvalue',
  'hypernetwork_logits',
  'init_alphas',
  'init_hypernetwork',
  'init_state',
  'init_variables',
  'load_dataset',
  'load_genotype',
  'load_hypernetwork',
  'load_model',
  'make_params',
  'mixed_wiring',
  'network_cost',
  'one_hot_weights',
  'packaged_networks',
  'random_genotypes',
  'random_search_step',
  'search_network',
  'search_step',
  'sgd',
  'softmax_weights',
  'solve_thresholds',
  'step_area',
  'use_lowering',
  'with_auxiliary_skip',
  'with_auxiliary_weights',
]
# Where each of them stands: its module, and its name there if that is another.
_PLACES = types.MappingProxyType(
  {
    'AMOEBANET': 'baselines.cells',
    'Answer': 'model.model',
    'Cell': 'space.cell',
    'ConvNorm': 'space.layers',
    'CostTables': 'costs.linear_cost',
    'Custom': 'space.operations',
    'DARTS_V1': 'baselines.cells',
    'DARTS_V2': 'baselines.cells',
    'Dataset': 'data.datasets',
    'Genotype': 'space.genotype',
    'Hypernetwork': 'hypernetwork.hypernetwork',
    'Layer': 'space.layer_cost',
    'MSDNet': 'baselines.msdnet',
    'MSDNetSpec': 'baselines.msdnet_plan',
    'Model': 'model.model',
    'NASNET': 'baselines.cells',
    'Network': 'space.network',
    'NetworkCost': 'costs.cost',
    'NetworkSpec': 'space.grid',
    'OPERATIONS': 'space.operations',
    'PRIMITIVES': 'space.operations',
    'Plan': 'space.grid',
    'Pool': 'space.operations',
    'ResNet8': 'baselines.resnet8',
    'ResNet8Spec': 'baselines.resnet8',
    'SearchState': 'search.bilevel',
    'Separable': 'space.operations',
    'Skip': 'space.operations',
    'UsageError': 'errors',
    'Wiring': 'space.cell',
    'Zero': 'space.operations',
    'adam_with_l2': 'search.optimizers',
    'alphas_gradient': 'search.bilevel',
    'budgeted_curve': 'anytime.budgets',
    'build_model': 'model.model',
    'build_msdnet': 'baselines.msdnet',
    'build_plan': 'space.grid',
    'build_resnet8': 'baselines.resnet8',
    'cost_range': 'search.constrained',
    'cost_tables': 'costs.linear_cost',
    'derive_capped': 'search.constrained',
    'derive_genotype': 'search.alphas',
    'derive_within': 'search.constrained',
    'derived_network': 'space.network',
    'epoch_before_rise': 'search.early_stop',
    'exit_losses': 'training.losses',
    'expected_accuracy': 'anytime.curves',
    'expected_cost': 'costs.linear_cost',
    'expected_derived_cost': 'search.derived_cost',
    'fixed_wiring': 'space.cell',
    'hessian_eigenvalue': 'search.early_stop',
    'hypernetwork_logits': 'hypernetwork.hypernetwork:logits',
    'init_alphas': 'search.alphas',
    'init_hypernetwork': 'hypernetwork.hypernetwork:init_params',
    'init_state': 'search.bilevel',
    'init_variables': 'training.initialization',
    'load_dataset': 'data.datasets',
    'load_genotype': 'baselines.cells',
    'load_hypernetwork': 'search.hypernetwork_file',
    'load_model': 'model.model',
    'make_params': 'hypernetwork.hypernetwork',
    'mixed_wiring': 'space.cell',
    'network_cost': 'costs.cost',
    'one_hot_weights': 'search.alphas',
    'packaged_networks': 'model.model',
    'random_genotypes': 'search.random_search',
    'random_search_step': 'search.random_search',
    'search_network': 'space.network',
    'search_step': 'search.bilevel',
    'sgd': 'training.optimizers',
    'softmax_weights': 'space.edges',
    'solve_thresholds': 'anytime.budgets',
    'step_area': 'anytime.curves',
    'use_lowering': 'kernels.lowering:using',
    'with_auxiliary_skip': 'search.auxiliary_skip',
    'with_auxiliary_weights': 'search.auxiliary_skip',
  }
)


def __getattr__(name: str) -> typing.Any:
  """Imports a public name, or a module of the package, at its first use."""
  if name in _PLACES:
    module, _, there = _PLACES[name].partition(':')
    found = importlib.import_module(f'{__name__}.{module}')
    value = getattr(found, there or name)
    globals()[name] = value
    return value
  if not name.startswith('_'):
    module = f'{__name__}.{name}'
    if importlib.util.find_spec(module) is not None:
      return importlib.import_module(module)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})

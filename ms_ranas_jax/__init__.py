"""MS-RANAS in JAX: search, train, measure and ship anytime classifiers.

What stands here is the public API; everything is a pure function, a frozen
dataclass or a Flax linen module. `examples/` shows how the parts are used in
other programs.
"""

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
from ms_ranas_jax.data.datasets import Dataset
from ms_ranas_jax.data.datasets import load_dataset
from ms_ranas_jax.errors import UsageError
from ms_ranas_jax.kernels.lowering import using as use_lowering
from ms_ranas_jax.model.model import Answer
from ms_ranas_jax.model.model import Model
from ms_ranas_jax.model.model import build_model
from ms_ranas_jax.model.model import load_model
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
from ms_ranas_jax.search.optimizers import adam_with_l2
from ms_ranas_jax.search.random_search import random_genotypes
from ms_ranas_jax.search.random_search import random_search_step
from ms_ranas_jax.space.cell import Cell
from ms_ranas_jax.space.cell import Wiring
from ms_ranas_jax.space.cell import fixed_wiring
from ms_ranas_jax.space.cell import mixed_wiring
from ms_ranas_jax.space.cost import NetworkCost
from ms_ranas_jax.space.cost import network_cost
from ms_ranas_jax.space.edges import softmax_weights
from ms_ranas_jax.space.genotype import Genotype
from ms_ranas_jax.space.grid import NetworkSpec
from ms_ranas_jax.space.grid import Plan
from ms_ranas_jax.space.grid import build_plan
from ms_ranas_jax.space.layer_cost import Layer
from ms_ranas_jax.space.layers import ConvNorm
from ms_ranas_jax.space.linear_cost import CostTables
from ms_ranas_jax.space.linear_cost import cost_tables
from ms_ranas_jax.space.linear_cost import expected_cost
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
from ms_ranas_jax.version import __version__ as __version__

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
  'init_alphas',
  'init_state',
  'init_variables',
  'load_dataset',
  'load_genotype',
  'load_model',
  'mixed_wiring',
  'network_cost',
  'one_hot_weights',
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

"""Published numbers: whole, in range, and known by their source."""

import pytest

from ms_ranas_jax import sections
from ms_ranas_jax.anytime import curves
from ms_ranas_jax.studies import published


@pytest.mark.parametrize('result', published.PUBLISHED, ids=lambda r: r.said)
def test_a_result(result):
  assert result.label and result.said and result.source
  assert set(result.figures) <= set(sections.FIGURES)
  assert all(0.5 < accuracy < 1 for accuracy in result.accuracies)
  if result.flops_msdnet:
    assert len(result.flops_msdnet) == len(result.accuracies)
    assert list(result.flops_msdnet) == sorted(result.flops_msdnet)


def test_the_area_of_msdnet_is_the_known_one():
  msdnet, *_ = published.of_figure('figure9')
  costs = msdnet.flops_msdnet
  area = curves.step_area(costs, msdnet.accuracies, costs[0], costs[-1])
  assert area == pytest.approx(0.9341, abs=5e-5)


def test_darts_is_said_as_its_error():
  (result,) = (r for r in published.PUBLISHED if r.label == 'DARTS, order 2')
  assert result.said == '97.24 % ± 0.09'
  assert result.accuracies == (pytest.approx(0.9724),)


def test_each_figure_has_what_belongs_beside_it():
  counts = {name: len(published.of_figure(name)) for name in sections.FIGURES}
  assert counts == {
    'figure4': 1,
    'figure5': 0,
    'figure6': 6,
    'figure9': 7,
    'figure10': 1,
  }
